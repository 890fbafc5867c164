"""The log of a run for machines: one JSON object a line, ``logs/<start>-<host>-<process>.jsonl`` beside the results.

Every line holds ``time`` (UTC), ``level``, ``event`` and what that event is about: ``trial``, ``first`` and ``last``
(a shard's ranks), ``seconds``, ``reason``. What this package's modules warn of stands there too. A log that cannot be
written costs its lines, never the run.
"""

import contextlib
import io
import json
import logging
import math
import os
import platform
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from scl_ray import interruption
from scl_ray.storage import StorageError
from scl_ray.store import Store

WRITE_EVERY = 30.0  # seconds between two writes to an object store
FULL = 2**20  # bytes after which another object is begun: each is written anew as it grows
CLOSE_SECONDS = 30.0  # what the last write to an object store may add to a run,
STOP_SECONDS = 1.5  # and to one that is stopped or has failed

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")

# Apart from what the package warns of: no event is for the console.
_events = logging.getLogger(__name__)
_events.setLevel(logging.INFO)
_events.propagate = False


def say(event: str, level: int = logging.INFO, **about: Any) -> None:
    """Log an *event* and what it is *about*, if a log is being kept."""
    _events.log(level, event, extra={"about": about})


def say_of_trial(trial: str, label: str, report: Mapping[str, Any]) -> None:
    """Log what a trial's coordinator reports."""
    of: dict[str, Any] = {"trial": trial, "label": label}
    match report["phase"]:
        case "training" if not report["reached"]:
            say("training started", **of)
        case "training" if report["reached"].get("earlier"):
            say("training resumed", **of, epochs=len(report["reached"]["earlier"]))
        case "training" if "epoch" in report["reached"]:
            say("epoch", **of, **{key: report["reached"][key] for key in ("epoch", "loss", "seconds")})
        case "trained":
            say("trained", **of)
        case "evaluating":
            seconds = {"seconds": report["slot_seconds"]}
            say("shard", **of, **{key: report[key] for key in ("first", "last", "node")}, **seconds)
        case "done":
            say("evaluated", **of)
        case "stopped":
            say("stopped", **of, reason=report["reason"])
        case "retry":
            say("retry", logging.WARNING, **of, reason=report["error"])
        case "failed":
            say("failed", logging.ERROR, **of, reason=report["error"])


@contextlib.contextmanager
def kept(store: Store) -> Iterator[None]:
    """Keep the log of a run for the time of the block, whose process is the store's one writer."""
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{socket.gethostname()}-{os.getpid()}"
    local = isinstance(store.fs, LocalFileSystem)
    log: _File | _Objects = _File(Path(store.path("logs", f"{run}.jsonl"))) if local else _Objects(store, run)
    log.setFormatter(_Lines())
    package = logging.getLogger("scl_ray")
    handlers: list[logging.Handler] = [log]
    if not package.hasHandlers() and logging.lastResort is not None:
        handlers.append(logging.lastResort)  # what is warned of goes on being printed
    _events.addHandler(log)
    for handler in handlers:
        package.addHandler(handler)
    patience = STOP_SECONDS
    say("run started", command=[_PASSWORD.sub("", word) for word in sys.orig_argv], host=socket.gethostname(),
        process=os.getpid(), python=platform.python_version(),
        versions={name: version(name) for name in ("scl_ray", "torch", "ray", "mlflow")})  # fmt: skip
    try:
        yield
        patience = CLOSE_SECONDS
    except BaseException as error:  # whatever it is, it ends the run, and goes on to do so
        why = interruption.why() if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        say("run broken off", logging.ERROR, reason=why)
        raise
    finally:
        _events.removeHandler(log)
        for handler in handlers:
            package.removeHandler(handler)
        log.end(patience)


class _Lines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        about = getattr(record, "about", None)
        event = "warning" if about is None else record.getMessage()
        if about is None:
            about = {"module": record.name, "reason": record.getMessage()}
        line = {"time": when, "level": record.levelname.lower(), "event": event, **about}
        # JSON has no word for them.
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        return json.dumps(finite, ensure_ascii=False)


def _encoded(line: str) -> bytes:
    # A byte that is no UTF-8, as a file's name may hold, is half of a surrogate pair to Python. JSON can say that too.
    return f"{line}\n".encode(errors="backslashreplace")


class _File(logging.Handler):
    """Appends each line at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.file: io.FileIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("ab", buffering=0)
            self.file.write(_encoded(self.format(record)))

    def end(self, seconds: float) -> None:
        if self.file is not None:
            self.file.close()


class _Objects(logging.Handler):
    """Writes lines from a thread of its own, since an object cannot be appended to and each write is a journey."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        self.store, self.name, self.number = store, name, 1
        self.lines, self.written = bytearray(), 0
        self.changing, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="log", daemon=True)
        self.thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        line = _encoded(self.format(record))
        with self.changing:
            self.lines += line

    def end(self, seconds: float) -> None:
        self.over.set()
        self.thread.join(seconds)

    def _run(self) -> None:
        while not self.over.wait(WRITE_EVERY):
            self._write()
        self._write()

    def _write(self) -> None:
        with self.changing:
            lines = bytes(self.lines)
        if len(lines) == self.written:
            return
        try:
            self.store.write(f"logs/{self.name}-{self.number:04d}.jsonl", lines)
        except StorageError:  # the next time
            return
        self.written = len(lines)
        if len(lines) > FULL:
            with self.changing:
                del self.lines[: len(lines)]
            self.written, self.number = 0, self.number + 1
