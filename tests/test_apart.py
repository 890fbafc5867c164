"""Work in a process of its own: what it gives, raises, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from scl_ray import apart
from scl_ray.storage import StorageError


def fails(error: Exception) -> None:
    raise error


def ends(code: int) -> None:
    os._exit(code)


def lasts(told: Path) -> None:
    told.with_suffix(".new").write_text(str(os.getpid()))
    told.with_suffix(".new").rename(told)
    time.sleep(300)


def test_it_gives_what_the_function_gives_in_another_process() -> None:
    assert apart.call(divmod, 7, 3) == (2, 1)
    assert apart.call(os.getppid) == os.getpid()


def test_it_raises_what_the_function_raises() -> None:
    with pytest.raises(StorageError, match="runs: No space left"):
        apart.call(fails, StorageError("runs: No space left"))


def test_a_process_that_ends_by_itself_is_lost() -> None:
    with pytest.raises(apart.Lost, match="its process ended with code 9"):
        apart.call(ends, 9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    told = tmp_path / "pid"
    code = "import sys, test_apart, pathlib\nfrom scl_ray import apart\n"
    code += "apart.call(test_apart.lasts, pathlib.Path(sys.argv[1]))\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(told)], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        apart_from_it = int(told.read_text())
        os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()
        _, said = parent.communicate(timeout=60)
        assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
        deadline = time.monotonic() + 60
        while processes.is_alive(apart_from_it):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
