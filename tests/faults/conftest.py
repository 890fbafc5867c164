"""What the fault runs share: one undisturbed sweep, the real command as a process, and a gate that halts its work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Outcome
from processes import is_alive

SWEEP = Path(__file__).with_name("faults.yaml")
STEPS = 10  # of an epoch, each of which calls the objective once
PATIENCE = 240.0  # seconds: how long a slow machine may take for what is certain to come


def wait_for(what: Callable[[], object], because: str) -> None:
    """Return when *what* is true; fail the test, saying *because*, when it does not become so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, because
        time.sleep(0.05)


class Command:
    """The real command as a process in a process group of its own, its output in files below *folder*."""

    def __init__(self, folder: Path, arguments: tuple[object, ...], environment: dict[str, str]) -> None:
        self.folder = folder
        full = [sys.executable, ROOT / "sweeps/full_grid.py", "--config", SWEEP, *arguments]
        with (folder / "out").open("w") as out, (folder / "error").open("w") as error:
            self.process = subprocess.Popen(
                list(map(str, full)), stdout=out, stderr=error, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def error(self) -> str:
        return (self.folder / "error").read_text()

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        """What it ended with."""
        return Outcome(self.process.wait(timeout), self.out, self.error)

    def kill(self) -> None:
        """Kill the command itself, and nothing that it started."""
        self.process.kill()
        self.process.wait()

    def kill_group(self) -> None:
        """Kill the command and what it started: an embedded Ray too."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts the sweep of faults.yaml with the given arguments; keyword arguments are environment variables."""
    started: list[Command] = []

    def command(*arguments: object, **environment: str) -> Command:
        started.append(Command(tmp_path_factory.mktemp("command"), arguments, environment))
        return started[-1]

    yield command
    for each in started:
        each.kill_group()


class Gate:
    """Halts the sweep's own objective (``training``) or metric (``shard``) in whatever process."""

    until = staticmethod(wait_for)  # for whatever else a test waits for

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close(self, kind: str, after: int = 0) -> None:
        """Every process halts at its next call once it has made *after* calls."""
        partial = self.folder / f"closing-{kind}"
        partial.write_text(str(after))
        partial.replace(self.folder / f"hold-{kind}")

    def open(self, kind: str) -> None:
        (self.folder / f"hold-{kind}").unlink()

    def halted(self, kind: str) -> list[int]:
        """The processes that are halted there now."""
        found = [int(path.name.rsplit("-", 1)[1]) for path in self.folder.glob(f"halted-{kind}-*")]
        return [pid for pid in found if is_alive(pid)]

    def wait(self, kind: str, processes: int = 1) -> list[int]:
        """Return when so many *processes* are halted there: which."""
        wait_for(lambda: len(self.halted(kind)) >= processes, f"nothing came to {kind}")
        return self.halted(kind)

    def calls(self, kind: str) -> list[int]:
        """Which process made each call so far, in order."""
        path = self.folder / f"calls-{kind}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """An open gate for every Ray that is started after it."""
    folder = tmp_path / "gate"
    folder.mkdir()
    monkeypatch.setenv("GATE", str(folder))
    yield Gate(folder)
    for kind in ("training", "shard"):
        (folder / f"hold-{kind}").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``--out`` folder of the sweep of faults.yaml when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(folder, ("--out", folder / "runs"), {})
    try:
        done = command.wait()
    finally:
        command.kill_group()
    assert done.code == 0, done.out + done.error
    return folder / "runs"
