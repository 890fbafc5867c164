"""The driver is killed, or its cluster's head is: the same command goes on where the work was."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from clusters import cluster
from faults.conftest import STEPS, Command, Gate, wait_for
from processes import is_alive, of_session
from ray.cluster_utils import Cluster
from undisturbed import assert_same


def finished(root: Path) -> dict[str, tuple[int, int]]:
    """The parts and checkpoints that are there, and when and where each was written."""
    files = [path for kind in ("scores", "predictions", "checkpoints") for path in root.rglob(f"{kind}/*/[!.]*")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files if path.name != "resume.pt"}


def test_an_embedded_ray_dies_with_its_driver(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    """Killed in training, in evaluation and in the report."""
    out, root = ("--out", tmp_path / "runs"), tmp_path / "runs/faults"
    gate.close("training", after=15)  # in the second epoch
    gate.close("shard", after=3)  # in each worker's second shard
    first = start(*out)
    halted = gate.wait("training")
    first.kill()
    wait_for(lambda: not any(map(is_alive, halted)), "training went on without its driver")
    gate.open("training")

    second = start(*out)
    halted = gate.wait("shard")
    # While one trial's shards halt, the other still trains; the kill is not to interrupt that a second time.
    wait_for(lambda: "trained    gate:loss" in second.out, "it was not trained to its end")
    second.kill()
    wait_for(lambda: not any(map(is_alive, halted)), "shards went on without their driver")
    gate.open("shard")
    held = finished(root)
    assert any("/scores/" in path for path in held)

    third = start(*out)
    wait_for(lambda: "trials  " in third.out, "it was not evaluated")
    third.kill()
    assert held.items() <= finished(root).items()
    held = finished(root)

    done = start(*out).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    assert finished(root) == held
    assert (root / "report/index.html").read_text().rstrip().endswith("</html>")
    # The second epoch was begun twice, and no other.
    assert len(gate.calls("training")) == 16 + 3 * STEPS


def test_a_driver_killed_on_a_cluster_leaves_nothing_that_writes(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    out, root = ("--out", tmp_path / "runs"), tmp_path / "runs/faults"
    gate.close("training", after=15)
    gate.close("shard", after=3)
    with cluster(num_cpus=2) as address:
        for kind in ("training", "shard"):
            killed = start("--address", address, *out)
            halted = gate.wait(kind)
            killed.kill()
            wait_for(lambda pids=halted: not any(map(is_alive, pids)), f"{kind} went on without its driver")
            gate.open(kind)
        held = finished(root)
        assert any("/scores/" in path for path in held)
        done = start("--address", address, *out).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    assert held.items() <= finished(root).items()


def test_a_lost_head_is_said_and_another_cluster_goes_on(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    """The head is gone in training; another one is started again in evaluation; a third one lives."""
    out = ("--out", tmp_path / "runs")
    gate.close("training", after=15)
    gate.close("shard", after=3)
    for kind, said in (("training", "has not answered for 30 s"), ("shard", "was started again")):
        mortal = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 2})
        try:
            command = start("--address", mortal.address, *out)
            gate.wait(kind)
            mortal.head_node.kill_gcs_server()
            if kind == "training":
                mortal.head_node.kill_raylet()
            else:
                mortal.head_node.start_gcs_server()
            outcome = command.wait()
        finally:
            gate.open(kind)
            mortal.shutdown()
        assert outcome.code == 1, outcome.error
        assert said in outcome.error
        assert "the same command continues: " in outcome.error
        assert "Traceback" not in outcome.error
    with cluster(num_cpus=2) as address:
        done = start("--address", address, *out).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)


def test_a_lost_coordinator_is_said_and_its_trial_goes_on(
    gate: Gate, start: Callable[..., Command], undisturbed: Path, tmp_path: Path
) -> None:
    gate.close("training", after=15)
    command = start("--out", tmp_path / "runs")
    (training,) = gate.wait("training")
    for process, name in of_session(command.process.pid).items():
        if name.startswith("ray::ImplicitFu"):  # what Tune calls a trainable that is a function
            os.kill(process, signal.SIGKILL)
    wait_for(lambda: not is_alive(training), "training went on without its coordinator")
    gate.open("training")
    done = command.wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    live, _, summary = done.out.partition("trials  ")
    lost = live.count("its coordinator was lost")
    assert lost in (1, 2)
    assert f"{lost} {'retry' if lost == 1 else 'retries'}: " in summary
    assert summary.count("its coordinator was lost") == lost
