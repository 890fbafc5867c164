"""One writer per sweep."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import object_store
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from scl_ray import lock, storage
from scl_ray.config import InputError
from scl_ray.store import Store, open_store

HOLD = """
import sys, time
from scl_ray import lock, store
with lock.held(store.open_store(sys.argv[1], "demo"), lost=print):
    print("held", flush=True)
    time.sleep(60)
"""
# The same on another host, and for less than a renewal.
HOLD_ELSEWHERE = HOLD.replace("with ", "lock.socket.gethostname = lambda: 'another-host'\nwith ").replace("60", "2.5")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock of the sweep ``demo`` below *tmp_path*."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a folder in a bucket of a real S3-compatible server on loopback."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    # The server keeps its buckets in this process, so each test has one of its own.
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/runs"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def never(holder: str) -> None:
    raise AssertionError(holder)


def test_a_living_holder_is_named_and_left_alone(holder: subprocess.Popen, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=f"process {holder.pid} on "),
        lock.held(open_store(str(tmp_path), "demo"), never),
    ):
        pass
    # Another sweep of the same folder is not concerned.
    with lock.held(open_store(str(tmp_path), "other"), never):
        pass


def test_a_killed_holder_is_taken_over_at_once(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with lock.held(open_store(str(tmp_path), "demo"), never):
        assert json.loads((tmp_path / "demo/.lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < lock.RENEWAL


def test_without_locks_of_files_a_living_holder_of_this_host_is_left_alone_too(
    holder: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    store = open_store(str(tmp_path), "demo")
    with pytest.raises(InputError, match=f"process {holder.pid} on "), lock.held(store, never):
        pass
    holder.kill()
    holder.wait()
    for _ in range(2):
        with lock.held(store, never):
            pass


def test_it_is_free_after_use(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.held(open_store(str(tmp_path), "demo"), never):
            pass


def test_a_lock_that_is_somebody_elses_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Path.open

    def denied(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    with (
        pytest.raises(InputError, match=r"demo/\.lock: .* \(Permission denied\); have its owner .* another --name"),
        lock.held(open_store(str(tmp_path), "demo"), never),
    ):
        pass


def test_a_disk_without_room_for_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with (
        pytest.raises(storage.StorageError, match=r"demo/\.lock: No space left on device$"),
        lock.held(open_store(str(tmp_path), "demo"), never),
    ):
        pass


def _foreign(tmp_path: Path, age: float) -> Store:
    store = open_store(str(tmp_path), "demo")
    store.write_json(".lock", {"host": "another-host", "pid": 7, "token": "x", "since": "yesterday"})
    then = time.time() - age
    os.utime(tmp_path / "demo/.lock", (then, then))
    return store


def test_a_holder_elsewhere_is_taken_over_when_its_lease_is_over(tmp_path: Path) -> None:
    with lock.held(_foreign(tmp_path, lock.LEASE + 1), never):
        pass


def test_a_holder_elsewhere_that_stops_renewing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE", 2.0)
    started = time.monotonic()
    with lock.held(_foreign(tmp_path, age=0.0), never):
        assert time.monotonic() - started > 1.0


def test_a_holder_elsewhere_that_renews_is_alive(tmp_path: Path) -> None:
    store = _foreign(tmp_path, age=1.0)
    renew = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.utime({store.path('.lock')!r})"]
    )
    with pytest.raises(InputError, match="process 7 on another-host since yesterday"), lock.held(store, never):
        pass
    renew.wait()


@pytest.mark.parametrize("is_carried", [True, False], ids=["with locks of files", "without"])
def test_a_holder_elsewhere_that_ends_while_it_is_watched_leaves_the_lock(
    is_carried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_carried:  # between hosts
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
    process = subprocess.Popen([sys.executable, "-c", HOLD_ELSEWHERE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    started = time.monotonic()
    with lock.held(open_store(str(tmp_path), "demo"), never):
        assert 1.0 < time.monotonic() - started < lock.LEASE / 2
        assert json.loads((tmp_path / "demo/.lock").read_text())["pid"] == os.getpid()
    process.communicate()
    assert process.returncode == 0


def test_who_takes_the_lock_while_it_is_watched_is_the_one_named(tmp_path: Path) -> None:
    store = _foreign(tmp_path, age=1.0)
    another = {"host": "a-third-host", "pid": 8, "token": "y", "since": "today"}
    taking = threading.Timer(1.5, store.write_json, (".lock", another))
    taking.start()
    with pytest.raises(InputError, match="process 8 on a-third-host since today"), lock.held(store, never):
        pass
    taking.join()


def test_a_lock_taken_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL", 0.1)
    taken: list[str] = []
    store = open_store(str(tmp_path), "demo")
    with lock.held(store, taken.append):
        _foreign(tmp_path, age=0.0)
        deadline = time.monotonic() + 10
        while not taken and time.monotonic() < deadline:
            time.sleep(0.05)
    assert taken == ["process 7 on another-host since yesterday"]
    # What another holder wrote is not wiped out by the one that lost.
    assert json.loads((tmp_path / "demo/.lock").read_text())["host"] == "another-host"


@pytest.mark.parametrize("kind", ["s3", "without conditions"])
def test_in_an_object_store_only_one_holds_the_lock(bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket if kind == "s3" else f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(lock, "LEASE", 2.0)
    monkeypatch.setattr(lock, "RENEWAL", 0.2)
    store = open_store(bucket, "demo")
    with lock.held(store, never):
        assert store.read_json(".lock")["pid"] == os.getpid()
        # It renews its lease, so whoever watches it knows that it lives.
        with (
            pytest.raises(InputError, match=f"process {os.getpid()} on "),
            lock.held(open_store(bucket, "demo"), never),
        ):
            pass
    assert store.read(".lock") is None


@pytest.mark.parametrize("kind", ["s3", "without conditions"])
def test_in_an_object_store_a_dead_holder_is_taken_over(
    bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket if kind == "s3" else f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(lock, "LEASE", 1.0)
    store = open_store(bucket, "demo")
    store.write_json(".lock", {"host": "another-host", "pid": 7, "token": "x", "since": "yesterday"})
    with lock.held(store, never):
        assert store.read_json(".lock")["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["s3", "without conditions"])
def test_in_an_object_store_a_holder_that_releases_while_it_is_watched_leaves_the_lock(bucket: str, kind: str) -> None:
    bucket = bucket if kind == "s3" else f"memory://{uuid.uuid4().hex}"
    has_lock = threading.Event()

    def hold() -> None:
        with lock.held(open_store(bucket, "demo"), never):
            has_lock.set()
            time.sleep(2.5)

    holding = threading.Thread(target=hold)
    holding.start()
    assert has_lock.wait(10)
    started, store = time.monotonic(), open_store(bucket, "demo")
    with lock.held(store, never) as token:
        assert 1.0 < time.monotonic() - started < lock.LEASE / 2
        assert store.read_json(".lock")["token"] == token
    holding.join()


def test_in_an_object_store_a_holder_that_is_killed_while_it_is_watched_leaves_the_lock(bucket: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, bucket], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    killing = threading.Timer(2.5, process.kill)
    killing.start()
    started, store = time.monotonic(), open_store(bucket, "demo")
    with lock.held(store, never) as token:
        assert 1.0 < time.monotonic() - started < lock.LEASE / 2
        assert store.read_json(".lock")["token"] == token
    process.communicate()


def test_what_a_file_server_keeps_of_a_dead_host_binds_nobody(holder: subprocess.Popen, tmp_path: Path) -> None:
    path = tmp_path / "demo/.lock"
    path.write_text(json.dumps({"host": "another-host", "pid": 7, "token": "x", "since": "yesterday"}))
    then = time.time() - lock.LEASE - 1
    os.utime(path, (then, then))
    with lock.held(open_store(str(tmp_path), "demo"), never):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with (
            pytest.raises(InputError, match=f"process {os.getpid()} on "),
            lock.held(open_store(str(tmp_path), "demo"), never),
        ):
            pass
    assert holder.poll() is None


def test_in_an_object_store_a_process_number_given_anew_holds_nothing(bucket: str) -> None:
    store = open_store(bucket, "demo")
    with lock.held(store, never):
        of_this_process = store.read_json(".lock")
        assert lock.holder(store) == of_this_process
    store.write_json(".lock", of_this_process | {"born": of_this_process["born"] - 1, "token": "of one before"})
    assert lock.holder(store) is None
    started = time.monotonic()
    with lock.held(store, never):
        assert time.monotonic() - started < lock.RENEWAL


def test_a_storage_that_is_away_takes_the_lock_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL", 0.1)
    with object_store.serving() as server:
        bucket = object_store.new_bucket()
        store, gone = open_store(bucket, "demo"), []
        with lock.held(store, never, gone.append):
            mine = store.read_json(".lock")["token"]
            # Answers get lost too: a renewal whose answer is, is its holder's all the same.
            server.start_failing(0.3)
            server.away.set()
            _until(lambda: server.refused >= 6)
            server.away.clear()
            with (
                pytest.raises(InputError, match=f"process {os.getpid()} on "),
                lock.held(open_store(bucket, "demo"), never),
            ):
                pass
            assert store.read_json(".lock")["token"] == mine
            server.start_failing(0.0)
            assert not gone
            monkeypatch.setattr(storage, "PATIENCE", 0.5)
            server.away.set()
            _until(lambda: gone)
        assert len(gone) == 1
        assert gone[0].startswith(f"{store.name}: ")
        assert gone[0].endswith("for 0.5 s")


def _until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["s3", "without conditions"])
def test_in_an_object_store_what_another_holder_wrote_stays(
    bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket if kind == "s3" else f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(lock, "RENEWAL", 0.1)
    store, taken = open_store(bucket, "demo"), []
    with lock.held(store, taken.append):
        store.write_json(".lock", {"host": "another-host", "pid": 7, "token": "x", "since": "yesterday"})
        _until(lambda: taken)
    assert taken == ["process 7 on another-host since yesterday"]
    assert store.read_json(".lock")["token"] == "x"
