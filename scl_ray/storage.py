"""Where results lie: the fsspec filesystem of a folder or URI, and patience with one that fails now and then.

A request that an object store turns down is first sent again by its own client, a few times at once. What still fails
is tried again here, at growing intervals, until `PATIENCE` is over: a storage that comes back within it costs time
alone. What would fail again (no permission, no such bucket) is never tried again.
"""

import contextlib
import errno
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scl_ray.config import InputError

PATIENCE = 120.0  # seconds for which a storage may be away before what needs it is given up
FIRST_PATIENCE = 10.0  # and one that has never answered, whose address may be wrong
WAITS = (0.5, 15.0)  # seconds between two attempts: the first time, and at most

# Errors of the operating system that may be gone the next time.
PASSING = {
    errno.EIO, errno.EREMOTEIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETRESET, errno.ENETUNREACH, errno.ENOTCONN,
}  # fmt: skip
# A full disk: somebody may make room, but what waits for that holds a slot.
FULL, FULL_PATIENCE = {errno.ENOSPC, errno.EDQUOT}, 10.0
# Answers of an object store that may be another the next time, beside those of 500 and above.
PASSING_STATUS = {408, 409, 429}  # too slow, at the same time as another, too many
PASSING_CODES = {"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown", "Throttling", "RequestLimitExceeded"}

S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 3},
             "max_pool_connections": 32}  # fmt: skip
# Of requests that a lock's renewal takes: three in a row, and the wait between two renewals, end within its lease.
S3_HASTY = {"connect_timeout": 2, "read_timeout": 5, "retries": {"mode": "standard", "total_max_attempts": 1}}

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class StorageError(OSError):
    """A storage that cannot be used. The message is one clause, for the user."""


