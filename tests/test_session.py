"""What a run tells MLflow at its end, and that its end comes whatever MLflow answers."""

import io
from pathlib import Path

import pytest
from conftest import DEMO
from report import known_sweep as known
from rich.console import Console
from tracking.logged import Stored

from scl_ray import config, session, tracking
from scl_ray.plan import Plan
from scl_ray.store import open_store


def test_an_experiment_deleted_meanwhile_costs_the_log_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    known.write(tmp_path, seeds=(0,))
    uri = tracking.tracking_uri(str(tmp_path))
    tracking.log_sweep(uri, "demo", [], {})
    stored = Stored(uri, "demo")
    stored.client.delete_experiment(stored.parent.info.experiment_id)
    plan = Plan(config.load(DEMO), {}, {}, (), (), known.IMAGES, 64, {})
    said = io.StringIO()
    store = open_store(str(tmp_path), "demo")
    assert not session._log(plan, store, {}, {}, str(tmp_path), uri, {}, Console(file=said, width=400))
    assert "its experiment 'demo' was deleted; restore it there" in said.getvalue()
