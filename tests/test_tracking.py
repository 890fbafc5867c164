"""MLflow: what is stored, that repeating it changes nothing, and that its absence costs only time."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from scl_ray import tracker, tracking
from scl_ray.config import InputError
from scl_ray.tracker import Tracker

SWEEP = {"name": "demo", "grid": {"seed": [0, 1]}}
MEANS = {"faithfulness/pixel_flipping_auc/grad_cam": 0.25, "continuity/ssim_continuity[noise=0.1]/eigen_cam[a=b]": 0.5}


def record(trial: str, objective: dict[str, Any], *, epochs: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "trial": trial,
        "label": f"{objective['name']} · resnet8 · seed 0",
        "status": "trained",
        "error": None,
        "configuration": {
            "dataset": {"name": "digits", "root": None, "image_size": 32, "validation": 0.1},
            "objective": objective,
            "backbone": "resnet8",
            "seed": 0,
            "training": {"epochs": epochs, "batch_size": 128, "learning_rate": 0.05, "optimizer": "sgd"},
        },
        "epochs": [
            {"epoch": e, "loss": 1 / e, "learning_rate": 0.1 / e, "seconds": 2.0, "images_per_second": 700.0}
            for e in range(1, epochs + 1)
        ],
        "metrics": {"accuracy/linear_probe": 0.9, "accuracy/knn": None},
        "finished": "2026-01-01T00:00:00+00:00",
        **changes,
    }


CROSS_ENTROPY = record("ce0000000000", {"name": "cross_entropy", "label_smoothing": 0.0})
SUPCON = record("5c0000000000", {"name": "supcon", "temperature": 0.07})
TRIPLET = record("791000000000", {"name": "triplet", "margin": 0.3, "mining": "hard"})
TRAINED = {entry["trial"]: MEANS for entry in (CROSS_ENTROPY, SUPCON, TRIPLET)}


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder, whose name needs quoting, with one database; every test logs a sweep of its own name."""
    return str(tmp_path_factory.mktemp("the runs"))


@pytest.fixture
def uri(out: str) -> str:
    return tracking.tracking_uri(out)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    (folder / "tables").mkdir(parents=True)
    (folder / "index.html").write_text("<title>The report</title>")
    (folder / "tables" / "means.csv").write_text("objective,mean\nsupcon,0.25\n")
    return folder


