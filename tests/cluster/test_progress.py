"""What the live view says of slots' time."""

import io
from pathlib import Path

from clusters import TINY
from conftest import DEMO
from rich.console import Console

from scl_ray import config, datasets, plan
from scl_ray.cluster.progress import Progress
from scl_ray.store import open_store


def test_a_groups_time_counts_for_every_slot_it_has(tmp_path: Path) -> None:
    sweep = config.load(DEMO, [*TINY, "training.workers=2", "training.epochs=2", "grid.seed=[0, 1, 2]"])
    planned = plan.make(sweep, datasets.load(sweep.dataset), open_store(str(tmp_path), "demo"), 4)
    first, second, third = planned.work
    console = Console(file=io.StringIO(), width=200)
    with Progress(planned, 4, console) as progress:

        def training(trial: str, **reached: object) -> None:
            progress.update(trial, {"phase": "training", "reached": reached})

        epoch = {"loss": 1.0, "seconds": 3.0}
        training(first)
        training(first, epoch=1, **epoch)  # then it is lost, and goes on with what it has
        training(first)
        training(first, earlier=[epoch])
        training(first, epoch=2, **epoch)
        training(first, slot_seconds=8.0)  # with what it took to start and to finish
        progress.update(first, {"phase": "trained"})
        training(second)
        training(second, epoch=1, **epoch)
        # One epoch of the second is left and two of the third, of three seconds of two slots each; evaluating is
        # taken to cost as much until it is known.
        assert progress.seconds_left() == 2 * 3 * 6 / 4
        progress.update(second, {"phase": "stopped", "reason": "hopeless"})
        assert progress.seconds_left() == 2 * 2 * 6 / 4
    progress.seconds = 10.0
    assert "on 4 slots: 50% training, 0% evaluating, 50% idle" in progress.usage()  # (6 + 8 + 6) of 40
    assert third in progress.phase
    assert "stopped    cross_entropy · resnet8 · seed 1: hopeless" in console.file.getvalue()


def test_the_live_view_fits_a_terminal_however_many_trials_run(tmp_path: Path) -> None:
    sweep = config.load(DEMO, [*TINY, "grid.seed=" + str(list(range(40)))])
    planned = plan.make(sweep, datasets.load(sweep.dataset), open_store(str(tmp_path), "demo"), 40)
    console = Console(file=io.StringIO(), width=100, height=20)
    progress = Progress(planned, 40, console)
    for trial in planned.work:
        progress.update(trial, {"phase": "training", "reached": {}})
    lines = console.render_lines(progress._view())
    text = ["".join(segment.text for segment in line) for line in lines]
    assert len(text) < 20
    assert sum("epoch 0/1" in line for line in text) == 15
    assert "and 25 more" in text[-2]
    assert "so far" in text[-1]
