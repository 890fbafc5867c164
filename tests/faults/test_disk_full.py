"""A disk that fills up while a sweep runs, on a small disk of its own."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.conftest import wait_for
from undisturbed import assert_same

from scl_ray.store import KINDS, open_store

MEBIBYTES = 24  # the sweep takes six, with its log and report


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk that is quickly full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", folder],
                             capture_output=True, text=True, check=False)  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"a small disk of its own needs the right to mount one ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is. Returns what to remove to have it again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return filler


def test_a_full_disk_costs_time_and_what_it_fails_is_made_later(
    disk: Path, undisturbed: Path, gate: object, start: Callable[..., object]
) -> None:
    gate.close("training", after=12)
    gate.close("shard")
    command = start("--out", disk, "--set=grid.objective=['gate:loss']", "--set=evaluation.images=64")
    # While it trains: room is made again, and it goes on.
    gate.wait("training")
    filler = fill(disk)
    gate.open("training")
    wait_for(lambda: "resume.pt: No space left on device" in command.out, "nothing was said of the full disk")
    filler.unlink()
    # While parts are written: nobody makes room, and it ends.
    gate.wait("shard")
    filler = fill(disk)
    gate.open("shard")
    done = command.wait()
    assert done.code == 1, done.out + done.error
    assert "Traceback" not in done.out + done.error
    (failed,) = [line for line in done.out.splitlines() if line.startswith("failed") and "gate:loss" in line]
    assert "images 0-63: lost 3 times" in failed
    assert f"{disk}/faults/" in failed
    assert "No space left on device" in failed
    assert "failed  the report: " in done.out
    # What is there is whole.
    store = open_store(str(disk), "faults")
    (trial,) = os.listdir(disk / "faults/trials")
    assert store.is_trained(trial.removesuffix(".json"))
    assert not any(store.problem(part.path) for kind in KINDS for part in store.parts(kind, trial[:-5]))
    assert not list(disk.rglob(".*.partial"))

    filler.unlink()
    done = start("--out", disk).wait()
    assert done.code == 0, done.out + done.error
    assert_same(disk, undisturbed)
