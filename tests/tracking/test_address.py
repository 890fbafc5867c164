"""Where a sweep is logged, and that an address where it cannot be is refused."""

import http.server
import os
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tracking.logged import SUPCON, Stored, free_port

from scl_ray import tracking
from scl_ray.config import InputError
from scl_ray.tracking import address


def test_default_is_sqlite_beside_the_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking.tracking_uri(f"file://{tmp_path}/runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        tracking.tracking_uri("s3://bucket/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.tracking_uri("runs") == tracking.tracking_uri("s3://bucket/runs") == "http://mlflow:5000"
    page = "http://mlflow:5000/#/experiments?workflowType=machine_learning"
    assert tracking.ui_command("s3://bucket/runs").endswith(f"-m webbrowser '{page}'")


def test_deleted_experiment_is_named(uri: str) -> None:
    tracking.log_sweep(uri, "deleted", [], {})
    stored = Stored(uri, "deleted")
    tracking.check(uri, "deleted")
    stored.client.delete_experiment(stored.parent.info.experiment_id)
    with pytest.raises(InputError, match="experiment 'deleted' was deleted"):
        tracking.check(uri, "deleted")
    with pytest.raises(InputError, match="experiment 'deleted' was deleted"):
        tracking.log_sweep(uri, "deleted", [SUPCON], {})


def test_a_database_of_another_mlflow_is_named_with_the_way_out(uri: str, tmp_path: Path) -> None:
    tracking.log_sweep(uri, "older", [], {})
    older = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, closing(sqlite3.connect(older)) as copy:
        database.backup(copy)
        copy.execute("UPDATE alembic_version SET version_num = 'of old'")
        copy.commit()
    with pytest.raises(tracking.TrackingError, match="mlflow.db cannot be used .*run 'mlflow db upgrade'"):
        tracking.log_sweep(tracking.tracking_uri(str(tmp_path)), "older", [SUPCON], {})


def test_the_command_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@database/mlflow")
    command = tracking.ui_command("runs")
    assert "secret" not in command
    assert command.endswith('--backend-store-uri "$MLFLOW_TRACKING_URI"')


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    """The address of a web server that answers everything so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def refusal(uri: str) -> str:
    with pytest.raises(InputError) as caught:
        tracking.check(uri, "demo")
    message = str(caught.value)
    assert "MLFLOW_TRACKING_URI" in message
    assert "\n" not in message
    return message


def test_unusable_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(address, "CHECK_SECONDS", 120.0)  # so that a busy machine does not decide
    with answering(403, b"who are you?") as server:
        message = refusal(server)
        assert "403" in message
        assert "secret" not in message
    with answering(200, b"<html>the wrong server</html>") as server:
        assert "not in a valid JSON format" in refusal(server)
    for malformed in ("http://", "http://[::1", "http://127.0.0.1:port", "gopher://127.0.0.1:5000"):
        refusal(malformed)
    assert "maintenance mode" in refusal(str(tmp_path / "mlruns"))

    (tmp_path / "mlflow.db").write_text("these are my notes and not a database" * 100)
    with pytest.raises(InputError, match="is not a database"):
        tracking.check(tracking.tracking_uri(str(tmp_path)))


def test_a_server_that_is_away_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be back before the sweep is done; if it is not, the log is all that lacks something."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    tracking.check(f"http://127.0.0.1:{free_port()}", "demo")
    with answering(503, b"I am starting") as server:
        tracking.check(server, "demo")
    monkeypatch.setattr(address, "CHECK_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracking.check(f"http://127.0.0.1:{silent.getsockname()[1]}", "demo")


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user can look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_locked_database_is_not_refused_and_one_that_cannot_be_written_is(uri: str, readable: Path) -> None:
    tracking.log_sweep(uri, "unwritable", [], {})
    path = readable / "mlflow.db"
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, closing(sqlite3.connect(path)) as copy:
        database.backup(copy)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracking.check(f"sqlite:///{path}", "unwritable")
    path.chmod(0o444)
    user = os.geteuid()
    if user == 0:  # who may write whatever the mode says
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            tracking.check(f"sqlite:///{path}", "unwritable")
    finally:
        os.seteuid(user)