class Stored:
    """What MLflow holds of a sweep, read by its own client."""

    def __init__(self, uri: str, name: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id])
        (self.parent,) = (run for run in runs if "sweep" in run.data.tags)
        self.trials = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
        assert len(runs) == 1 + len(self.trials), "a run was logged twice"

    def points(self, trial: str, metric: str) -> list[tuple[int, float]]:
        run_id = self.trials[trial].info.run_id
        return [(point.step, point.value) for point in self.client.get_metric_history(run_id, metric)]

    def all_points(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        return {(t, key): self.points(t, key) for t, run in self.trials.items() for key in run.data.metrics}


def test_default_is_sqlite_beside_the_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking.tracking_uri(f"file://{tmp_path}/runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        tracking.tracking_uri("s3://bucket/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.tracking_uri("runs") == tracking.tracking_uri("s3://bucket/runs") == "http://mlflow:5000"
    assert tracking.ui_command("s3://bucket/runs").endswith("-m webbrowser http://mlflow:5000")


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
    assert stored.points(SUPCON["trial"], "accuracy/linear_probe") == [(3, 0.9)]
    assert stored.points(SUPCON["trial"], "faithfulness/pixel_flipping_auc/grad_cam") == [(3, 0.25)]
    assert stored.points(SUPCON["trial"], "continuity/ssim_continuity:noise:0.1/eigen_cam:a:b") == [(3, 0.5)]
    assert "accuracy/knn" not in supcon.data.metrics
    times = [point.timestamp for point in stored.client.get_metric_history(supcon.info.run_id, "loss")]
    assert [(time - supcon.info.start_time) / 1000 for time in times] == [2.0, 4.0, 6.0]


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


def test_again_changes_nothing_and_needs_no_mlflow(uri: str, report: Path) -> None:
    def again() -> None:
        tracking.log_sweep(uri, "again", [CROSS_ENTROPY, SUPCON], TRAINED, str(report), SWEEP)

    again()
    before = Stored(uri, "again")
    again()
    # Also where the shortcut past MLflow finds nothing, as with a server.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_held", lambda uri, name: {})
        again()
    after = Stored(uri, "again")
    assert after.all_points() == before.all_points()
    assert after.parent.data.tags == before.parent.data.tags

    program = f"""
import sys
from scl_ray import tracking
from tests.test_tracking import CROSS_ENTROPY, SUPCON, SWEEP, TRAINED
tracking.check({uri!r}, "again")
tracking.log_sweep({uri!r}, "again", [CROSS_ENTROPY, SUPCON], TRAINED, {str(report)!r}, SWEEP)
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


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
    assert stored.points(SUPCON["trial"], "complexity/complexity/grad_cam") == [(3, 6.5)]
    assert stored.points(SUPCON["trial"], "continuity/ssim_continuity:noise:0.1/eigen_cam:a:b") == [(3, 0.5)]
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
    assert [step for step, _ in stored.points(SUPCON["trial"], "loss")] == [1, 2]

    tracking.log_sweep(uri, "failing", [CROSS_ENTROPY, SUPCON], TRAINED)
    stored = Stored(uri, "failing")
    assert stored.trials[SUPCON["trial"]].info.status == stored.parent.info.status == "FINISHED"
    assert "error" not in stored.trials[SUPCON["trial"]].data.tags


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
    assert len(calls) == 3
    assert sum(calls) == 500 * 4 + 1 + 40
    assert [step for step, _ in Stored(uri, "long").points("500000000000", "loss")] == list(range(1, 501))


def test_deleted_experiment_is_named(uri: str) -> None:
    tracking.log_sweep(uri, "deleted", [], {})
    stored = Stored(uri, "deleted")
    tracking.check(uri, "deleted")
    stored.client.delete_experiment(stored.parent.info.experiment_id)
    with pytest.raises(InputError, match="experiment 'deleted' was deleted"):
        tracking.check(uri, "deleted")
    with pytest.raises(InputError, match="experiment 'deleted' was deleted"):
        tracking.log_sweep(uri, "deleted", [SUPCON], {})


def test_telemetry_is_off(uri: str) -> None:
    tracking.log_sweep(uri, "quiet", [], {})
    from mlflow.telemetry import get_telemetry_client

    assert get_telemetry_client() is None


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    """The address of a web server that answers everything so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def refusal(uri: str) -> str:
    with pytest.raises(InputError) as caught:
        tracking.check(uri, "demo")
    message = str(caught.value)
    assert "MLFLOW_TRACKING_URI" in message
    assert "\n" not in message
    return message


def test_unusable_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert "Connection refused" in refusal(f"http://127.0.0.1:{free_port()}")
    with answering(403, b"who are you?") as address:
        message = refusal(address)
        assert "403" in message
        assert "secret" not in message
    with answering(200, b"<html>the wrong server</html>") as address:
        assert "not in a valid JSON format" in refusal(address)
    monkeypatch.setattr(tracking, "CHECK_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no answer in 1 s" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "maintenance mode" in refusal(str(tmp_path / "mlruns"))

    (tmp_path / "mlflow.db").write_text("these are my notes and not a database" * 100)
    with pytest.raises(InputError, match="is not a database"):
        tracking.check(tracking.tracking_uri(str(tmp_path)))


def wait(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


class Server:
    """MLflow's server as `ui_command` starts it. It can be killed and started again."""

    def __init__(self, command: str, folder: Path) -> None:
        port = free_port()
        self.command, self.folder, self.address = f"{command} --port {port}", folder, f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            shell=True,
            start_new_session=True,
            cwd=self.folder,  # artifacts sent to the server lie below it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait(self.answers, 180)

    def answers(self) -> bool:
        assert self.process.poll() is None, "the server has ended"
        try:
            return requests.get(f"{self.address}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(out: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)  # the command is for the folder where it was asked for
        server = Server(tracking.ui_command(out), folder)
    try:
        yield server
    finally:
        server.kill()


def test_ui_command_shows_the_log(server: Server, uri: str, report: Path) -> None:
    tracking.log_sweep(uri, "shown", [SUPCON], TRAINED, str(report))
    assert "MLflow" in requests.get(server.address, timeout=10).text
    assert report_page(server, Stored(uri, "shown").parent.info.run_id) == "<title>The report</title>"


def report_page(server: Server, run_id: str) -> str:
    query = {"run_uuid": run_id, "path": "report/index.html"}
    return requests.get(f"{server.address}/get-artifact", params=query, timeout=10).text


def test_server_holds_the_same(server: Server, report: Path) -> None:
    def rest(method: str, path: str, **options: Any) -> Any:
        answer = requests.request(method, f"{server.address}/api/2.0/mlflow/{path}", timeout=10, **options)
        answer.raise_for_status()
        return answer.json()

    tracking.check(server.address, "rest")
    failed = TRIPLET | {"status": "failed", "error": "The loss was not finite.", "epochs": [{"epoch": 1, "loss": None}]}
    for _ in range(2):
        tracking.log_sweep(server.address, "rest", [SUPCON, failed], TRAINED, str(report), SWEEP, "FAILED")

    experiment = rest("GET", "experiments/get-by-name", params={"experiment_name": "rest"})["experiment"]
    runs = rest("POST", "runs/search", json={"experiment_ids": [experiment["experiment_id"]]})["runs"]
    tags = {run["info"]["run_id"]: {t["key"]: t["value"] for t in run["data"]["tags"]} for run in runs}
    by_trial = {tags[run["info"]["run_id"]].get("trial", ""): run for run in runs}
    assert len(runs) == 3
    parent = by_trial[""]["info"]
    assert (parent["status"], by_trial[failed["trial"]]["info"]["status"]) == ("FAILED", "FAILED")
    run = by_trial[SUPCON["trial"]]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", SUPCON["label"])
    assert tags[run["info"]["run_id"]]["mlflow.parentRunId"] == parent["run_id"]
    assert {p["key"]: p["value"] for p in run["data"]["params"]}["temperature"] == "0.07"
    history = {"run_id": run["info"]["run_id"], "metric_key": "loss"}
    points = rest("GET", "metrics/get-history", params=history)["metrics"]
    assert [(int(point["step"]), point["value"]) for point in points] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    values = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert values["continuity/ssim_continuity:noise:0.1/eigen_cam:a:b"] == 0.5
    assert report_page(server, parent["run_id"]) == "<title>The report</title>"
    assert list(server.folder.glob("mlartifacts/*/*/artifacts/report/index.html"))

    Stored(server.address, "rest").client.delete_experiment(experiment["experiment_id"])
    with pytest.raises(InputError, match="experiment 'rest' was deleted"):
        tracking.check(server.address, "rest")


def test_server_away_delays_the_log_only(server: Server, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.5)
    warnings: list[str] = []
    first, *later = SUPCON["epochs"]
    starting = SUPCON | {"status": "training", "epochs": [], "metrics": {}}

    with Tracker(server.address, "outage", warn=warnings.append) as log:
        log.epoch(starting, first)
        wait(lambda: not log._trials)
        server.kill()
        for row in later:
            log.epoch(starting, row)
        wait(lambda: warnings)
        log.trial(SUPCON, MEANS)
        log.trial(CROSS_ENTROPY)
        with pytest.raises(tracking.TrackingError, match="Connection refused"):
            tracking.log_sweep(server.address, "outage", [SUPCON], {})
        server.start()
        assert log.close(timeout=30)

    assert len(warnings) == 1
    stored = Stored(server.address, "outage")
    assert stored.points(SUPCON["trial"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert stored.trials[SUPCON["trial"]].info.status == "FINISHED"
    assert stored.trials[CROSS_ENTROPY["trial"]].info.status == stored.parent.info.status == "RUNNING"
    before = stored.all_points()
    tracking.log_sweep(server.address, "outage", [SUPCON, CROSS_ENTROPY], TRAINED, str(report), SWEEP)
    stored = Stored(server.address, "outage")
    assert stored.trials[CROSS_ENTROPY["trial"]].info.status == stored.parent.info.status == "FINISHED"
    assert before.items() <= stored.all_points().items()


def test_the_end_does_not_wait_for_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking._client_class()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        log = Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent", warn=lambda message: None)
        log.trial(SUPCON, MEANS)
        start = time.monotonic()
        assert not log.close(timeout=0.5)
        assert time.monotonic() - start < 2
        log._thread.join()
        assert not log.close(timeout=0)
