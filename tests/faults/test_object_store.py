"""``--out s3://…`` on a server that fails now and then, in the driver and in the workers; and on one that is gone."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import object_store
import pytest
from conftest import ROOT, Outcome
from object_store import FAULTS, Unsteady
from undisturbed import assert_same

from scl_ray import lock, report, results
from scl_ray.store import open_store

SWEEP = Path(__file__).with_name("faults.yaml")
OPERATIONS = {"GET", "PUT", "LIST", "HEAD", "DELETE"}

# The real command, less patient.
IMPATIENT = """
import runpy, sys
from scl_ray import storage
storage.PATIENCE = 10.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unsteady]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with object_store.serving() as unsteady:
        yield unsteady


def test_a_sweep_outlasts_a_storage_that_fails_now_and_then(
    server: Unsteady, gate: Any, start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    out = object_store.new_bucket()
    gate.close("shard")
    server.start_failing(0.1)
    command = start("--out", out)
    gate.wait("shard")
    # And is away for a while in the middle of it: longer than its client tries by itself.
    server.refused = 0
    server.away.set()
    gate.open("shard")
    deadline = time.monotonic() + 180
    while "trying again in" not in command.error:
        assert command.is_running(), command.error
        assert time.monotonic() < deadline, "nothing was tried again"
        time.sleep(0.1)
    server.away.clear()
    done = command.wait()
    assert done.code == 0, done.out + done.error
    assert "Traceback" not in done.out + done.error
    assert server.refused
    assert {operation for operation, _ in server.failed} >= OPERATIONS
    assert {fault for _, fault in server.failed} == set(FAULTS)

    again = start("--out", out).wait()
    assert again.code == 0, again.out + again.error
    assert "trials to run" not in again.out
    dry = start("--out", out, "--dry-run").wait()
    assert dry.code == 0, dry.error
    assert "done already: 2 of 2 trials trained, 2,304 of 2,304 scores" in dry.out
    means = results.trial_means(out, "faults")
    assert means["images"].sum() == results.trial_means(str(undisturbed), "faults")["images"].sum()
    report.build(out, "faults")
    assert lock.holder(open_store(out, "faults")) is None

    object_store.fetch(out, tmp_path / "copy")
    assert_same(tmp_path / "copy", undisturbed)
    # What Ray kept there for itself is gone with the sweep's end.
    assert not list((tmp_path / "copy/faults").glob(".*"))


def test_a_sweep_whose_storage_is_gone_ends_and_continues_when_it_is_back(
    server: Unsteady, gate: Any, start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    out = object_store.new_bucket()
    gate.close("training", after=15)
    first = _impatient(tmp_path, out)
    try:
        gate.wait("training")
        server.away.set()
        code = first.wait(180)
    finally:
        first.kill()
        first.wait()
    error = (tmp_path / "error").read_text()
    assert code == 1, error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert last.endswith("the same command continues")

    refused = start("--out", out).wait()
    assert refused.code == 2, refused.error
    assert len([line for line in refused.error.splitlines() if "storage: " not in line]) == 1, refused.error
    assert f"--out {out}: cannot be written" in refused.error

    server.away.clear()
    gate.open("training")
    done: Outcome = start("--out", out).wait()
    assert done.code == 0, done.out + done.error
    object_store.fetch(out, tmp_path / "copy")
    assert_same(tmp_path / "copy", undisturbed)


def _impatient(folder: Path, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", IMPATIENT, ROOT / "sweeps/full_grid.py", "--config", SWEEP, "--out", out]
    with (folder / "out").open("w") as standard, (folder / "error").open("w") as error:
        return subprocess.Popen(list(map(str, command)), stdout=standard, stderr=error)
