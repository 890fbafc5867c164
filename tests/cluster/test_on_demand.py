"""A cluster that begins with no slot is asked for some, and the command begins when they are there."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from scl_ray.cluster import connection

WITHIN = 180.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster whose head has no CPU, to which this process is connected."""
    started = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 0})
    try:
        with connection.connected(started.address):
            yield started
    finally:
        started.shutdown()


def _started(nodes: Cluster, log: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-u", str(ROOT / "sweeps/on_demand.py"), "--address", nodes.address, *arguments]
    with log.open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def _asked() -> Any:
    """What the autoscaler is asked for."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "null")


def _until_said(words: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + WITHIN
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_none_within_the_time_is_a_refusal(nodes: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _started(nodes, log, "--slots", "1", "--gpus", "1", "--within", "0", "--", "echo", "begun")
    assert process.wait(WITHIN) == 2
    assert "refused: no node with 1 CPU and 1 GPU has joined the cluster within 0 s" in log.read_text()
    assert "begun" not in log.read_text()
    assert _asked() == []


def test_what_is_told_to_end_takes_back_what_it_asked_for(nodes: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _started(nodes, log, "--slots", "1", "--gpus", "1", "--", "echo", "begun")
    try:
        _until_said("0 of 1 slots", log, process)
        assert _asked() == [{"CPU": 1, "GPU": 1.0}]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert _asked() == []


def test_the_command_begins_with_the_slots_that_have_come(nodes: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _started(nodes, log, "--slots", "3", "--", "sh", "-c", "echo begun; exit 7")
    try:
        _until_said("0 of 3 slots", log, process)
        assert _asked() == [{"CPU": 1}] * 3
        nodes.add_node(num_cpus=1)
        _until_said("1 of 3 slots", log, process)
        assert "begun" not in log.read_text()
        nodes.add_node(num_cpus=2)
        assert process.wait(WITHIN) == 7
    finally:
        process.kill()
        process.wait()
    assert log.read_text().splitlines()[-2:] == ["3 of 3 slots are there; beginning", "begun"]
    assert _asked() == []
    # Others than the first are not waited for longer than one has patience.
    log = tmp_path / "impatient"
    process = _started(nodes, log, "--slots", "9", "--patience", "0", "--", "echo", "begun")
    assert process.wait(WITHIN) == 0
    assert log.read_text().splitlines()[-2:] == ["3 of 9 slots are there; beginning", "begun"]
