"""How each way to end becomes a sentence and an exit code."""

import errno
import os
import signal
import time
from types import ModuleType

import pytest
from rich.console import Console

from scl_ray import command, interruption
from scl_ray.config import InputError
from scl_ray.report import __main__ as reporting
from scl_ray.results import __main__ as reading
from scl_ray.storage import StorageError


def test_work_that_is_done_says_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def work(console: Console) -> int:
        console.print("a line that is longer than a terminal is wide " * 5)
        return 1

    assert command.run(work) == 1
    assert capsys.readouterr().out.count("\n") == 1  # a pipe gets whole lines


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("--out: is no folder"), 2, "refused: --OUT: IS NO FOLDER\n"),
        (StorageError("runs: No space left"), 1, "failed: runs: No space left; the same command continues\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/demo/.lock"),
            1,
            "failed: runs/demo/.lock: Permission denied; the same command continues\n",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "failed: Input/output error; the same command continues\n"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(console: Console) -> int:
        raise error

    assert command.run(work, str.upper) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("reads", "command_line"), [(reading, ["FROM trials"]), (reporting, ["--name", "demo"])], ids=["results", "report"]
)
def test_a_file_that_may_not_be_read_is_named_by_the_commands_that_read_alone(
    reads: ModuleType, command_line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/demo/scores")

    monkeypatch.setattr(reads, "open_results", denied)
    assert reads.main(command_line) == 1
    assert capsys.readouterr() == ("", "failed: runs/demo/scores: Permission denied\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_stopped_says_by_what(number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)

    def work(console: Console) -> int:
        os.kill(os.getpid(), number)
        time.sleep(60)
        return 0

    assert command.run(work) == code
    assert f"stopped by {number.name}" in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_somebody_who_asks_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    def work(console: Console) -> int:
        interruption.ask("cancelled by process 7 on node")
        time.sleep(60)
        return 0

    assert command.run(work) == 130
    assert "cancelled by process 7 on node" in capfd.readouterr().err
