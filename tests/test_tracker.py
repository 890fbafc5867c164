"""The tracker logs networks while the sweep runs, and on while nothing else waits."""

import time
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import made
from tracking.logged import CROSS_ENTROPY, SUPCON, TRIPLET, Stored, write_store

from scl_ray import tracker, tracking
from scl_ray.tracker import Tracker
from scl_ray.tracking import networks


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_networks_are_logged_and_let_everything_else_pass_in_time(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(tracker, "SHARE", 1.0)
    monkeypatch.setattr(tracker, "NETWORKS_SECONDS", seconds)
    events: list[str] = []
    warnings: list[str] = []
    log_sweep, log_network = tracking.log_sweep, networks._log

    def watched_sweep(uri: str, name: str, records: Any, *rest: Any, **options: Any) -> None:
        events.extend(record["trial"] for record in records)
        log_sweep(uri, name, records, *rest, **options)

    def watched_network(client: Any, run: Any, store: Any, trial: str) -> str:
        where = log_network(client, run, store, trial)
        events.append(f"network of {trial}")
        if len(events) == 3:
            log.trial(TRIPLET | {"status": "failed", "error": "The loss was not finite."})
        return where

    monkeypatch.setattr(tracker, "log_sweep", watched_sweep)
    monkeypatch.setattr(networks, "_log", watched_network)
    first, second, failed = (record["trial"] for record in (SUPCON, CROSS_ENTROPY, TRIPLET))
    uri, store = tracking.tracking_uri(str(tmp_path)), write_store(tmp_path, "live", {first: made(), second: made()})
    tracking.log_sweep(uri, "live", [], {})  # whose first use of MLflow takes seconds, after which the tracker pauses
    with Tracker(uri, "live", store, warn=warnings.append) as log:
        with log._lock:  # so that both are written together
            log._trials = {first: SUPCON, second: CROSS_ENTROPY}
        deadline = time.monotonic() + 300
        while log._networks or len(events) < 5:
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.05)
        assert log.close()
    assert not warnings
    later = [failed, f"network of {second}"] if seconds == 0 else [f"network of {second}", failed]
    assert events == [first, second, f"network of {first}", *later]
    stored = Stored(uri, "live")
    assert {trial for trial, run in stored.trials.items() if "network" in run.data.tags} == {first, second}
    assert tracking.log_networks(uri, "live", store, [SUPCON, CROSS_ENTROPY]) == set()
