"""The sweep in MLflow: one experiment per sweep name, a parent run for the sweep, a child run per trial.

What is logged is read back from MLflow, by experiment and by the tags ``sweep`` and ``trial``, and only what is new is
written. So logging is idempotent: it may stop anywhere, and running it again completes it and repeats nothing.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shlex
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
import yaml

from scl_ray.config import InputError
from scl_ray.specs import tracking_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

DIGEST = "scl_ray.digest"  # tag: hash of what a run holds, written last
BATCH = 900  # metrics per call; MLflow takes 1000 values, parameters and tags included
CHECK_SECONDS = 8.0

VARIABLE = "MLFLOW_TRACKING_URI"

Record = Mapping[str, Any]  # trials/<trial>.json; of a trial in training at least trial, label and configuration
Means = Mapping[str, float | None]


class TrackingError(RuntimeError):
    """MLflow is away or refuses. Its message is one sentence; nothing but the log is affected."""


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
    """The shell command that opens what `tracking_uri` names in MLflow's web interface."""
    uri = tracking_uri(out)
    python = sys.executable
    if Path(python).is_relative_to(Path.cwd()):
        python = os.path.relpath(python)
    if uri.startswith(("http://", "https://")):
        return shlex.join([python, "-m", "webbrowser", _without_password(uri)])
    server = shlex.join([python, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri])
    # Its job runner, which a sweep has no use for, starts eight processes and doubles the wait.
    return f"MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {server}"


def check(uri: str, name: str | None = None) -> None:
    """Raise InputError, within about ten seconds, unless MLflow answers at *uri* and can take a sweep called *name*."""
    path = _sqlite_path(uri)
    if path is not None:
        # Without MLflow, whose import and first look at a database take seconds.
        try:
            deleted = _query(path, "SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'", name)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: is not a database of MLflow's ({error}); move it away") from error
        if deleted:
            raise _deleted(uri, str(name))
        return
    client_class = _client_class()
    refusals: list[InputError | None] = []

    def ask() -> None:
        try:
            experiment = client_class(uri).get_experiment_by_name(name or "Default")
        except _failures() as error:
            refusals.append(InputError(f"{_unusable(uri, _reason(error))}; start it, or correct or unset {VARIABLE}"))
        else:
            deleted = name is not None and experiment is not None and experiment.lifecycle_stage == "deleted"
            refusals.append(_deleted(uri, str(name)) if deleted else None)

    # Each kind of address has retries of its own, so the bound is set here.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    if not refusals:
        raise InputError(f"{_unusable(uri, f'no answer in {CHECK_SECONDS:g} s')}; correct or unset {VARIABLE}")
    if refusals[0] is not None:
        raise refusals[0]


def log_sweep(
    uri: str,
    name: str,
    records: Iterable[Record],
    means_by_trial: Mapping[str, Means],
    report_folder: str | None = None,
    resolved_config: Mapping[str, Any] | None = None,
    status: str = "FINISHED",
) -> None:
    """Bring the sweep's log up to date.

    *records* are the trials' records; *means_by_trial* holds, for each trial whose evaluation is complete,
    ``<facet>/<metric>/<method>`` to the mean over correctly classified images (None where undefined).
    *report_folder* (a folder or fsspec URI) and *resolved_config* become artifacts of the parent run. *status* is the
    sweep's: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``; a trial that is neither failed, stopped early (then
    it is ``KILLED``) nor evaluated has it too. Raises TrackingError when MLflow is away, InputError when the experiment
    was deleted in MLflow.
    """
    trials = [_trial(record, means_by_trial.get(record["trial"]), status) for record in records]
    artifacts = _files(report_folder)
    if resolved_config is not None:
        artifacts["sweep.yaml"] = yaml.safe_dump(dict(resolved_config), sort_keys=False, allow_unicode=True).encode()
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in artifacts.items()}
    sweep = _Entry(name, status, digest=_digest(hashes))
    wanted = {entry.trial: (entry.digest, entry.status) for entry in [sweep, *trials]}
    try:
        if not wanted.items() <= _held(uri, name).items():
            _bring_up_to_date(_client_class()(uri), uri, sweep, trials, artifacts)
    except _failures() as error:
        raise TrackingError(_unusable(uri, _reason(error))) from error


