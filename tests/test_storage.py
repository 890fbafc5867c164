"""Patience with a storage that fails now and then: on a real S3-compatible server with injected faults."""

import errno
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator

import object_store
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest
from object_store import FAULTS, Unsteady

from scl_ray import storage
from scl_ray.config import InputError
from scl_ray.store import open_store

Filesystem = tuple[storage.Patient, str]


@pytest.fixture(scope="module")
def server() -> Iterator[Unsteady]:
    with object_store.serving() as unsteady:
        yield unsteady


@pytest.fixture
def remote(server: Unsteady, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filesystem]:
    """A filesystem on the server, and a folder of its own there."""
    monkeypatch.setattr(storage, "WAITS", (0.05, 0.2))
    fs, root = storage.open_filesystem(object_store.new_bucket())
    yield fs, root
    server.start_failing(0.0)
    server.away.clear()


def test_every_operation_outlasts_every_fault(server: Unsteady, remote: Filesystem) -> None:
    fs, root = remote
    server.slow = 0.05
    server.start_failing(0.3)
    contents = {f"{root}/folder/{number}": os.urandom(100) for number in range(8)}
    for path, data in contents.items():
        fs.pipe_file(path, data)
    assert fs.cat(list(contents)) == contents
    assert all(fs.cat_file(path) == data for path, data in contents.items())
    assert fs.ls(f"{root}/folder", detail=False) == sorted(contents)
    assert fs.find(root) == sorted(contents)
    assert all(fs.exists(path) and fs.isfile(path) and not fs.isdir(path) for path in contents)
    assert fs.isdir(f"{root}/folder")
    assert not fs.exists(f"{root}/nothing")
    for path in list(contents)[:4]:
        fs.rm_file(path)
    assert fs.find(root) == sorted(contents)[4:]
    fs.rm(f"{root}/folder", recursive=True)
    assert fs.find(root) == []
    large = os.urandom(11 * 2**20)
    fs.pipe_file(f"{root}/large", large, chunksize=5 * 2**20)
    assert fs.cat_file(f"{root}/large") == large
    assert {operation for operation, _ in server.failed} >= {"GET", "PUT", "LIST", "HEAD", "DELETE", "multipart"}
    assert {fault for _, fault in server.failed} == set(FAULTS)


def test_a_deletion_that_is_refused_is_said(server: Unsteady, remote: Filesystem) -> None:
    fs, root = remote
    contents = [f"{root}/folder/{number}" for number in range(3)]
    for path in contents:
        fs.pipe_file(path, b"content")
    object_store.deny_deletion(f"s3://{root}", "folder/1")
    # S3 says of many at once that all is well, and in what follows which it refused.
    with pytest.raises(storage.StorageError, match="Forbidden"):
        fs.rm(f"{root}/folder", recursive=True)
    assert fs.find(root) == contents[1:2]
    with pytest.raises(storage.StorageError, match="Forbidden"):
        fs.rm(contents[1])
    assert fs.find(root) == contents[1:2]


def test_removing_what_is_not_there_says_so(remote: Filesystem) -> None:
    fs, root = remote
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{root}/nothing", recursive=True)


def test_a_hasty_request_is_given_up_at_once(
    server: Unsteady, remote: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = remote
    fs.pipe_file(f"{root}/file", b"content")
    monkeypatch.setattr(object_store, "FAULTS", ("slow",))
    monkeypatch.setattr(storage, "S3_HASTY", storage.S3_HASTY | {"read_timeout": 0.2})
    hasty = storage.hasty(fs)
    monkeypatch.setattr(server, "slow", 3.0)
    server.start_failing(1.0)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"(?i)time"):
        storage.once(hasty.cat_file, f"{root}/file")
    assert time.monotonic() - started < 2.0
    assert server.failed.total() == 1
    server.start_failing(0.0)
    assert hasty.cat_file(f"{root}/file") == b"content"


