"""One writer per sweep: a lock that a dead holder cannot keep.

On this host the kernel frees the lock when its holder dies, so it is taken over at once. A holder elsewhere must renew
its lease; after `LEASE` seconds without a renewal it counts as dead. Object stores know no file locks: there the lock
is an object that only a conditional put may create or, on S3, replace.

A storage that is away takes the lock from nobody: it cannot be renewed then, nor taken. A holder that finds somebody
else's name in it has lost it (it slept past its lease) and must end.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from scl_ray import storage
from scl_ray.config import InputError
from scl_ray.storage import StorageError
from scl_ray.store import Store

LEASE = 30.0
RENEWAL = 5.0

Holder = dict[str, Any]  # what the lock says of who holds it: host, place, pid, born, token, since, renewed


@contextlib.contextmanager
def held(
    store: Store, lost: Callable[[str], None], away: Callable[[str], None] = storage.give_up
) -> Iterator[str]:  # fmt: skip
    """Hold the sweep's lock, which gives its token. Raises InputError, naming the holder, when a living process has it.

    *lost* is called, from another thread and with the new holder, should somebody else have taken the lock meanwhile
    (a machine that slept past its lease); *away*, with the reason, when the storage has not answered for
    `storage.PATIENCE`.
    """
    lock = _on_disk if isinstance(store.fs, LocalFileSystem) else _in_object_store
    mine = _identity()
    with lock(store, mine) as renew:
        stop = threading.Event()

        def keep() -> None:
            renewed = time.monotonic()
            while not stop.wait(RENEWAL):
                try:
                    now = renew()
                except OSError as error:
                    if time.monotonic() - renewed > storage.PATIENCE:
                        away(f"{store.name}: {storage.reason(error)}, for {storage.PATIENCE:g} s")
                        return
                    continue
                if now.get("token") != mine["token"]:
                    lost(describe(now))
                    return
                renewed = time.monotonic()

        thread = threading.Thread(target=keep, name="lock-renewal", daemon=True)
        thread.start()
        try:
            yield mine["token"]
        finally:
            stop.set()
            thread.join()


def holder(store: Store) -> Holder | None:
    """Who holds the sweep's lock, or None: token, host, pid, since, and a ``renewed`` that each renewal changes.

    A holder elsewhere that has died is given until somebody takes its lock; one on this host is not.
    """
    if isinstance(store.fs, LocalFileSystem):
        path = Path(store.path(".lock"))
        now = _content(path)
        now |= {"renewed": _renewal(path)} if now else {}
    else:
        now = json.loads(store.read(".lock") or b"{}")
    return now if now and not _is_dead(now, _identity()) else None


def describe(holder: Holder) -> str:
    """The holder, as a user finds it."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _identity() -> Holder:
    """This process: the kernel and process namespace where its number means something, and when it was born."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    place = f"{boot.read_text().strip()} {namespace.readlink()}" if boot.exists() else ""  # macOS has but the host
    return {"host": socket.gethostname(), "place": place, "pid": os.getpid(), "born": _born(os.getpid()),
            "token": uuid.uuid4().hex, "since": time.strftime("%F %T")}  # fmt: skip


def _born(pid: int) -> int | None:
    """When the process was born, in the kernel's ticks, 0 where that is not known; None when none such runs."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return 0
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:  # somebody else's, and alive
        return 0
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(fields[18])


def _is_here(other: Holder, mine: Holder) -> bool:
    return all(other.get(key) == mine[key] for key in ("host", "place"))


def _is_dead(other: Holder, mine: Holder) -> bool:
    """Whether it was a process of this host that is no more."""
    return _is_here(other, mine) and _born(other["pid"]) != other["born"]


def _refusal(store: Store, other: Holder) -> InputError:
    return InputError(f"{store.name}: is being written by {describe(other)}; "
                      "wait for it, stop it, or choose another --name")  # fmt: skip


@contextlib.contextmanager
def _on_disk(store: Store, mine: Holder) -> Iterator[Callable[[], Holder]]:
    path = Path(store.path(".lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a+"))
        except PermissionError as error:
            raise InputError(f"{path}: says who writes the sweep and cannot be opened ({storage.reason(error)}); have "
                             "its owner let you write it, or choose another --name") from error  # fmt: skip
        is_free = _flocked(file)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # replaced at this very moment
            raise _refusal(store, _content(path))
        other = _content(path)
        if other and not _is_here(other, mine):
            # This filesystem may not carry flock between hosts, so another host's lease decides.
            if living := _living(lambda: (_renewal(path), _content(path)), mine, remaining=LEASE - _age(path)):
                raise _refusal(store, living)
            if is_free is False and _flocked(file) is False:
                file = stack.enter_context(_replaced(path))
        elif is_free is False or (is_free is None and other and not _is_dead(other, mine)):
            raise _refusal(store, other)
        _put(file, mine)

        def renew() -> Holder:
            now = _content(path)
            if now.get("token") == mine["token"]:
                os.utime(path)
            return now

        try:
            yield renew
        finally:
            with contextlib.suppress(OSError):  # a lease that is not given back runs out
                if _content(path).get("token") == mine["token"]:
                    _put(file, {})


