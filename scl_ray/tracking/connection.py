"""How this process talks to MLflow: its client, what it raises, and a look at its SQLite file without it."""

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scl_ray.config import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


FEW = 50  # trials whose runs are asked for one by one; reading back thousands takes seconds of the sweep's own


class TrackingError(RuntimeError):
    """MLflow is away or refuses. Its message is one sentence; nothing but the log is affected."""


def client_class() -> "type[MlflowClient]":
    # MLflow reads these when it is imported or at each call. Its own retries would take minutes.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # What goes wrong is raised as well; a traceback or a retry's note would only break up the live view.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)

    return MlflowClient


def client(uri: str) -> "MlflowClient":
    """A client of MLflow at *uri*; where that is an SQLite file not there yet, it is made whole or not at all."""
    made, path = client_class(), sqlite_path(uri)
    if path is not None and not path.exists():
        # MLflow makes it in many steps, and can neither use nor mend what a process that is killed over them leaves.
        with tempfile.TemporaryDirectory() as folder:
            made(f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(f"{folder}/mlflow.db", partial)
                if not path.exists():  # as it does when another sweep has made it meanwhile
                    os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    return made(uri)


class NotStored(Exception):
    """Where MLflow's server does not write artifacts for its clients, they write them with the client of that storage,
    whose errors (boto3's, say) are of its own kinds."""


def failures() -> tuple[type[Exception], ...]:
    """What MLflow and the libraries below it raise when it is away, refuses or lacks a database's driver."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError, NotStored


def is_away(error: BaseException) -> bool:
    """Whether *error*, one of `failures`, says that nobody answers for now; else MLflow is there and refuses, or never
    can be there."""
    import requests
    from sqlalchemy.exc import OperationalError

    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError, OperationalError)
    # A name in the address that is wrong looks the same as one whose machine is down; a certificate does not.
    return any(isinstance(e, passing) and not isinstance(e, requests.exceptions.SSLError) for e in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def reported(uri: str) -> Iterator[None]:
    """Raises what MLflow at *uri* raises as one TrackingError."""
    try:
        yield
    except failures() as error:
        raise TrackingError(unusable(uri, reason(error))) from error


@contextlib.contextmanager
def artifacts_stored() -> Iterator[None]:
    """Raises NotStored for what the storage of MLflow's artifacts raises, where it is none of `failures`."""
    try:
        yield
    except failures():
        raise
    except Exception as error:
        raise NotStored(f"its artifacts cannot be stored: {error}") from error


def runs_of(client: "MlflowClient", experiment_id: str, trials: Collection[str]) -> dict[str, list["Run"]]:
    """The sweep's run as ``""`` and by their ids those of *trials*, as far as there are any; others may be among
    them.

    Each has one run, or several, that which holds most first: a server that answers too late has made a run that it
    was asked for again.
    """
    few = ["tags.sweep LIKE '%'", *(f"tags.trial = '{trial}'" for trial in trials)]
    runs: dict[str, list[Run]] = {}
    for wanted in few if len(trials) <= FEW else [""]:
        for run in _found(client, experiment_id, wanted):
            if "trial" in run.data.tags or "sweep" in run.data.tags:
                runs.setdefault(run.data.tags.get("trial", ""), []).append(run)
    for several in runs.values():
        several.sort(key=lambda run: (-len(run.data.metrics), -len(run.data.tags), run.info.run_id))
    return runs


def _found(client: "MlflowClient", experiment_id: str, wanted: str) -> "Iterator[Run]":
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def reason(error: BaseException) -> str:
    """The first sentence of what is behind *error*; MLflow's own message buries it."""
    while (cause := error.__cause__ or error.__context__) and not isinstance(cause, LookupError):
        if isinstance(error, NotStored):
            break
        error = cause
    if "mlflow db upgrade" in str(error):
        return "its database was made by another version of MLflow; copy it, then run 'mlflow db upgrade' with this URI"
    return re.split(r"\.?\s*\n|(?<=[^.]{2})\. ", str(error).strip() or type(error).__name__)[0][:200]


def unusable(uri: str, why: str) -> str:
    return without_password(f"MLflow at {uri} cannot be used ({why})")


def without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def deleted(uri: str, name: str) -> InputError:
    return InputError(unusable(uri, f"its experiment {name!r} was deleted; restore it there or give another --name"))


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def query(path: Path, sql: str, *parameters: str | None) -> list[tuple[str, ...]]:
    """Rows of MLflow's SQLite file, without MLflow, whose import and first look at a database take seconds."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError:  # no such file or table yet
        return []


def is_writable(path: Path) -> bool:
    """Whether MLflow's SQLite file can be written, now or, where another process has locked it, later; true where there
    is none yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0)) as database:
            database.execute("BEGIN IMMEDIATE")  # which a file that cannot be written lets pass
            database.execute("CREATE TABLE probe (x)")
            database.rollback()
    except sqlite3.OperationalError as error:
        return not path.exists() or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    return True


def held(uri: str, name: str, tag: str) -> dict[str, tuple[str, str]]:
    """The value of *tag* and the status of those runs of the sweep *name* that have it, by trial, ``""`` for the
    sweep's own; as far as that can be told without MLflow."""
    path = sqlite_path(uri)
    if path is None:
        return {}
    rows = query(
        path,
        """SELECT coalesce(trial.value, ''), wanted.value, runs.status
           FROM runs JOIN experiments USING (experiment_id)
           JOIN tags wanted ON wanted.run_uuid = runs.run_uuid AND wanted.key = ?
           LEFT JOIN tags trial ON trial.run_uuid = runs.run_uuid AND trial.key = 'trial'
           WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'""",
        tag,
        name,
    )
    return {trial: (value, status) for trial, value, status in rows}
