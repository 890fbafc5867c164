"""A real MLflow server: what it holds, what it answers to, and that its absence costs only time."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from conftest import ROOT
from test_checkpoint import made
from tracking.logged import (
    CROSS_ENTROPY,
    MEANS,
    PIXELS,
    SUPCON,
    SWEEP,
    TRAINED,
    TRIPLET,
    Stored,
    record,
    scores,
    write_store,
)
from tracking.served import Server, wait

from scl_ray import tracker, tracking
from scl_ray.config import InputError
from scl_ray.store import open_store
from scl_ray.tracker import Tracker
from scl_ray.tracking import connection


@pytest.fixture(scope="module")
def server(out: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)  # the command is for the folder where it was asked for
        server = Server(tracking.ui_command(out), folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_ui_command_shows_the_log(server: Server, uri: str, report: Path) -> None:
    tracking.log_sweep(uri, "shown", [SUPCON], TRAINED, str(report))
    assert "MLflow" in requests.get(server.address, timeout=60).text
    assert report_page(server, Stored(uri, "shown").parent.info.run_id) == "<title>The report</title>"


def report_page(server: Server, run_id: str) -> str:
    query = {"run_uuid": run_id, "path": "report/index.html"}
    return requests.get(f"{server.address}/get-artifact", params=query, timeout=60).text


def test_server_holds_the_same(server: Server, report: Path) -> None:
    rest = server.rest
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


COLD = SUPCON | {"metrics": {"accuracy/knn": 0.95}}
WARM = record("5c1000000000", {"name": "supcon", "temperature": 0.5}, metrics={"accuracy/knn": 0.7})
PLAIN = CROSS_ENTROPY | {"metrics": {"accuracy/knn": 0.92}}
FAILED = TRIPLET | {"status": "failed", "error": "The loss was not finite.", "metrics": {}}

# What README tells users to type into the search box, and which runs they are to see.
SEARCHES = {
    """params.objective = "supcon" and metrics."objective/temperature" < 0.1""": [COLD],
    """metrics."accuracy/knn" > 0.9 and metrics."faithfulness/pixel_flipping_auc/grad_cam" < 0.3""": [COLD, PLAIN],
    """attributes.status = "FAILED" and tags.error LIKE "%not finite%\"""": [FAILED],
    """dataset.digest = "0123456789ab" and tags.objective_label = "cross_entropy\"""": [PLAIN],
    """tags.trial = "5c0000000000\"""": [COLD],
}


def test_readme_has_these_searches() -> None:
    # With the digest and the trial of the demo, where these have their own.
    readme = re.sub(r'"[0-9a-f]{12}"', '"…"', (ROOT / "README.md").read_text())
    for search in SEARCHES:
        assert "| `" + re.sub(r'"[0-9a-f]{12}"', '"…"', search) + "` |" in readme


def test_searches_find_what_they_ask_for(server: Server) -> None:
    tracking.log_sweep(server.address, "searched", [PLAIN, COLD, WARM, FAILED], TRAINED | {WARM["trial"]: MEANS})
    name = {"experiment_name": "searched"}
    experiment = server.rest("GET", "experiments/get-by-name", params=name)["experiment"]
    for search, wanted in SEARCHES.items():
        query = {"experiment_ids": [experiment["experiment_id"]], "filter": search}
        runs = server.rest("POST", "runs/search", json=query).get("runs", [])
        found = [tag["value"] for run in runs for tag in run["data"]["tags"] if tag["key"] == "trial"]
        assert sorted(found) == sorted(trial["trial"] for trial in wanted), search


def test_a_network_is_loaded_from_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    store = write_store(tmp_path, "served", {SUPCON["trial"]: network})
    tracking.log_sweep(server.address, "served", [SUPCON], TRAINED)
    tracking.log_networks(server.address, "served", store, [SUPCON])
    run = Stored(server.address, "served").trials[SUPCON["trial"]]

    from mlflow import pytorch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = pytorch.load_model(f"runs:/{run.info.run_id}/network")
    assert torch.allclose(loaded(PIXELS), scores(network), atol=1e-5)  # sums of float32 in another order


def test_server_away_delays_the_log_only(server: Server, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.5)
    warnings: list[str] = []
    training = SUPCON | {"status": "training", "metrics": {}}

    with Tracker(server.address, "outage", open_store(str(report), "outage"), warn=warnings.append) as log:
        log.trial(training | {"epochs": SUPCON["epochs"][:1]})
        wait(lambda: not log._trials)
        server.kill()
        log.trial(training)
        wait(lambda: warnings)
        log.trial(SUPCON)
        log.trial(CROSS_ENTROPY | {"status": "failed", "error": "The loss was not finite."})
        with pytest.raises(tracking.TrackingError, match="Connection refused"):
            tracking.log_sweep(server.address, "outage", [SUPCON], {})
        server.start()
        assert log.close(timeout=120)

    assert len(warnings) == 1
    stored = Stored(server.address, "outage")
    assert stored.points(SUPCON["trial"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert stored.trials[CROSS_ENTROPY["trial"]].info.status == "FAILED"
    assert stored.trials[SUPCON["trial"]].info.status == stored.parent.info.status == "RUNNING"
    before = stored.all_points()
    tracking.log_sweep(server.address, "outage", [SUPCON, CROSS_ENTROPY], TRAINED, str(report), SWEEP)
    stored = Stored(server.address, "outage")
    assert stored.trials[CROSS_ENTROPY["trial"]].info.status == stored.parent.info.status == "FINISHED"
    assert before.items() <= stored.all_points().items()


def test_the_end_does_not_wait_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.client_class()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        log = Tracker(address, "silent", open_store(str(tmp_path), "silent"), warn=lambda message: None)
        log.trial(SUPCON)
        assert not log.close(timeout=0.5)
        assert log._thread.is_alive()  # it still waits for an answer, and nobody for it
    log._thread.join(60)  # with its socket the server is gone, and with it the wait
    assert not log._thread.is_alive()
    assert not log.close(timeout=0)
