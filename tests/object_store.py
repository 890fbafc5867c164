"""An S3 server on loopback that fails now and then: moto's, behind a fixed pseudo-random pattern of faults."""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# What becomes of a request. The server has done what it was told where only its answer is lost.
FAULTS = ("500", "503", "dropped", "answer lost", "answer cut", "slow")

_CODES = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{0}</Code><Message>Please try again.</Message></Error>"


class Unsteady:
    """A WSGI application in front of *application*, with a share of *faults* among its requests, always the same ones:
    the first of each operation, and those that a pseudo-random number chooses.

    ``failed`` counts them by (operation, fault). While ``away`` is set, no request is answered at all.
    """

    def __init__(self, application: Callable[..., Any]) -> None:
        self.application = application
        self.faults, self.slow, self.away = 0.0, 1.0, threading.Event()  # slow: seconds
        self.failed: Counter[tuple[str, str]] = Counter()
        self.refused = 0
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def start_failing(self, share: float) -> None:
        """From now on, and from the pattern's beginning."""
        with self._lock:
            self._asked.clear()
            self.failed.clear()
            self.faults = share

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        operation = _operation(environ)
        with self._lock:
            fault = self._next(operation)
            if self.away.is_set():
                self.refused += 1
                fault = "dropped"
        if fault == "dropped":
            start_response("200 OK", [])
            return _hang_up(environ)
        if fault in _CODES:
            status, code = _CODES[fault]
            start_response(status, [("Content-Type", "application/xml")])
            return [b"" if operation == "HEAD" else _ERROR.format(code).encode()]
        if fault == "slow":
            time.sleep(self.slow)
        answer = self.application(environ, start_response)
        if fault == "answer lost":
            return _hang_up(environ)
        if fault == "answer cut":
            return _cut(environ, b"".join(answer))
        return answer

    def _next(self, operation: str) -> str | None:
        """What becomes of the next request for this *operation*."""
        number = self._asked[operation]
        self._asked[operation] += 1
        if not self.faults or (number and random.Random(f"{operation} {number}").random() >= self.faults):
            return None
        fault = FAULTS[self.failed.total() % len(FAULTS)]
        self.failed[operation, fault] += 1
        return fault


def _operation(environ: dict[str, Any]) -> str:
    method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
    if "uploadId" in query or "uploads" in query:
        return "multipart"
    return "LIST" if "list-type" in query else method


def _hang_up(environ: dict[str, Any]) -> list[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return [b""]


def _cut(environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _hang_up(environ)


@contextmanager
def serving() -> Iterator[Unsteady]:
    """The server, where this process and those that it starts find it."""
    unsteady = Unsteady(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, unsteady, threaded=True, request_handler=_handler())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.delenv("AWS_PROFILE", raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield unsteady
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.shutdown()
            thread.join()
            server.server_close()


def new_bucket() -> str:
    """The URI of a folder in a new bucket of the server."""
    # The server keeps its buckets in this process, so each test has one of its own.
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/runs"


def deny_deletion(uri: str, prefix: str = "") -> None:
    """From now on, nobody may delete what begins with *prefix* below the bucket's folder *uri*."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject",
                 "Resource": f"arn:aws:s3:::{bucket}/{key}/{prefix}*"}  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3fs.S3FileSystem().call_s3("put_bucket_policy", Bucket=bucket, Policy=policy)


def fetch(uri: str, folder: os.PathLike[str]) -> None:
    """Copy what lies below *uri* to a local *folder*."""
    fs, root = s3fs.S3FileSystem(), uri.removeprefix("s3://")
    fs.get(f"{root}/", f"{os.fspath(folder)}/", recursive=True)


def _handler() -> type:
    from moto.moto_server.werkzeug_app import MotoRequestHandler

    class Quiet(MotoRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    return Quiet
