"""What stops hopeless trials knows of those that an earlier run has begun or ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import TINY
from conftest import DEMO

from scl_ray import config, datasets, plan
from scl_ray.cluster import driver
from scl_ray.config import EarlyStopping
from scl_ray.store import open_store

EPOCHS = 10


def measured(epoch: int, accuracy: float) -> dict[str, Any]:
    return {"epoch": epoch, EarlyStopping.MEASURE: accuracy}


@pytest.mark.parametrize("is_told", [False, True])
def test_a_trial_that_goes_on_is_compared_by_what_it_measured_at_the_time(tmp_path: Path, is_told: bool) -> None:
    """An earlier run left one trial stopped after its first epoch, another in its third; a third one is new."""
    rules = "early_stopping={grace_period: 0.1, reduction_factor: 3}"
    sweep = config.load(DEMO, [*TINY, f"training.epochs={EPOCHS}", "grid.seed=[0, 1, 2]", rules])
    store, dataset = open_store(str(tmp_path), "demo"), datasets.load(sweep.dataset)
    stopped, *_ = plan.make(sweep, dataset, store, 2).trials
    assert sweep.early_stopping is not None
    store.write_record(stopped, {
        "status": "stopped", "early_stopping": sweep.early_stopping.model_dump(mode="json"),
        "epochs": [measured(1, 0.08)],
    })  # fmt: skip
    planned = plan.make(sweep, dataset, store, 2)
    assert stopped not in planned.work
    scheduler: Any = driver._scheduler(sweep.early_stopping, planned, store)
    resumed, new = (SimpleNamespace(trial_id=trial) for trial in planned.work)

    def decision(trial: SimpleNamespace, epoch: int, accuracy: float) -> str:
        result = {"trained": EarlyStopping.share(epoch, EPOCHS), EarlyStopping.MEASURE: accuracy}
        return str(scheduler.on_trial_result(None, trial, result))

    for trial in (resumed, new):
        scheduler.on_trial_add(None, trial)
    if is_told:
        driver._tell(scheduler, resumed, [measured(epoch, epoch / EPOCHS) for epoch in range(1, 4)], EPOCHS)
    assert decision(resumed, 4, 0.5) == "CONTINUE"
    assert decision(new, 1, 0.15) == "CONTINUE"  # better than the stopped one's 0.08 and the resumed one's 0.1
    # Better than the other was after three epochs, where 0.1 times 3 is reached; worse than it was after four.
    assert decision(new, 3, 0.45) == ("CONTINUE" if is_told else "STOP")
