"""Ctrl-C, SIGTERM and --cancel: the sweep stops within ten seconds, leaves nothing running and nothing half done."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters import cluster
from conftest import Outcome
from faults.conftest import STEPS, Command, Gate, wait_for
from processes import is_alive, of_session
from undisturbed import assert_same

WITHIN = 10.0  # seconds from one Ctrl-C to the end


def stop(command: Command, number: int, whole_group: bool = False) -> Outcome:
    """Send the signal once, as a terminal does or as a supervisor does; the command must end in time."""
    (os.killpg if whole_group else os.kill)(command.process.pid, number)
    started = time.monotonic()
    outcome = command.wait()
    assert time.monotonic() - started < WITHIN, outcome.error
    return outcome


def assert_stopped(command: Command, outcome: Outcome, code: int) -> None:
    """It ended as it should, says how to go on, and nothing that it started is left."""
    assert outcome.code == code, outcome.out + outcome.error
    assert "Traceback" not in outcome.out + outcome.error
    (line,) = [line for line in outcome.error.splitlines() if "the same command continues: " in line]
    assert line.endswith(" ".join(map(str, command.process.args)))
    wait_for(lambda: not of_session(command.process.pid), "processes were left")


def test_ctrl_c_on_an_embedded_ray(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    """At its start, in training, in evaluation, while MLflow hangs; in evaluation twice."""
    out = ("--out", tmp_path / "runs")
    starting = start(*out)
    wait_for((tmp_path / "runs/faults/.lock").exists, "it did not start")
    assert_stopped(starting, stop(starting, signal.SIGINT, whole_group=True), 130)

    gate.close("training", after=15)  # in the second epoch
    training = start(*out)
    gate.wait("training")
    assert_stopped(training, stop(training, signal.SIGINT, whole_group=True), 130)
    gate.open("training")

    gate.close("shard", after=3)  # in each worker's second shard
    evaluating = start(*out)
    gate.wait("shard")
    os.killpg(evaluating.process.pid, signal.SIGINT)
    time.sleep(0.5)  # as fast as nobody's fingers are by accident
    os.killpg(evaluating.process.pid, signal.SIGINT)
    assert_stopped(evaluating, evaluating.wait(), 130)
    gate.open("shard")

    with hanging_server() as uri:
        logging = start(*out, MLFLOW_TRACKING_URI=uri)
        wait_for(lambda: len(list(tmp_path.rglob("scores/*/*.parquet"))) == 6, "it was not evaluated")
        assert_stopped(logging, stop(logging, signal.SIGTERM), 143)
    done = start(*out).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    # The second epoch was begun twice, and no other.
    assert len(gate.calls("training")) == 16 + 3 * STEPS


def test_sigterm_and_cancel_on_a_cluster(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    """The driver alone is told to stop; what it began on the cluster ends with it."""
    out = ("--out", tmp_path / "runs")
    gate.close("training", after=15)
    gate.close("shard", after=3)
    with cluster(num_cpus=2) as address:
        training = start("--address", address, *out)
        halted = gate.wait("training")
        assert_stopped(training, stop(training, signal.SIGTERM), 143)
        wait_for(lambda: not any(map(is_alive, halted)), "training went on without its driver")
        gate.open("training")

        evaluating = start("--address", address, *out)
        halted = gate.wait("shard")
        cancelled = start("--cancel", *out).wait()
        assert cancelled.code == 0, cancelled.error
        assert f"stopped process {evaluating.process.pid} on {socket.gethostname()}" in cancelled.out
        outcome = evaluating.wait()
        assert_stopped(evaluating, outcome, 130)
        assert "cancelled by process" in outcome.error
        wait_for(lambda: not any(map(is_alive, halted)), "shards went on without their driver")
        gate.open("shard")

        done = start("--address", address, *out).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    nobody = start("--cancel", *out).wait()
    assert nobody.code == 0
    assert "nobody runs this sweep" in nobody.out


@contextmanager
def hanging_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
