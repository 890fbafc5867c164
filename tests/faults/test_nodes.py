"""Nodes that come and go while a sweep runs."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import STEPS
from processes import is_alive
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from undisturbed import assert_same

HOUR = 3600
CALLS = 2  # of the metric in a shard: for each of two methods
ENOUGH = "--set=resources.evaluate.memory=1"  # GiB, for a whole shard at once, whatever else the machine does
NO_ROOM = 10**8  # bytes that are too few for a coordinator


@pytest.fixture
def nodes(gate) -> Iterator[Cluster]:
    """A head on which nothing runs but the driver and what belongs to it."""
    head = {"num_cpus": 0, "memory": NO_ROOM, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield started
    finally:
        started.shutdown()


def on(node: Any, processes: list[int]) -> list[int]:
    """Those of the *processes*, workers of Ray, that are the *node*'s: children of its raylet."""
    (raylet,) = node.all_processes["raylet"]
    return [pid for pid in processes if f"\nPPid:\t{raylet.process.pid}\n" in Path(f"/proc/{pid}/status").read_text()]


def test_a_node_that_joins_is_used_and_one_that_dies_is_made_up_for(
    gate, start: Callable, nodes: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    gate.close("training", after=15)  # in the second epoch
    gate.close("shard")
    dying = nodes.add_node(num_cpus=2)
    command = start("--address", nodes.address, ENOUGH, "--out", tmp_path / "runs")
    (training,), (shard,) = gate.wait("training"), gate.wait("shard")
    assert on(dying, [training, shard]) == [training, shard]
    joining = nodes.add_node(num_cpus=1)
    # Both of the first slots are taken, so it is the new one that takes up a shard.
    gate.until(lambda: on(joining, gate.halted("shard")), "the new node was not used")
    nodes.remove_node(dying, allow_graceful=False)
    gate.until(lambda: not any(map(is_alive, [training, shard])), "its workers went on")
    gate.open("training")
    gate.open("shard")
    done = command.wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    assert "slots      3, 2 before" in done.out
    assert "slots      1, 3 before" in done.out
    assert "its coordinator was lost" in done.out
    # Training went on from its first epoch.
    assert list(Counter(gate.calls("training")).values()) == [16, 3 * STEPS]


def test_a_node_with_notice_gets_nothing_new_and_what_it_ends_in_time_counts(
    gate, start: Callable, nodes: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    gate.close("shard")
    _, leaving = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    command = start("--address", nodes.address, ENOUGH, "--out", tmp_path / "runs")
    (last,) = on(leaving, gate.wait("shard", processes=2))
    is_preempted = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + HOUR) * 1000)
    is_accepted, reason = GcsClient(address=nodes.address).drain_node(leaving.node_id, is_preempted, "spot", deadline)
    assert is_accepted, reason
    gate.until(lambda: "slots      1, 2 before" in command.out, "nobody heard of the notice")
    gate.close("shard", after=CALLS)  # lets both end the shard that they have
    gate.until(lambda: len(gate.calls("shard")) >= 2 * CALLS + 1, "the other node got nothing more")
    gate.until(lambda: gate.calls("shard").count(last) == CALLS, "the shard was not ended")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("faults/scores/*/*.parquet")}
    nodes.remove_node(leaving, allow_graceful=False)
    gate.open("shard")
    done = command.wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", undisturbed)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert gate.calls("shard").count(last) == CALLS
