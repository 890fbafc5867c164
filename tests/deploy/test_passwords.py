"""The Job that makes passwords, against a server that keeps one Secret as Kubernetes does."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

PLACE = "/api/v1/namespaces/scl-ray/secrets/passwords"


class Secrets(ThreadingHTTPServer):
    """One Secret, which a merge patch changes, for whoever has the token."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Secrets

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer token" or self.path != PLACE:
            self.send_error(403)
            return
        body = json.dumps({"kind": "Secret", **({"data": self.server.data} if self.server.data else {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PATCH(self) -> None:
        change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Content-Type"] == "application/merge-patch+json":
            self.server.data |= change["data"]
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Secrets]:
    with Secrets() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "namespace").write_text("scl-ray")
    (tmp_path / "token").write_text("token")
    return tmp_path


def _make(server: Secrets, account: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "k8s/base/passwords.py"
    environment = {"ACCOUNT": str(account), "SERVER": f"http://127.0.0.1:{server.server_port}"}
    command = [sys.executable, str(script), "passwords", *keys]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_what_is_missing_is_made_and_what_is_there_stays(server: Secrets, account: Path) -> None:
    server.data = {"postgres": base64.b64encode(b"chosen").decode()}
    first = _make(server, account, "mlflow", "postgres")
    assert first.returncode == 0, first.stderr
    made = dict(server.data)
    assert base64.b64decode(made["postgres"]) == b"chosen"
    assert len(base64.b64decode(made["mlflow"])) == 64
    second = _make(server, account, "mlflow", "postgres", "mlflow-secret-key")
    assert second.returncode == 0, second.stderr
    assert server.data.items() > made.items()
    assert server.data["mlflow-secret-key"] != made["mlflow"]
    for word in map(base64.b64decode, server.data.values()):
        assert word.decode() not in first.stdout + first.stderr + second.stdout + second.stderr


def test_without_leave_the_job_fails_and_is_tried_again(server: Secrets, account: Path) -> None:
    (account / "token").write_text("another")
    assert _make(server, account, "mlflow").returncode != 0
    assert not server.data
