"""A worker's process that is killed takes with it what it had begun, and nothing else."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clusters import cluster
from faults.conftest import STEPS
from undisturbed import assert_same

SHARDS, METHODS = 6, 2


def test_training_goes_on_from_its_last_epoch_and_a_shard_alone_is_done_again(
    gate, start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    gate.close("training", after=15)  # in the second epoch
    gate.close("shard")
    with cluster(num_cpus=2) as address:
        # With memory enough for a whole shard at once, whatever else the machine does.
        enough = "--set=resources.evaluate.memory=1"
        command = start("--address", address, enough, "--out", tmp_path / "runs")
        (training,) = gate.wait("training")
        os.kill(training, signal.SIGKILL)
        gate.open("training")
        (shard, *_) = gate.wait("shard")
        os.kill(shard, signal.SIGKILL)
        gate.open("shard")
        done = command.wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    assert "training: its process was killed or crashed (attempt 2 of 3)" in done.out
    # The second epoch was begun twice, the first one trained once.
    assert list(Counter(gate.calls("training")).values()) == [16, 3 * STEPS]
    # The shard whose process was killed at its first call was done again, in batches of a quarter, and nothing else.
    assert gate.calls("shard").count(shard) == 1
    assert len(gate.calls("shard")) == 1 + METHODS * (4 + SHARDS - 1)
