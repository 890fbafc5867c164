"""The hand-off on real local clusters: it never deadlocks, and evaluation overlaps training."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from clusters import cluster, run

from scl_ray import cost
from scl_ray.cluster import capacity, connection
from scl_ray.config import InputError, Resources, Slot, Trial
from scl_ray.hand_off import Cost
from scl_ray.plan import Plan


def test_one_slot_finishes_and_overlaps(tmp_path: Path) -> None:
    """With two slots it does so in the sweep that tests/sweeps shares."""
    with cluster(num_cpus=1) as address:
        code, root = run(tmp_path, address, "grid.seed=[0, 1, 2, 3]")
    assert code == 0
    scored = [path.stat().st_mtime for path in (root / "scores").rglob("*.parquet")]
    trained = [path.stat().st_mtime for path in (root / "trials").iterdir()]
    assert len(scored) == len(trained) == 4
    # Early trials are evaluated before late ones are trained.
    assert min(scored) < max(trained)


def test_tune_starts_what_is_chosen_by_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of one epoch are said to take a thousand times as long as those of eight."""
    started = []

    def estimates(found: Plan[Trial], _: int) -> dict[str, Cost]:
        epochs = {trial_id: trial.training.epochs for trial_id, trial in found.trials.items()}
        return {trial_id: Cost(1.0 if count == 8 else 1000.0, 0.0, count) for trial_id, count in epochs.items()}

    def on_trial_start(following: Any, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        started.append(trial.config["trial"])
        begin(following, iteration, trials, trial)

    begin = capacity.Following.on_trial_start
    monkeypatch.setattr(cost, "of_trials", estimates)
    monkeypatch.setattr(capacity.Following, "on_trial_start", on_trial_start)
    both = "grid.objective=[cross_entropy, {name: cross_entropy, label_smoothing: 0.1, training: {epochs: 8}}]"
    with cluster(num_cpus=1) as address:
        code, root = run(tmp_path, address, both, "grid.seed=[0, 1, 2]")
    assert code == 0
    assert len({*started}) == len(started) == len(list((root / "trials").iterdir())) == 6
    epochs = [len(json.loads((root / "trials" / f"{trial}.json").read_text())["epochs"]) for trial in started]
    assert {*epochs[:2]} == {1, 8}  # two start at once, one of each group, and may be there in either order
    assert epochs[2:] == [8, 8, 1, 1]


def test_placement_on_virtual_gpus(tmp_path: Path) -> None:
    with cluster(num_cpus=4, num_gpus=2) as address:
        with connection.connected(address):
            assert connection.slots(Slot(cpus=1, gpus=1)) == 2
            assert connection.slots(Slot(cpus=1, gpus=0.5)) == 4
            assert connection.slots(Slot(cpus=4, gpus=0.25)) == 1
            assert connection.check_resources(Resources()) == 2
            with pytest.raises(InputError, match="no node of the cluster has 1 CPUs and 3 GPUs"):
                connection.check_resources(Resources(train=Slot(gpus=3)))

            @ray.remote
            class Gathering:
                """Lets the tasks go when all of them are there, so they run at the same time."""

                def __init__(self) -> None:
                    self.there = 0

                def arrive(self) -> int:
                    self.there += 1
                    return self.there

                def count(self) -> int:
                    return self.there

            @ray.remote
            def device(gathering: ray.actor.ActorHandle) -> str:
                ray.get(gathering.arrive.remote())
                while ray.get(gathering.count.remote()) < 4:
                    pass
                return os.environ["CUDA_VISIBLE_DEVICES"]

            gathering = Gathering.options(num_cpus=0).remote()
            options = connection.task_options(Slot(cpus=1, gpus=0.5))
            devices = ray.get([device.options(**options).remote(gathering) for _ in range(4)], timeout=60)
            assert Counter(devices) == {"0": 2, "1": 2}
        code, root = run(tmp_path, address, "grid.seed=0")
        assert code == 0
        assert len(list((root / "trials").iterdir())) == 1