class _Entry(NamedTuple):
    """What one run is to hold. The sweep's own has no trial."""

    label: str
    status: str
    digest: str
    trial: str = ""
    start: int | None = None
    parameters: Mapping[str, str] = {}
    epochs: tuple[Record, ...] = ()
    metrics: Mapping[str, float] = {}
    error: str | None = None


def _trial(record: Record, means: Means | None, sweep_status: str) -> _Entry:
    status = sweep_status
    if record.get("status") == "failed":
        status = "FAILED"
    elif record.get("status") == "stopped":
        status = "KILLED"
    elif record.get("status") == "trained" and means is not None:
        status = "FINISHED"
    metrics = {**record.get("metrics", {}), **(means or {})}
    entry = _Entry(
        label=record["label"],
        status=status,
        digest="",
        trial=record["trial"],
        parameters=_parameters(record["configuration"]),
        epochs=tuple(record.get("epochs", ())),
        metrics={_metric_name(key): float(value) for key, value in metrics.items() if value is not None},
        error=record.get("error"),
    )
    finished = datetime.fromisoformat(record["finished"]).timestamp() if record.get("finished") else time.time()
    start = finished - sum(row.get("seconds") or 0.0 for row in entry.epochs)
    return entry._replace(digest=_digest(entry._replace(status="")), start=int(1000 * start))


def _parameters(configuration: Mapping[str, Any]) -> dict[str, str]:
    objective = dict(configuration["objective"])
    parameters = {
        "objective": objective.pop("name"),
        "backbone": configuration["backbone"],
        "seed": configuration["seed"],
        "dataset": configuration["dataset"]["name"],
        **configuration["training"],
    }
    own = {**objective.pop("parameters", {}), **objective}
    parameters |= {key if key not in parameters else f"objective.{key}": value for key, value in own.items()}
    return {
        tracking_name(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in parameters.items()
        if value is not None
    }


def _metric_name(name: str) -> str:
    return "/".join(map(tracking_name, name.split("/")))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=float).encode()).hexdigest()


def _runs(client: "MlflowClient", experiment_id: str) -> dict[str, "Run"]:
    """The sweep's run as ``""`` and each trial's by its id."""
    runs: dict[str, Run] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            if "trial" in run.data.tags or "sweep" in run.data.tags:
                runs.setdefault(run.data.tags.get("trial", ""), run)
        token = page.token
        if not token:
            return runs


def _bring_up_to_date(
    client: "MlflowClient", uri: str, sweep: _Entry, trials: Iterable[_Entry], artifacts: Mapping[str, bytes]
) -> None:
    experiment = client.get_experiment_by_name(sweep.label)
    if experiment is None:
        experiment_id = client.create_experiment(sweep.label, artifact_location=_artifact_location(uri, sweep.label))
    elif experiment.lifecycle_stage == "deleted":
        raise _deleted(uri, sweep.label)
    else:
        experiment_id = experiment.experiment_id
    runs = _runs(client, experiment_id)
    parent = runs.get("") or client.create_run(experiment_id, tags={"sweep": sweep.label}, run_name=sweep.label)
    for entry in trials:
        tags = {"trial": entry.trial, "mlflow.parentRunId": parent.info.run_id}
        run = runs.get(entry.trial) or client.create_run(experiment_id, entry.start, tags, entry.label)
        _write_trial(client, run, entry)
        _write_status(client, run, entry.status)
    if artifacts and parent.data.tags.get(DIGEST) != sweep.digest:
        _write_artifacts(client, parent.info.run_id, artifacts)
        client.set_tag(parent.info.run_id, DIGEST, sweep.digest, synchronous=True)
    _write_status(client, parent, sweep.status)


def _write_trial(client: "MlflowClient", run: "Run", entry: _Entry) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id, data = run.info.run_id, run.data
    if data.tags.get(DIGEST) == entry.digest:
        return
    logged = {point.step for point in client.get_metric_history(run_id, "loss")} if "loss" in data.metrics else set()
    # What one epoch measured goes into one call, so that its loss tells whether the epoch is logged.
    groups = [points for points in _epoch_points(entry.epochs, run.info.start_time) if points[0].step not in logged]
    last, now = max((row["epoch"] for row in entry.epochs), default=0), int(1000 * time.time())
    changed = {key: value for key, value in entry.metrics.items() if data.metrics.get(key) != value}
    groups += [[Metric(key, value, now, last)] for key, value in changed.items()]
    *batches, final = _batches(groups)
    for batch in batches:
        client.log_batch(run_id, metrics=batch, synchronous=True)
    tags = {DIGEST: entry.digest} | ({"error": entry.error} if entry.error else {})
    client.log_batch(
        run_id,
        final,
        [Param(key, value) for key, value in entry.parameters.items() if key not in data.params],
        [RunTag(key, value) for key, value in tags.items()],
        synchronous=True,
    )
    if "error" in data.tags and not entry.error:
        client.delete_tag(run_id, "error")


