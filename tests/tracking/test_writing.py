"""What MLflow holds of a sweep, and that logging it again changes nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_checkpoint import made
from tracking.logged import CROSS_ENTROPY, MEANS, SUPCON, SWEEP, TRAINED, TRIPLET, Stored, record, write_store

from scl_ray import tracking
from scl_ray.tracking import connection


def test_what_is_stored(uri: str, out: str, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a user's own MLflow code reads from the environment is not for the sweep.
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    tracking.log_sweep(uri, "stored", [CROSS_ENTROPY, SUPCON, TRIPLET], TRAINED, str(report), SWEEP)
    stored = Stored(uri, "stored")

    assert stored.parent.info.run_name == stored.parent.data.tags["sweep"] == "stored"
    assert stored.parent.info.status == "FINISHED"
    folder = Path(out, "mlartifacts", "stored", stored.parent.info.run_id, "artifacts")
    assert (folder / "report" / "index.html").read_bytes() == (report / "index.html").read_bytes()
    assert (folder / "report" / "tables" / "means.csv").exists()
    assert (folder / "sweep.yaml").read_text() == "name: demo\ngrid:\n  seed:\n  - 0\n  - 1\n"

    supcon = stored.trials[SUPCON["trial"]]
    assert supcon.info.run_name == SUPCON["label"]
    assert supcon.info.status == "FINISHED"
    assert supcon.data.tags["mlflow.parentRunId"] == stored.parent.info.run_id
    assert supcon.data.params == {
        "objective": "supcon",
        "temperature": "0.07",
        "backbone": "resnet8",
        "seed": "0",
        "dataset": "digits",
        "epochs": "3",
        "batch_size": "128",
        "learning_rate": "0.05",
        "optimizer": "sgd",
    }
    assert "temperature" not in stored.trials[CROSS_ENTROPY["trial"]].data.params
    assert stored.trials[TRIPLET["trial"]].data.params["margin"] == "0.3"
    assert stored.points(SUPCON["trial"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert stored.points(SUPCON["trial"], "accuracy/linear_probe") == [(0, 0.9)]
    assert stored.points(SUPCON["trial"], "faithfulness/pixel_flipping_auc/grad_cam") == [(0, 0.25)]
    assert stored.points(SUPCON["trial"], "continuity/ssim_continuity:noise:0.1/eigen_cam:a:b") == [(0, 0.5)]
    assert "accuracy/knn" not in supcon.data.metrics
    # What scores are divided by is no parameter of the objective; that is a number too, to be compared as one.
    assert "temperature" not in supcon.data.metrics
    assert (supcon.data.metrics["calibration/temperature"], supcon.data.metrics["objective/temperature"]) == (1.7, 0.07)
    assert supcon.data.metrics["system/training_seconds"] == 7.5
    assert stored.points(SUPCON["trial"], "system/images_per_second") == [(1, 700.0), (2, 700.0), (3, 700.0)]
    tags = {"objective_label": "supcon", "device": "a processor", "host": "node-0", "mlflow.source.type": "LOCAL"}
    assert tags.items() <= supcon.data.tags.items()
    assert (supcon.info.end_time - supcon.info.start_time) / 1000 == 6.0
    times = [point.timestamp for point in stored.client.get_metric_history(supcon.info.run_id, "loss")]
    assert [(time - supcon.info.start_time) / 1000 for time in times] == [2.0, 4.0, 6.0]


def test_the_dataset_is_an_input(uri: str) -> None:
    from mlflow.data import get_source

    configuration = SUPCON["configuration"]
    of_files = {**configuration, "dataset": {"name": "image_folder", "root": "data/birds"}}
    birds = SUPCON["dataset"] | {"name": "image_folder"}
    tracking.log_sweep(uri, "inputs", [SUPCON, TRIPLET], {})
    tracking.log_sweep(uri, "birds", [SUPCON | {"configuration": of_files, "dataset": birds}], {})
    stored = Stored(uri, "inputs")
    for run in (stored.parent, *stored.trials.values()):
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("digits", SUPCON["dataset"]["fingerprint"][:12])
        assert json.loads(data.dataset.profile) == {"image_size": 16, "classes": 10}
        assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training and evaluation")]
    (data,) = Stored(uri, "birds").parent.inputs.dataset_inputs
    assert get_source(data).uri == "data/birds"


def test_names_clash_with_no_setting(uri: str) -> None:
    loss = {"name": "ContrastiveLoss", "views": 1, "parameters": {"pos_margin": 0, "epochs": 7, "terms": [1, 2]}}
    tracking.log_sweep(uri, "clash", [record("ab0000000000", loss)], {})
    parameters = Stored(uri, "clash").trials["ab0000000000"].data.params
    assert (parameters["epochs"], parameters["objective.epochs"]) == ("3", "7")
    assert (parameters["objective"], parameters["pos_margin"], parameters["terms"]) == (
        "ContrastiveLoss",
        "0",
        "[1, 2]",
    )


def test_names_that_mlflow_would_refuse_are_made_acceptable(uri: str) -> None:
    alike = [f"faithfulness/{'m' * 200}/{'g' * 100}{end}" for end in "ab"]
    odd = {"complexity/m[path=/data/]/a[to=b//c]": 1.0, "complexity/m/a[x=é*?]": 2.0}
    tracking.log_sweep(uri, "odd", [SUPCON], {SUPCON["trial"]: dict.fromkeys(alike, 3.0) | odd})
    metrics = Stored(uri, "odd").trials[SUPCON["trial"]].data.metrics
    assert (metrics["complexity/m:path:/data/a:to:b/c"], metrics["complexity/m/a:x:é__"]) == (1.0, 2.0)
    long = [name for name in metrics if name.startswith("faithfulness/mmm")]
    assert [len(name) for name in long] == [250, 250]  # two, told apart


def test_of_a_large_sweep_only_what_is_asked_for_is_read(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.log_sweep(uri, "large", [CROSS_ENTROPY, SUPCON, TRIPLET], {})
    stored = Stored(uri, "large")

    def found() -> dict[str, str]:
        runs = connection.runs_of(stored.client, stored.parent.info.experiment_id, [SUPCON["trial"], "none"])
        return {trial: run.info.run_id for trial, (run,) in runs.items()}

    few = found()
    assert few == {"": stored.parent.info.run_id, SUPCON["trial"]: stored.trials[SUPCON["trial"]].info.run_id}
    monkeypatch.setattr(connection, "FEW", 1)
    assert few.items() < found().items()
    assert len(found()) == 4


def test_again_changes_nothing_and_needs_no_mlflow(uri: str, report: Path) -> None:
    def again() -> None:
        tracking.log_sweep(uri, "again", [CROSS_ENTROPY, SUPCON], TRAINED, str(report), SWEEP)

    again()
    before = Stored(uri, "again")
    again()
    # Also where the shortcut past MLflow finds nothing, as with a server.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "held", lambda uri, name, tag: {})
        again()
    after = Stored(uri, "again")
    assert after.all_points() == before.all_points()
    assert after.parent.data.tags == before.parent.data.tags

    program = f"""
