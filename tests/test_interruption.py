"""Signals stop a process in time, whatever its main thread is doing."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from scl_ray import interruption

DEAF = """
import subprocess
subprocess.Popen(['sleep', '300'])
ready = ['ready']
while True:
    try:
        while ready:  # said where the interrupt is caught
            print(ready.pop(), flush=True)
        time.sleep(300)
    except KeyboardInterrupt:
        pass
"""
UNWINDING = """
try:
    print('ready', flush=True)
    time.sleep(120)
finally:
    print('unwinding', flush=True)
    time.sleep({seconds})
    print('unwound', flush=True)
"""


@pytest.fixture
def stoppable() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that handles signals around the given code, once that is running."""
    started = []

    def start(code: str, grace: float = 60.0) -> "subprocess.Popen[str]":
        lines = "\n        ".join(code.strip().splitlines())
        script = f"""
import time
from scl_ray import interruption
interruption.GRACE = {grace}
with interruption.handled() as interrupted:
    try:
        {lines}
    except KeyboardInterrupt:
        print(interrupted.why)
        code = interrupted.code
interruption.end(code)
"""
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_it_unwinds(stoppable: Callable[..., "subprocess.Popen[str]"], number: signal.Signals) -> None:
    process = stoppable(UNWINDING.format(seconds=0.0))
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out.split("\n")[:3] == ["unwinding", "unwound", f"stopped by {number.name}"]
    assert "the same command continues: " in error
    assert "Traceback" not in error


def test_twice_it_ends_at_once(stoppable: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = stoppable(UNWINDING.format(seconds=120))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "unwinding\n"
    while process.poll() is None:  # what comes within a tenth of a second of the first is not a second one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    assert process.returncode == 130
    assert "unwound" not in process.stdout.read()


def test_a_library_that_keeps_it_for_itself_is_not_waited_for(
    stoppable: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = stoppable(DEAF, grace=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    # What it had started ends too, which else holds the other end for as long as it likes.
    assert process.stdout.read() == ""
    assert process.wait(timeout=60) == 143


def test_what_is_ignored_from_outside_stays_so(stoppable: Callable[..., "subprocess.Popen[str]"]) -> None:
    """`nohup`, and a shell's job in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = stoppable(UNWINDING.format(seconds=0.0))
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_terminal_has_its_cursor_back_when_all_ends_at_once() -> None:
    ours, terminal = os.openpty()
    try:
        program = "from scl_ray import interruption; interruption.end_at_once(3)"
        assert subprocess.run([sys.executable, "-c", program], stdout=terminal, timeout=120).returncode == 3
        os.set_blocking(ours, False)
        assert os.read(ours, 100) == interruption.SHOW_CURSOR.encode()
    finally:
        os.close(ours)
        os.close(terminal)
