"""A worker's process that is killed takes with it what it had begun, and nothing else."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from clusters import cluster
from undisturbed import assert_same


def test_training_goes_on_from_its_last_epoch_and_a_shard_alone_is_done_again(
    gate, start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    gate.close("training", after=15)  # in the second epoch
    gate.close("shard")
    with cluster(num_cpus=2) as address:
        command = start("--address", address, "--out", tmp_path / "runs")
        (training,) = gate.wait("training")
        os.kill(training, signal.SIGKILL)
        gate.open("training")
        (shard, *_) = gate.wait("shard")
        os.kill(shard, signal.SIGKILL)
        gate.open("shard")
        done = command.wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