import sys
from scl_ray import tracking
from tracking.logged import CROSS_ENTROPY, SUPCON, SWEEP, TRAINED
tracking.check({uri!r}, "again")
tracking.log_sweep({uri!r}, "again", [CROSS_ENTROPY, SUPCON], TRAINED, {str(report)!r}, SWEEP)
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT / "tests")


def test_what_is_new_is_added(uri: str, report: Path) -> None:
    running = SUPCON | {"status": "training", "epochs": SUPCON["epochs"][:2], "metrics": {}}
    tracking.log_sweep(uri, "growing", [running], {}, status="RUNNING")
    assert Stored(uri, "growing").trials[SUPCON["trial"]].info.status == "RUNNING"
    tracking.log_sweep(uri, "growing", [SUPCON], {}, status="RUNNING")  # trained, not evaluated
    stored = Stored(uri, "growing")
    assert stored.points(SUPCON["trial"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert stored.trials[SUPCON["trial"]].info.status == stored.parent.info.status == "RUNNING"
    tracking.log_sweep(uri, "growing", [SUPCON], {SUPCON["trial"]: MEANS}, str(report))

    (report / "index.html").write_text("<title>More images</title>")
    more = MEANS | {"faithfulness/pixel_flipping_auc/grad_cam": 0.3, "complexity/complexity/grad_cam": 6.5}
    tracking.log_sweep(uri, "growing", [SUPCON, TRIPLET], TRAINED | {SUPCON["trial"]: more}, str(report))
    stored = Stored(uri, "growing")
    assert {run.info.status for run in (stored.parent, *stored.trials.values())} == {"FINISHED"}
    run = stored.trials[SUPCON["trial"]]
    assert run.data.metrics["faithfulness/pixel_flipping_auc/grad_cam"] == 0.3
    assert stored.points(SUPCON["trial"], "complexity/complexity/grad_cam") == [(0, 6.5)]
    assert stored.points(SUPCON["trial"], "continuity/ssim_continuity:noise:0.1/eigen_cam:a:b") == [(0, 0.5)]
    path = stored.client.download_artifacts(stored.parent.info.run_id, "report/index.html", str(report))
    assert Path(path).read_text() == "<title>More images</title>"


def test_failed_trial(uri: str) -> None:
    broken = [*SUPCON["epochs"][:1], SUPCON["epochs"][1] | {"loss": None}]
    failed = SUPCON | {"status": "failed", "error": "The loss was not finite in epoch 2.", "epochs": broken}
    tracking.log_sweep(uri, "failing", [CROSS_ENTROPY, failed], TRAINED, status="FAILED")
    stored = Stored(uri, "failing")
    assert (stored.parent.info.status, stored.trials[CROSS_ENTROPY["trial"]].info.status) == ("FAILED", "FINISHED")
    assert stored.trials[SUPCON["trial"]].info.status == "FAILED"
    assert stored.trials[SUPCON["trial"]].data.tags["error"] == failed["error"]
    assert stored.trials[SUPCON["trial"]].data.tags["mlflow.note.content"] == f"Failed: {failed['error']}"
    assert [step for step, _ in stored.points(SUPCON["trial"], "loss")] == [1, 2]

    tracking.log_sweep(uri, "failing", [CROSS_ENTROPY, SUPCON], TRAINED)
    stored = Stored(uri, "failing")
    assert stored.trials[SUPCON["trial"]].info.status == stored.parent.info.status == "FINISHED"
    assert not {"error", "mlflow.note.content"} & stored.trials[SUPCON["trial"]].data.tags.keys()


def test_long_training_takes_few_calls(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    calls: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any, **options: Any) -> Any:
        calls.append(len(metrics))
        return log_batch(self, run_id, metrics, *rest, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    long = record("500000000000", SUPCON["configuration"]["objective"], epochs=500)
    tracking.log_sweep(uri, "long", [long], {"500000000000": {f"m/{i}": float(i) for i in range(40)}})
    assert len(calls) == 4  # metrics in batches, then parameters and tags
    # 4 of each epoch; temperature, workers and seconds, accuracy and calibration; 40 means.
    assert sum(calls) == 500 * 4 + 5 + 40
    assert [step for step, _ in Stored(uri, "long").points("500000000000", "loss")] == list(range(1, 501))


def test_telemetry_is_off(uri: str) -> None:
    tracking.log_sweep(uri, "quiet", [], {})
    from mlflow.telemetry import get_telemetry_client

    assert get_telemetry_client() is None


def test_what_a_late_answer_has_doubled_is_left_once(uri: str) -> None:
    """A server that makes a run after it was given up on, and asked again, has made it twice."""
    tracking.log_sweep(uri, "doubled", [SUPCON], TRAINED)
    once = Stored(uri, "doubled")
    experiment = once.parent.info.experiment_id
    late = once.client.create_run(experiment, tags={"sweep": "doubled"})
    tags = {"trial": SUPCON["trial"], "mlflow.parentRunId": late.info.run_id}
    once.client.create_run(experiment, 0, tags)
    other = once.client.create_run(experiment, 0, tags | {"trial": TRIPLET["trial"]})
    tracking.log_sweep(uri, "doubled", [SUPCON, TRIPLET], TRAINED)
    stored = Stored(uri, "doubled")
    assert stored.parent.info.run_id == once.parent.info.run_id
    assert stored.trials[SUPCON["trial"]].info.run_id == once.trials[SUPCON["trial"]].info.run_id
    assert stored.trials[TRIPLET["trial"]].info.run_id == other.info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in stored.trials.values()} == {once.parent.info.run_id}


def test_a_slow_server_holds_the_end_up_for_a_time_that_is_known(uri: str) -> None:
    with pytest.raises(tracking.TrackingError, match="too slow"):
        tracking.log_sweep(uri, "slow", [SUPCON], TRAINED, seconds=0.0)
    tracking.log_sweep(uri, "slow", [SUPCON], TRAINED, seconds=600.0)
    assert Stored(uri, "slow").trials[SUPCON["trial"]].info.status == "FINISHED"


def test_artifacts_whose_storage_refuses_are_said_in_a_sentence(
    uri: str, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie where the server does not write for its clients; boto3's errors are none of MLflow's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    connection.client(uri).create_experiment("afar", artifact_location="s3://bucket/mlflow")
    why = "its artifacts cannot be stored: .*[Cc]redentials"
    with pytest.raises(tracking.TrackingError, match=why):
        tracking.log_sweep(uri, "afar", [SUPCON], TRAINED, str(report))
    store = write_store(tmp_path, "afar", {SUPCON["trial"]: made()})
    with pytest.raises(tracking.TrackingError, match=why):
        tracking.log_networks(uri, "afar", store, [SUPCON])


def test_a_copied_folder_has_its_own_artifacts(tmp_path: Path, report: Path) -> None:
    from mlflow.tracking._tracking_service import utils

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    tracking.log_sweep(tracking.tracking_uri(str(first)), "copied", [SUPCON], TRAINED, str(report))
    shutil.copytree(first, second)
    shutil.rmtree(first)
    utils._artifact_repos_cache.clear()  # in which a process, but not the next one, has the places of runs
    uri = tracking.tracking_uri(str(second))
    tracking.log_sweep(uri, "copied", [SUPCON], TRAINED, str(report))

    def page() -> str:
        stored = Stored(uri, "copied")
        return Path(stored.client.download_artifacts(stored.parent.info.run_id, "report/index.html")).read_text()

    assert page() == "<title>The report</title>"
    (report / "index.html").write_text("<title>Another report</title>")
    tracking.log_sweep(uri, "copied", [SUPCON, TRIPLET], TRAINED, str(report))
    assert page() == "<title>Another report</title>"
    places = {run.info.artifact_uri for run in Stored(uri, "copied").trials.values()}
    assert all(place.startswith(f"{second.as_uri()}/mlartifacts/copied/") for place in places)
    assert not first.exists()
