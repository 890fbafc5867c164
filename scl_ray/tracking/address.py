"""Where a sweep is logged, whether MLflow answers there, and how to open it."""

import os
import shlex
import sqlite3
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from scl_ray.config import InputError
from scl_ray.tracking import connection

CHECK_SECONDS = 8.0

VARIABLE = "MLFLOW_TRACKING_URI"

PAGE = "#/experiments?workflowType=machine_learning"  # without which MLflow opens on what it has for language models


def tracking_uri(out: str) -> str:
    """Where sweeps below *out* are logged: ``MLFLOW_TRACKING_URI``, else the SQLite file ``<out>/mlflow.db``.

    Raises InputError for a remote *out* without that variable: SQLite needs a local file.
    """
    if uri := os.environ.get(VARIABLE):
        return uri
    if fsspec.utils.get_protocol(out) not in ("file", "local"):
        raise InputError(
            f"--out {out}: MLflow's default database needs a local folder; set MLFLOW_TRACKING_URI to an MLflow server"
        )
    folder = fsspec.core.strip_protocol(out)
    return f"sqlite:///{Path(folder).absolute() / 'mlflow.db'}"


def ui_command(out: str) -> str:
    """The shell command that opens what `tracking_uri` names in MLflow's web interface: that serves it, or for a server
    that opens `PAGE` of it."""
    uri = tracking_uri(out)
    python = sys.executable
    if Path(python).is_relative_to(Path.cwd()):
        python = os.path.relpath(python)
    if uri.startswith(("http://", "https://")):
        return shlex.join([python, "-m", "webbrowser", f"{connection.without_password(uri).rstrip('/')}/{PAGE}"])
    server = shlex.join([python, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri"])
    database = f'"${VARIABLE}"' if connection.without_password(uri) != uri else shlex.quote(uri)
    # Its job runner, which a sweep has no use for, starts eight processes and doubles the wait.
    return f"MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {server} {database}"


def check(uri: str, name: str | None = None) -> None:
    """Raise InputError, within about ten seconds, when MLflow at *uri* refuses, or cannot take a sweep called *name*.

    Nothing is raised while MLflow is away, or locked: the same address may serve a moment later.
    """
    path = connection.sqlite_path(uri)
    if path is not None:
        _check_file(path, uri, name)
        return
    if not _names_a_host(uri):
        raise InputError(f"{connection.without_password(uri)}: names no host; correct or unset {VARIABLE}")
    client_class = connection.client_class()
    refusals: list[InputError | None] = []

    def ask() -> None:
        try:
            experiment = client_class(uri).get_experiment_by_name(name or "Default")
        except connection.failures() as error:
            if not connection.is_away(error):
                why = connection.unusable(uri, connection.reason(error))
                refusals.append(InputError(f"{why}; correct or unset {VARIABLE}"))
        else:
            is_deleted = name is not None and experiment is not None and experiment.lifecycle_stage == "deleted"
            refusals.append(connection.deleted(uri, str(name)) if is_deleted else None)

    # Each kind of address has retries of its own, so the bound is set here.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    if refusals and refusals[0] is not None:
        raise refusals[0]


def _names_a_host(uri: str) -> bool:
    """Whether *uri* does, if it is a server's: MLflow would look for some other one."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    return parts.scheme not in ("http", "https") or bool(parts.hostname)


def _check_file(path: Path, uri: str, name: str | None) -> None:
    sql = "SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
    try:
        is_deleted = connection.query(path, sql, name)
        is_writable = connection.is_writable(path)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: is not a database of MLflow's ({error}); move it away") from error
    if is_deleted:
        raise connection.deleted(uri, str(name))
    if not is_writable:
        raise InputError(f"{path}: cannot be written, and MLflow logs to it; make it writable, or set {VARIABLE}")
