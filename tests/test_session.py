"""What a run tells MLflow at its end, and that its end comes whatever MLflow answers."""

import io
from pathlib import Path

import pytest
from conftest import DEMO
from report import known_sweep as known
from rich.console import Console
from test_checkpoint import made
from tracking.logged import CROSS_ENTROPY, SUPCON, TRIPLET, Stored, write_store

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


def test_a_checkpoint_that_is_damaged_is_found_when_mlflow_lacks_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    records = {record["trial"]: record for record in (CROSS_ENTROPY, SUPCON, TRIPLET)}
    store = write_store(tmp_path, "demo", dict.fromkeys(records, made()))
    damaged = [CROSS_ENTROPY["trial"], TRIPLET["trial"]]
    for trial in damaged:  # to no other size
        path = Path(store.path("checkpoints", trial, "weights.safetensors"))
        weights = path.read_bytes()
        path.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    plan = Plan(config.load(DEMO), {}, {}, (), (), known.IMAGES, 64, {})
    uri, said = tracking.tracking_uri(str(tmp_path)), io.StringIO()
    assert session._log(plan, store, records, {}, str(tmp_path), uri, {}, Console(file=said, width=400))
    assert said.getvalue().splitlines() == [
        *(f"damaged: checkpoints/{trial}/checkpoint.json (the checksum of weights.safetensors differs); "
          "the trial is to be trained again" for trial in damaged),
        "MLflow lacks 2 networks; the same command logs more",
    ]  # fmt: skip
    assert store.trained(list(records)) == {SUPCON["trial"]}
    stored = Stored(uri, "demo")
    assert [trial for trial in records if "network" in stored.trials[trial].data.tags] == [SUPCON["trial"]]
