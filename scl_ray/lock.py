"""One writer per sweep: a lock that a dead holder cannot keep.

On this host the kernel frees the lock when its holder dies, so it is taken over at once. A holder elsewhere must renew
its lease; after `LEASE` seconds without a renewal it counts as dead. Object stores know no file locks: there the lock
is an object that only a conditional put may create or replace.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from scl_ray.config import InputError
from scl_ray.store import Store

LEASE = 30.0
RENEWAL = 5.0


@contextlib.contextmanager
def held(store: Store, lost: Callable[[str], None]) -> Iterator[str]:
    """Hold the sweep's lock; gives its token. Raises InputError, naming the holder, when a living process has it.

    *lost* is called, from another thread and with the new holder, should somebody else have taken the lock meanwhile
    (a machine that slept past its lease).
    """
    lock = _on_disk if isinstance(store.fs, LocalFileSystem) else _in_object_store
    mine = _identity()
    with lock(store, mine) as renew:
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(RENEWAL):
                try:
                    holder = renew()
                except OSError:  # a storage that is away for a moment; the lease has time for several renewals
                    continue
                if holder is not None:
                    lost(describe(holder))
                    return

        thread = threading.Thread(target=keep, name="lock-renewal", daemon=True)
        thread.start()
        try:
            yield mine["token"]
        finally:
            stop.set()
            thread.join()


def holder(store: Store) -> dict[str, Any] | None:
    """Who holds the sweep's lock, or None: token, host, pid, since, and a ``renewed`` that each renewal changes.

    A holder elsewhere that has died is given until somebody takes its lock; one on this host is not.
    """
    if isinstance(store.fs, LocalFileSystem):
        path = Path(store.path(".lock"))
        found = _content(path) | {"renewed": path.stat().st_mtime_ns} if path.exists() else {}
    else:
        found = json.loads(store.read(".lock") or "{}")
    return found if "token" in found and not _is_dead(found) else None


def describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this host that is no more."""
    return holder.get("host") == socket.gethostname() and not Path(f"/proc/{holder.get('pid')}").exists()


def _identity() -> dict[str, Any]:
    now = time.strftime("%F %T")
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex, "since": now}


def _refusal(store: Store, holder: dict[str, Any]) -> InputError:
    return InputError(f"{store.root}: is being written by {describe(holder)}; "
                      "wait for it, stop it, or choose another --name")  # fmt: skip


@contextlib.contextmanager
def _on_disk(store: Store, mine: dict[str, Any]) -> Iterator[Callable[[], dict[str, Any] | None]]:
    path = Path(store.path(".lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(store, _content(path)) from None
        other = _content(path)
        # This filesystem may not carry flock between hosts, so another host's lease decides.
        is_elsewhere = other and other.get("host") != mine["host"]
        if is_elsewhere and _renewed(lambda: path.stat().st_mtime_ns, remaining=LEASE - _age(path)):
            raise _refusal(store, other)
        _put(file, mine)

        def renew() -> dict[str, Any] | None:
            now = _content(path)
            if now.get("token") != mine["token"]:
                return now
            os.utime(path)
            return None

        try:
            yield renew
        finally:
            if _content(path).get("token") == mine["token"]:
                _put(file, {})


def _content(path: Path) -> dict[str, Any]:
    text = path.read_text()
    try:
        return dict(json.loads(text)) if text else {}
    except json.JSONDecodeError:  # its holder died while it wrote these few bytes
        return {}


def _put(file: Any, holder: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(holder) if holder else "")
    file.flush()


def _age(path: Path) -> float:
    # Both times come from the filesystem's own clock, which the hosts share even where theirs disagree.
    probe = path.with_name(f".lock.{uuid.uuid4().hex}")
    probe.touch()
    age = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return age


def _renewed(stamp: Callable[[], Any], remaining: float) -> bool:
    """Whether a lease is renewed before it runs out: watched for the seconds that remain of it."""
    seen, end = stamp(), time.monotonic() + remaining
    while time.monotonic() < end:
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        if stamp() != seen:
            return True
    return False


@contextlib.contextmanager
def _in_object_store(store: Store, mine: dict[str, Any]) -> Iterator[Callable[[], dict[str, Any] | None]]:
    fs, path = store.fs, store.path(".lock")
    body = json.dumps(mine).encode()

    def stamp() -> str | None:
        fs.invalidate_cache()
        return str(fs.info(path)["ETag"]) if fs.exists(path) else None

    def put(**condition: str) -> bool:
        # The renewal time makes every body, and so every ETag, a new one.
        renewed = json.dumps(mine | {"renewed": time.time_ns()}).encode() if "IfMatch" in condition else body
        try:
            fs.pipe_file(path, renewed, **condition)
        except (FileExistsError, OSError) as error:
            if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error) or (
                isinstance(error, FileExistsError)
            ):  # fmt: skip
                return False
            raise
        return True

    while not put(IfNoneMatch="*"):
        seen = stamp()
        if seen is None:
            continue
        other = json.loads(fs.cat_file(path))
        if not _is_dead(other) and _renewed(stamp, LEASE):
            raise _refusal(store, other)
        if not put(IfMatch=seen):
            raise _refusal(store, json.loads(fs.cat_file(path)))
        break
    current = stamp()

    def renew() -> dict[str, Any] | None:
        nonlocal current
        if current is None or not put(IfMatch=current):
            holder = dict(json.loads(fs.cat_file(path)))
            # A put that was answered too late and sent again finds its own work done.
            if holder.get("token") != mine["token"]:
                return holder
        current = stamp()
        return None

    try:
        yield renew
    finally:
        if stamp() == current:
            fs.rm_file(path)
