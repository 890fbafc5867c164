"""Being stopped: by Ctrl-C, SIGTERM (Kubernetes, `ray job stop`), a closed terminal or somebody's ``--cancel``.

The first time, the work unwinds by a KeyboardInterrupt, for at most `GRACE` seconds; the second time the process ends
at once. Nothing is lost either way: what is finished is what is on disk. An embedded Ray goes with this process: the
kernel kills its head and its raylet then, and workers end with their raylet.
"""

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

GRACE = 8.0  # seconds; nobody waits longer than ten for a sweep that is told to stop
TWICE_FROM = 0.1  # seconds; `timeout` signals the process and then its whole group, which is not twice
SHOW_CURSOR = "\x1b[?25h"  # which a live view hides while it lasts
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """What has stopped this process: *why*, and the exit *code* that says so."""

    def __init__(self) -> None:
        self.why, self.code = "", 128 + signal.SIGINT

    def came(self, number: int) -> None:
        """The signal *number* has come, as somebody asked or by itself."""
        if not self.why:
            self.why, self.code = f"stopped by {signal.Signals(number).name}", 128 + number


_current = Interruption()


def why() -> str:
    """What has stopped this process: nothing yet, a signal, or somebody who asked."""
    return _current.why


@contextlib.contextmanager
def handled() -> Iterator[Interruption]:
    """Be stopped by signals for the time of the block. To be used in the main thread, around all that a command does.

    Whoever catches the KeyboardInterrupt finds in what is given why it came.
    """
    global _current
    _current = Interruption()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    # Handlers run in the main thread alone, when a library's call there is over. A thread hears at once.
    threading.Thread(target=_watch, args=(ours, _current), name="signals", daemon=True).start()
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:  # `nohup`, or a shell's job in the background
            signal.signal(number, _interrupt)
    try:
        yield _current
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        told.close()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Signals mean after the block what they meant before it, although Ray sets a handler of its own there."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit as stop:  # what Ray's handler raises
        if stop.code != signal.SIGTERM:
            raise
        _interrupt(signal.SIGTERM, None)
    finally:
        for number in SIGNALS:
            if signal.getsignal(number) is not _ignore:
                signal.signal(number, before[number])


def ask(why: str) -> None:
    """Stop this process as Ctrl-C does, from any of its threads, saying *why*."""
    _current.why, _current.code = why, 128 + signal.SIGINT
    os.kill(os.getpid(), signal.SIGTERM)


def end(code: int) -> NoReturn:
    """End the process. One that was stopped does not wait for libraries' threads, which may wait for a server."""
    if code > 128:
        end_at_once(code)
    sys.exit(code)


def end_at_once(code: int, started: Iterable[int] = ()) -> NoReturn:
    """End the process, from any of its threads, and at its side those of its group that it has *started*, now or
    before: an embedded Ray's workers, being busy, would take seconds to find out."""
    for process in {*started, *_descendants()}:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process) == os.getpgrp():
                os.kill(process, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its terminal is closed
            stream.flush()
    with contextlib.suppress(OSError):
        if sys.__stdout__ is not None and sys.__stdout__.isatty():
            print(SHOW_CURSOR, end="", file=sys.__stdout__, flush=True)
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # What comes later is for the watching thread: it must not fall into what the first one unwinds.
    for each in SIGNALS:
        signal.signal(each, _ignore)
    _current.came(number)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Takes a signal, unlike SIG_IGN, of which the watching thread would not hear."""


def _watch(ours: socket.socket, interruption: Interruption) -> None:
    """End the process when it is stopped for the second time, or when the first time's grace is over."""
    first, started = None, set[int]()
    with ours:
        while True:
            try:
                number = ours.recv(1)
            except TimeoutError:
                break
            if not number:  # the block is over
                return
            if number[0] not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                interruption.came(number[0])
                # Said now: where SIGTERM comes to an embedded Ray too, Ray may end this process before all is unwound.
                _say("stopping, at once if told so again; what is finished is kept, and the same command continues: "
                     f"{shlex.join(sys.orig_argv)}")  # fmt: skip
                started = _descendants()  # those whose parent ends meanwhile are not to be found later
            elif time.monotonic() - first > TWICE_FROM:
                break
            ours.settimeout(max(0.01, first + GRACE - time.monotonic()))
    _say(interruption.why)
    end_at_once(interruption.code, started)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # its terminal is closed
        print(line, file=sys.stderr, flush=True)


def _descendants() -> set[int]:
    """The processes that this one started, and those that they did; where there is no /proc, none."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    left = [os.getpid()]
    while left:
        new = children.get(left.pop(), [])
        found.update(new)
        left += new
    return found


def _forget() -> None:
    """A forked process is not told of by its signals: they would count as this one's."""
    if signal.getsignal(signal.SIGTERM) in (_interrupt, _ignore):
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