def open_filesystem(out: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of *out*, a folder or an fsspec URI, and the path there. Raises InputError when it is neither."""
    protocol = fsspec.utils.get_protocol(out)
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = S3_CLIENT | fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    try:
        # Other processes write here too, so a listing is never taken from a cache.
        fs, root = fsspec.core.url_to_fs(out, use_listings_cache=False, **options)
    except ImportError as error:
        raise InputError(f"--out {out}: {protocol}:// needs a package that is not installed ({error}); install it on "
                         "every node, or give a folder or s3://bucket/runs") from error  # fmt: skip
    except ValueError as error:
        raise InputError(f"--out {out}: {error}; give a folder or an fsspec URI such as s3://bucket/runs") from error
    return (fs if isinstance(fs, LocalFileSystem) else Patient(fs)), root


def hasty(fs: "Patient") -> fsspec.AbstractFileSystem:
    """The filesystem beneath *fs* for what is soon done again: on S3 each request is made once, and given up in
    seconds."""
    bare = fs.fs
    if "config_kwargs" not in bare.storage_options:
        return bare
    options = bare.storage_options | {"config_kwargs": bare.storage_options["config_kwargs"] | S3_HASTY}
    return Patient(type(bare)(*bare.storage_args, **options)).fs


def retried(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``operation(*args, **kwargs)``, which may be done twice; again while it fails with an error that passes, for
    `PATIENCE` seconds, or `FULL_PATIENCE` where there is no room. Each new attempt is logged. Raises StorageError when
    the patience is over."""
    return _within(PATIENCE, lambda: operation(*args, **kwargs))


def _within(seconds: float, operation: Callable[[], T]) -> T:
    started, wait = time.monotonic(), WAITS[0]
    while True:
        try:
            return once(operation)
        except OSError as error:
            if not passes(error):
                raise
            pause = wait * random.uniform(0.5, 1.0)  # so that many who were turned down do not come back together
            patience = min(seconds, FULL_PATIENCE) if error.errno in FULL else seconds
            if time.monotonic() + pause > started + patience:
                raise StorageError(f"{reason(error)}, for {patience:g} s") from error
            _log.warning("storage: %s; trying again in %.1f s", reason(error), pause)
        time.sleep(pause)
        wait = min(2 * wait, WAITS[1])


def once(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``operation(*args, **kwargs)``; StorageError for want of permission, or an object store's error of its own."""
    try:
        return operation(*args, **kwargs)
    except PermissionError as error:
        raise StorageError(reason(error)) from error
    except OSError:
        raise
    except _foreign() as error:
        raise StorageError(reason(error)) from error


def _foreign() -> tuple[type[Exception], ...]:
    """Errors of an object store's client that are no OSError; imported when there is one, since that takes time."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    return ClientError, BotoCoreError, ResponseParserError


def passes(error: BaseException) -> bool:
    """Whether what failed with *error* may succeed when it is done again."""
    if isinstance(error, OSError) and error.errno and error.__cause__ is None:  # the operating system's own
        return error.errno in PASSING | FULL
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from botocore.parsers import ResponseParserError

    broken = (NotConnected, HTTPClientError, IncompleteReadError, ClientError, ResponseParserError, TimeoutError)
    if isinstance(error, broken) or isinstance(error.__cause__, broken):
        return True
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = answer.get("Error", {}).get("Code")
        return status in PASSING_STATUS or (status >= 500 and status != 501) or code in PASSING_CODES
    return isinstance(error, OSError) and error.errno in PASSING | FULL


def reason(error: BaseException) -> str:
    """*error* in one clause; some object stores say nothing but a number."""
    answer = getattr(error.__cause__, "response", None)
    said = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
    if isinstance(answer, dict):
        code = answer.get("Error", {}).get("Code", "")
        return said if code in said else f"{code}: {said}"
    return said


def told(error: OSError) -> str:
    """*error* as users read it, with the file that it is about."""
    said = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {said}" if error.filename else said


def is_precondition(error: OSError) -> bool:
    """Whether an object store refused a conditional request because its condition does not hold."""
    answer = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or answer.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def give_up(why: str) -> NoReturn:
    """End this process, from any of its threads, since its storage is away. What is finished is there."""
    print(f"failed: {why}; once the storage is back, the same command continues", file=sys.stderr, flush=True)
    os._exit(1)


class Patient(fsspec.AbstractFileSystem):
    """A remote filesystem *fs*, each of whose operations is retried. Files are read and written whole.

    *is_known*: whether it has ever answered. Until then there is less patience: its address may be wrong.
    """

    cachable = False

    def __init__(self, fs: fsspec.AbstractFileSystem, is_known: bool = False) -> None:
        super().__init__(fs)
        self.fs, self.is_known = fs, is_known
        self.protocol = fs.protocol
        if hasattr(fs, "retries"):  # s3fs repeats what its client has repeated
            fs.retries = 1

    def __reduce__(self) -> tuple[type["Patient"], tuple[fsspec.AbstractFileSystem, bool]]:
        return Patient, (self.fs, self.is_known)

    def _retried(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        patience = PATIENCE if self.is_known else min(PATIENCE, FIRST_PATIENCE)
        try:
            result = _within(patience, lambda: operation(*args, **kwargs))
        except FileNotFoundError:
            self.is_known = True
            raise
        self.is_known = True
        return result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and self.fs == other.fs

    def __hash__(self) -> int:
        return hash(self.fs)

    def _strip_protocol(self, path: Any) -> Any:
        return self.fs._strip_protocol(path)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._retried(self.fs.info, path, **kwargs)

    def _type(self, path: str) -> str | None:
        # fsspec's own checks take any error, a lost connection too, for a file that is not there.
        try:
            return self.info(path)["type"]
        except FileNotFoundError:
            return None

    def exists(self, path: str, **kwargs: Any) -> bool:
        return self._type(path) is not None

    def isfile(self, path: str) -> bool:
        return self._type(path) == "file"

    def isdir(self, path: str) -> bool:
        return self._type(path) == "directory"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        return self._retried(self.fs.ls, path, detail=detail, **kwargs)

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False,
             **kwargs: Any) -> Any:  # fmt: skip
        return self._retried(self.fs.find, path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return self._retried(self.fs.cat_file, path, start=start, end=end, **kwargs)

    def cat(self, path: str | Sequence[str], recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Many files at once: ``{path: bytes}``. *on_error* is for those that are not there: ``raise``, ``return`` the
        error or ``omit``; a storage that is away always raises."""
        if isinstance(path, str):
            return self.cat_file(path)
        if not path:
            return {}
        found = self._retried(self.fs.cat, list(path), on_error="return", **kwargs)
        for name, data in found.items():
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                found[name] = self.cat_file(name)
            elif on_error == "raise" and isinstance(data, FileNotFoundError):
                raise data
        return {name: data for name, data in found.items() if on_error != "omit" or isinstance(data, bytes)}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._retried(self.fs.pipe_file, path, value, mode=mode, **kwargs)

    def rm_file(self, path: str) -> None:
        self._retried(self.fs.rm_file, path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        attempts = 0

        def remove() -> None:
            nonlocal attempts
            attempts += 1
            try:
                if self.fs.info(path)["type"] == "file":
                    self.fs.rm_file(path)
                    return
                self.fs.rm(path, recursive=recursive, maxdepth=maxdepth)
            except FileNotFoundError:
                if attempts == 1:
                    raise
                # The attempt before had removed it, and its answer was lost.
            # S3's answer to a request to remove many is that all is well, with a list of what was refused, which s3fs
            # does not read. Asked alone, a file that is still there says why.
            for left in self.fs.find(path, maxdepth=maxdepth) if recursive else ():
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(left)

        self._retried(remove)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._retried(self.fs.cp_file, path1, path2, **kwargs)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        self._retried(self.fs.mkdir, path, create_parents=create_parents, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._retried(self.fs.makedirs, path, exist_ok=exist_ok)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        if mode == "wb":
            return _Written(self, path)
        raise ValueError(f"mode {mode}: only rb and wb")


class _Written(io.BytesIO):
    """A file that is stored, whole, when it is closed."""

    def __init__(self, fs: Patient, path: str) -> None:
        super().__init__()
        self.fs, self.path = fs, path

    def close(self) -> None:
        if not self.closed:
            self.fs.pipe_file(self.path, self.getvalue())
        super().close()