def _flocked(file: Any) -> bool | None:
    """Whether the file is this process's now; None where its filesystem has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return None
    return True


def _replaced(path: Path) -> Any:
    """A new lock file in the place of one whose dead host's flock a file server still keeps, or a host that sleeps."""
    new = path.with_name(f".lock.{uuid.uuid4().hex}.partial")
    file = new.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.replace(path)
    return file


def _content(path: Path) -> Holder:
    try:
        return dict(json.loads(path.read_text() or "{}"))
    except (FileNotFoundError, json.JSONDecodeError):  # its holder died while it wrote these few bytes
        return {}


def _put(file: Any, holder: Holder) -> None:
    try:  # past the file's own buffer, which it would try to write again when it is closed
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(holder).encode() if holder else b"")
    except OSError as error:
        raise StorageError(f"{file.name}: {storage.reason(error)}") from error


def _renewal(path: Path) -> int:
    # Of an opened file, since what NFS says of one that is not may be a minute old.
    with path.open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _age(path: Path) -> float:
    # Both times come from the filesystem's own clock, which the hosts share even where theirs disagree.
    probe = path.with_name(f".lock.{uuid.uuid4().hex}.partial")
    with probe.open("w") as file:
        now = os.fstat(file.fileno()).st_mtime_ns
    probe.unlink(missing_ok=True)  # the holder removes what looks like a leftover
    return (now - _renewal(path)) / 1e9


def _living(look: Callable[[], tuple[Any, Holder]], mine: Holder, remaining: float) -> Holder:
    """Who is seen to renew a lease, watched for the seconds that remain of it. Nobody when it runs out or is given back
    meanwhile, or its holder, a process of this host, ends. *look* gives what each renewal changes, and the holder."""
    seen, holder = look()
    stamp, end = seen, time.monotonic() + remaining
    while holder and not _is_dead(holder, mine) and stamp == seen and (left := end - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        asked = time.monotonic()
        stamp, holder = look()
        # While the storage kept this process waiting, it may have done so to the holder.
        end += time.monotonic() - asked
    return {} if stamp == seen or _is_dead(holder, mine) else holder


@contextlib.contextmanager
def _in_object_store(store: Store, mine: Holder) -> Iterator[Callable[[], Holder]]:
    fs, path = store.fs, store.path(".lock")
    # Renewals are not retried: the next one is soon, and whoever ends does not wait for one.
    bare, renewing = fs.fs, storage.hasty(fs)
    has_conditions = "s3" in bare.protocol

    def read(through: Any) -> tuple[str | None, Holder]:
        """The lock's version and holder. The version comes first, so that it is never a later holder's."""
        try:
            version = str(storage.once(through.info, path)["ETag"]) if has_conditions else None
            body = bytes(storage.once(through.cat_file, path))
        except FileNotFoundError:
            return None, {}
        return version or body.decode(), dict(json.loads(body))

    def put(through: Any, current: str | None) -> None:
        """Put this process's name there if the *current* version, or nothing, still is. Whether it was, `read` tells: a
        put whose answer is lost is sent again, and finds its own work done."""
        # The time makes every body, and so every version, a new one.
        body = json.dumps(mine | {"renewed": time.time_ns()}).encode()
        condition = {"IfMatch": current} if has_conditions else {}
        if current is None:
            condition = {"mode": "create"}
        elif not has_conditions and read(through)[0] != current:
            return  # in the moment between, another may come: then one of the two finds the other's name there and ends
        try:
            storage.once(through.pipe_file, path, body, **condition)
        except FileNotFoundError:
            return
        except OSError as error:
            if not storage.is_precondition(error):
                raise

    while True:
        current, other = read(fs)
        if other.get("token") == mine["token"]:
            break
        if other and (living := _living(partial(read, fs), mine, LEASE)):
            raise _refusal(store, living)
        put(fs, current)

    def renew() -> Holder:
        nonlocal current
        put(renewing, str(current))
        current, now = read(renewing)
        return now

    try:
        yield renew
    finally:
        with contextlib.suppress(OSError):  # a lease that is not given back runs out
            current, now = read(bare)
            if now.get("token") == mine["token"]:
                if has_conditions:
                    bucket, key, _ = bare.split_path(path)
                    storage.once(bare.call_s3, "delete_object", Bucket=bucket, Key=key, IfMatch=current)
                else:
                    storage.once(bare.rm_file, path)