def _epoch_points(epochs: Iterable[Record], start: int) -> Iterator[list["Metric"]]:
    """One group of points per epoch, ``loss`` among them, at the time since *start* (ms) that training took."""
    from mlflow.entities import Metric

    seconds = 0.0
    for row in epochs:
        seconds += row.get("seconds") or 0.0
        time_ms = int(start + 1000 * seconds)
        # A loss that is not finite is null in a record, where JSON has no name for it.
        numbers = {key: math.nan if value is None else float(value) for key, value in row.items() if key != "epoch"}
        yield [Metric(_metric_name(key), value, time_ms, row["epoch"]) for key, value in numbers.items()]


def _batches(groups: Iterable[list["Metric"]]) -> list[list["Metric"]]:
    """The groups' points in as few batches as MLflow's limit allows (at least one), no group divided."""
    batches: list[list[Metric]] = [[]]
    for group in groups:
        if len(batches[-1]) + len(group) > BATCH:
            batches.append([])
        batches[-1].extend(group)
    return batches


def _write_status(client: "MlflowClient", run: "Run", status: str) -> None:
    if run.info.status == status:
        return
    if status == "RUNNING":
        client.update_run(run.info.run_id, status=status)
    else:
        client.set_terminated(run.info.run_id, status)


def _write_artifacts(client: "MlflowClient", run_id: str, artifacts: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path, data in artifacts.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        client.log_artifacts(run_id, folder)


def _files(folder: str | None) -> dict[str, bytes]:
    """The report's files by their path among the artifacts."""
    if folder is None:
        return {}
    fs, root = fsspec.core.url_to_fs(folder)
    return {f"report/{PurePosixPath(path).relative_to(root)}": fs.cat_file(path) for path in sorted(fs.find(root))}


def _client_class() -> "type[MlflowClient]":
    # MLflow reads these when it is imported or at each call. Its own retries would take minutes.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # What goes wrong is raised as well; a traceback or a retry's note would only break up the live view.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)

    return MlflowClient


def _failures() -> tuple[type[Exception], ...]:
    """What MLflow and the libraries below it raise when it is away, refuses or lacks a database's driver."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError


def _reason(error: BaseException) -> str:
    """The first sentence of what is behind *error*; MLflow's own message buries it."""
    while (cause := error.__cause__ or error.__context__) and not isinstance(cause, LookupError):
        error = cause
    return re.split(r"\.?\s*\n|(?<=[^.]{2})\. ", str(error).strip() or type(error).__name__)[0][:200]


def _unusable(uri: str, reason: str) -> str:
    return _without_password(f"MLflow at {uri} cannot be used ({reason})")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _deleted(uri: str, name: str) -> InputError:
    return InputError(_unusable(uri, f"its experiment {name!r} was deleted; restore it there or give another --name"))


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _artifact_location(uri: str, name: str) -> str | None:
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts" / name).as_uri()


def _query(path: Path, sql: str, *parameters: str | None) -> list[tuple[Any, ...]]:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError:  # no such file or table yet
        return []


def _held(uri: str, name: str) -> dict[str, tuple[str, str]]:
    """The digest and status of the sweep's runs, as far as that can be told without MLflow and its slow start."""
    path = _sqlite_path(uri)
    if path is None:
        return {}
    rows = _query(
        path,
        """SELECT coalesce(trial.value, ''), digest.value, runs.status
           FROM runs JOIN experiments USING (experiment_id)
           JOIN tags digest ON digest.run_uuid = runs.run_uuid AND digest.key = ?
           LEFT JOIN tags trial ON trial.run_uuid = runs.run_uuid AND trial.key = 'trial'
           WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'""",
        DIGEST,
        name,
    )
    return {trial: (digest, status) for trial, digest, status in rows}
