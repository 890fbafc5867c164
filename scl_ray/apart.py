"""Doing what takes much memory in a process of its own, with which the memory goes."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Value = TypeVar("Value")
PR_SET_PDEATHSIG = 1


class Lost(Exception):
    """The process ended without an answer, as one does that the kernel kills for lack of memory."""


def call(function: Callable[..., Value], *arguments: object) -> Value:
    """What *function* gives, or raises, for *arguments* in a new process, which must be able to import it.

    The process ends with this one, however this one ends. Raises Lost when it ends by itself.
    """
    context = multiprocessing.get_context("spawn")  # a fork would have this process's locks, and none of its threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, os.getpid(), function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        value, error = ours.recv()
    except EOFError:
        process.join()
        raise Lost(f"its process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if error is not None:
        raise error
    return value


def _work(answer: Connection, parent: int, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    # What stops the command's whole group is for the command to heed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        value, error = function(*arguments), None
    except Exception as raised:  # it is raised again where it was asked for
        value, error = None, raised
    answer.send((value, error))
