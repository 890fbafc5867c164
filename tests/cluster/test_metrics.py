"""What Prometheus is told of a sweep: by the objects that Ray sends on."""

from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DEMO
from rich.console import Console

from scl_ray import config, datasets, plan
from scl_ray.cluster.metrics import METRICS, Measuring
from scl_ray.cluster.progress import Progress
from scl_ray.store import open_store


class Recorded:
    """One of Ray's metrics that keeps what it is given."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...], **_: Any) -> None:
        self.tag_keys, self.values = set(tag_keys), list[tuple[float, dict[str, str]]]()

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.default = tags

    def _record(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert {*self.default, *(tags or {})} == self.tag_keys
        self.values.append((value, tags or {}))

    def inc(self, value: float = 1.0) -> None:
        assert value > 0  # Ray refuses others
        self._record(value)

    set = observe = _record


def test_metrics_follow_what_coordinators_report(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, metric in METRICS.items():
        monkeypatch.setitem(METRICS, name, metric._replace(kind=Recorded))
    sweep = config.load(DEMO, ["grid.seed=0"])
    dataset = datasets.load(sweep.dataset)
    planned = plan.make(sweep, dataset, open_store(str(tmp_path), "demo"), 2)
    progress = Progress(planned, 2, Console(quiet=True))
    measuring = Measuring("demo", progress)
    first, second, *_ = planned.work
    shard = {"phase": "evaluating", "shard_images": 64, "first": 0, "last": 63, "slot_seconds": 3.0, "node": "n"}
    reports = [
        (first, {"phase": "training", "reached": {}}),
        (first, {"phase": "retry", "error": "lost"}),
        (first, {"phase": "training", "reached": {}}),
        (first, {"phase": "training", "reached": {"slot_seconds": 9.0, "bytes": 1000}}),
        (first, {"phase": "trained"}),
        (first, {**shard, "bytes": 500}),
        (second, {"phase": "failed", "error": "its loss"}),
    ]
    for trial, report in reports:
        progress.update(trial, report)
        measuring.on_trial_result(0, [], SimpleNamespace(config={"trial": trial}), report)
    measuring.on_trial_recover(0, [], SimpleNamespace(config={"trial": first}))
    measuring.on_experiment_end([])

    told = {name: recorded.values for name, recorded in measuring.metrics.items()}
    assert told["scl_ray_images_explained_total"] == [(64, {})]
    assert told["scl_ray_shard_seconds"] == [(3.0, {})]
    assert told["scl_ray_retries_total"] == [(1, {}), (1, {})]
    assert told["scl_ray_written_bytes_total"] == [(1000, {}), (500, {})]
    assert told["scl_ray_slots"] == [(2, {})]
    trials = {tags["state"]: value for value, tags in told["scl_ray_trials"]}
    assert trials == {"waiting": len(planned.work) - 2, "training": 0, "evaluating": 1, "done": 0, "failed": 1,
                      "stopped": 0}  # fmt: skip
    shards = {tags["state"]: value for value, tags in told["scl_ray_shards"]}
    assert shards["done"] == 1
    assert shards.keys() == {"waiting", "running", "done"}
    assert all(recorded.default == {"sweep": "demo"} for recorded in measuring.metrics.values())
