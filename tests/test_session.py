"""What a run tells MLflow at its end, and that its end comes whatever MLflow answers."""

import io
from pathlib import Path

import pytest
from conftest import DEMO
from report import known_sweep as known
from rich.console import Console
from tracking.logged import Stored

from scl_ray import config, results, session, tracking
from scl_ray.parts import Versioned
from scl_ray.plan import Plan
from scl_ray.store import open_store


def test_only_complete_trials_have_means_and_none_where_nothing_is_defined(tmp_path: Path) -> None:
    store = known.write(tmp_path, seeds=(0,))
    undefined, incomplete = (known.trial_id(label, "resnet8", 0) for label in ("cross_entropy", "supcon τ=0.07"))
    wanted = [Versioned(cell, "1") for cell in known.cells(("corrected",))]
    held = results.load(str(tmp_path), "demo")
    rows = [(row.image, row.method, row.metric, None if row.metric == "sparseness" else row.value)
            for row in held[held["trial"] == undefined].itertuples()]  # fmt: skip
    store.remove(f"scores/{undefined}")
    known.write_scores(store, undefined, 0, known.IMAGES - 1, wanted, rows)
    store.fs.rm_file(store.parts("scores", incomplete)[0].path)

    means = session._means(results.open_results(str(tmp_path), "demo"))
    assert set(means) == {known.trial_id(label, "resnet8", 0) for label in known.OBJECTIVES} - {incomplete}
    assert means[undefined]["sparseness/sparseness/grad_cam"] is None
    truth = known.TRUTH["complexity"][0]
    assert means[undefined]["complexity/complexity/grad_cam"] == pytest.approx(truth, abs=0.5)


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