def test_what_is_read_by_arrow_and_written_by_ray_is_retried_too(server: Unsteady, remote: Filesystem) -> None:
    fs, root = remote
    server.start_failing(0.3)
    store = open_store(f"s3://{root}", "demo")
    tables = [pa.table({"number": list(range(first, first + 10))}) for first in range(0, 50, 10)]
    for number, table in enumerate(tables):
        store.write_table(f"part-{number}.parquet", table)
    paths = [store.path(f"part-{number}.parquet") for number in range(len(tables))]
    read = ds.dataset(paths, filesystem=store.fs, format="parquet").to_table()
    assert sorted(read["number"].to_pylist()) == list(range(50))
    arrow = pafs.PyFileSystem(pafs.FSSpecHandler(pickle.loads(pickle.dumps(fs))))
    with arrow.open_output_stream(f"{root}/state") as file:
        file.write(b"some state")
    assert fs.cat_file(f"{root}/state") == b"some state"


def test_a_storage_that_comes_back_costs_time_alone_and_each_wait_is_told(
    server: Unsteady, remote: Filesystem, caplog: pytest.LogCaptureFixture
) -> None:
    fs, root = remote
    fs.pipe_file(f"{root}/file", b"content")
    server.refused = 0
    server.away.set()
    told: list[str] = []

    class Back(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            if len(told) == 2:
                server.away.clear()

    handler = Back()
    logging.getLogger("scl_ray.storage").addHandler(handler)
    try:
        assert fs.cat_file(f"{root}/file") == b"content"
    finally:
        logging.getLogger("scl_ray.storage").removeHandler(handler)
    assert len(told) >= 2
    assert all("trying again in" in line for line in told)
    assert server.refused >= 6  # the client's own attempts among them


def test_a_storage_that_stays_away_is_given_up_in_one_clause(
    server: Unsteady, remote: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = remote
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    server.away.set()
    for operation in (fs.cat_file, fs.exists, fs.ls, fs.rm_file):
        with pytest.raises(storage.StorageError, match=r"for 0\.5 s") as raised:
            operation(f"{root}/file")
        assert "\n" not in str(raised.value)
    with pytest.raises(storage.StorageError):
        fs.cat([f"{root}/one", f"{root}/two"])


def test_an_address_that_never_answered_is_given_up_sooner(
    server: Unsteady, remote: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = remote
    monkeypatch.setattr(storage, "FIRST_PATIENCE", 0.3)
    server.away.set()
    with pytest.raises(storage.StorageError, match=r"for 0\.3 s"):
        fs.exists(root)
    server.away.clear()
    assert not fs.exists(root)
    assert fs.is_known
    assert pickle.loads(pickle.dumps(fs)).is_known


def test_what_would_fail_again_is_not_tried_again(server: Unsteady, remote: Filesystem) -> None:
    fs, root = remote
    started = time.monotonic()
    for path in (f"{root}/nothing", "bucket-that-is-not-there/file"):
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
    with pytest.raises(FileNotFoundError):
        fs.pipe_file("bucket-that-is-not-there/file", b"")
    calls: list[int] = []

    def denied() -> None:
        calls.append(1)
        raise PermissionError(errno.EACCES, "Access Denied")

    with pytest.raises(OSError, match="Access Denied"):
        storage.retried(denied)
    assert len(calls) == 1
    assert time.monotonic() - started < storage.PATIENCE


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (TimeoutError("timed out"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (PermissionError(errno.EACCES, "denied"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (OSError(errno.EINVAL, "invalid"), False),
        (ValueError("no error of a storage"), False),
    ],
)
def test_which_errors_pass(error: Exception, passes: bool) -> None:
    assert storage.passes(error) is passes


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/.lock"), "runs/.lock: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (storage.StorageError("runs: Access Denied"), "runs: Access Denied"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_is_told_with_its_file(error: OSError, said: str) -> None:
    assert storage.told(error) == said


def test_a_filesystem_that_was_sent_to_a_worker_is_the_same(remote: Filesystem) -> None:
    fs, root = remote
    fs.pipe_file(f"{root}/file", b"content")
    received = pickle.loads(pickle.dumps(fs))
    assert received == fs
    assert hash(received) == hash(fs)
    assert received.cat_file(f"{root}/file") == b"content"


def test_what_is_no_place_is_refused_with_what_to_do() -> None:
    find: Callable[[str], object] = storage.open_filesystem
    with pytest.raises(InputError, match=r"--out nowhere://x: Protocol not known.*s3://bucket/runs"):
        find("nowhere://x")
    with pytest.raises(InputError, match=r"--out gs://bucket/x: gs:// needs a package .*gcsfs.*install it on every"):
        find("gs://bucket/x")
