"""Two drivers of one sweep: one works, the other says who does; and a dead one's place is taken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import object_store
import pytest
from conftest import ROOT
from undisturbed import assert_same

SWEEP = Path(__file__).with_name("faults.yaml")
ELSEWHERE = "another-host"

# The real command on what takes itself for another host. Its files are the same, and so it is the lease that decides.
COMMAND = f'hostname {ELSEWHERE} && exec "$0" "$@"'


def _elsewhere(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ROOT / "sweeps/full_grid.py", "--config", SWEEP, *arguments]
    return subprocess.run(
        ["unshare", "--uts", "sh", "-c", COMMAND, *map(str, command)],
        capture_output=True, text=True, timeout=400, cwd=folder,
    )  # fmt: skip


def _can_be_elsewhere() -> bool:
    found = shutil.which("unshare")
    return (
        found is not None
        and not subprocess.run([found, "--uts", "sh", "-c", f"hostname {ELSEWHERE}"], capture_output=True).returncode
    )


@pytest.mark.skipif(not _can_be_elsewhere(), reason="needs the right to have another host name")
def test_on_a_shared_folder_one_works_and_the_other_says_who(
    gate: Any, start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    gate.close("training", after=15)
    first = start("--out", out, "--set=grid.objective=['gate:loss']")  # all of whose work then stands still
    gate.wait("training")
    holder = json.loads((out / "faults/.lock").read_text())
    assert holder["pid"] == first.process.pid
    before = _files(out)
    here = start("--out", out).wait()
    there = _elsewhere(tmp_path, "--out", out)
    for code, error in ((here.code, here.error), (there.returncode, there.stderr)):
        assert code == 2, error
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        assert error.strip() == f"refused: {out}/faults: is being written by {who}; wait for it, stop it, or choose " \
                                "another --name"  # fmt: skip
    assert first.is_running()
    assert _files(out) == before
    # Dead, it is taken over: by the other host when its lease is over.
    first.kill_group()
    gate.open("training")
    done = _elsewhere(tmp_path, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(out, undisturbed)


def test_in_an_object_store_a_holder_that_wakes_too_late_leaves(
    gate: Any, start: Callable, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with object_store.serving():
        out = object_store.new_bucket()
        gate.close("shard")
        first = start("--out", out)
        gate.wait("shard")
        refused = start("--out", out).wait()
        assert refused.code == 2, refused.error
        assert f"is being written by process {first.process.pid} on " in refused.error
        # Its workers go on for a while, and what they write is what the other's write.
        os.kill(first.process.pid, signal.SIGSTOP)
        gate.open("shard")
        done = start("--out", out).wait()
        assert done.code == 0, done.out + done.error
        assert first.is_running()
        os.kill(first.process.pid, signal.SIGCONT)
        left = first.wait(60)
        assert left.code == 2, left.error
        assert "has taken over this sweep" in left.error
        _assert_gone(first.process.pid)
        object_store.fetch(out, tmp_path / "copy")
    assert_same(tmp_path / "copy", undisturbed)


def _files(out: Path) -> set[Path]:
    return {path for path in (out / "faults").rglob("*") if "/.tune/" not in str(path)}


def _assert_gone(group: int) -> None:
    """All that a command has started ends with it, since it would write what is somebody else's by now."""
    deadline = time.monotonic() + 60
    while _alive(group):
        assert time.monotonic() < deadline, "what it had started goes on"
        time.sleep(0.1)


def _alive(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == group and state != "Z":
            return True
    return False
