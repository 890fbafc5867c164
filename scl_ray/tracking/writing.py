"""Bringing MLflow up to date with a sweep's records and report."""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from scl_ray.storage import open_filesystem
from scl_ray.tracking import connection, description, entries, places
from scl_ray.tracking.connection import TrackingError
from scl_ray.tracking.entries import Data, Entry, Means, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

DIGEST = "scl_ray.digest"  # tag: hash of what a run holds, written last
PARENT = "mlflow.parentRunId"
BATCH = 900  # metrics per call; MLflow takes 1000 values, parameters and tags included

# Without it MLflow asks what an experiment is for, or opens it on traces of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}


def log_sweep(
    uri: str,
    name: str,
    records: Iterable[Record],
    means_by_trial: Mapping[str, Means],
    report_folder: str | None = None,
    resolved_config: Mapping[str, Any] | None = None,
    status: str = "FINISHED",
    seconds: float = math.inf,
) -> None:
    """Bring the sweep's log up to date.

    *records* are the trials' records; *means_by_trial* holds, for each trial whose evaluation is complete,
    ``<facet>/<metric>/<method>`` to the mean over correctly classified images (None where undefined).
    *report_folder* (a folder or fsspec URI) and *resolved_config* become artifacts of the parent run. *status* is the
    sweep's: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``; a trial that is neither failed, stopped early (then
    it is ``KILLED``) nor evaluated has it too. Raises TrackingError when MLflow is away, or is so slow that not all
    of it is begun within *seconds*; InputError when the experiment was deleted in MLflow.
    """
    deadline = time.monotonic() + seconds
    trials = [entries.of_trial(record, means_by_trial.get(record["trial"]), status) for record in records]
    artifacts = _files(report_folder)
    note = description.of_sweep(artifacts)
    if resolved_config is not None:
        artifacts["sweep.yaml"] = yaml.safe_dump(dict(resolved_config), sort_keys=False, allow_unicode=True).encode()
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in artifacts.items()}
    sweep = entries.of_sweep(name, status, note, trials, hashes)
    wanted = {entry.trial: (entry.digest, entry.status) for entry in [sweep, *trials]}
    with connection.reported(uri):
        places.follow(uri, name)
        if not wanted.items() <= connection.held(uri, name, DIGEST).items():
            _bring_up_to_date(connection.client(uri), uri, sweep, trials, artifacts, deadline)


def _bring_up_to_date(
    client: "MlflowClient", uri: str, sweep: Entry, trials: Sequence[Entry], artifacts: Mapping[str, bytes],
    deadline: float,
) -> None:  # fmt: skip
    from mlflow.tracking.context.registry import resolve_tags

    experiment_id = _experiment(client, uri, sweep.label)
    found = connection.runs_of(client, experiment_id, [entry.trial for entry in trials])
    for double in (run for several in found.values() for run in several[1:]):
        client.delete_run(double.info.run_id)
    runs = {trial: several[0] for trial, several in found.items()}
    ours = resolve_tags()  # who logs, and by which command
    parent = runs.get("") or client.create_run(experiment_id, tags=ours | {"sweep": sweep.label}, run_name=sweep.label)
    _write_data(client, parent, sweep.data)
    for entry in trials:
        if time.monotonic() > deadline:
            raise TrackingError(connection.unusable(uri, "it is too slow"))
        tags = ours | {"trial": entry.trial, PARENT: parent.info.run_id}
        run = runs.get(entry.trial) or client.create_run(experiment_id, entry.start, tags, entry.label)
        if run.data.tags.get(PARENT) != parent.info.run_id:  # its own was a double
            client.set_tag(run.info.run_id, PARENT, parent.info.run_id)
        if run.data.tags.get(DIGEST) != entry.digest:
            _write_data(client, run, entry.data)
            _write_trial(client, run, entry)
        _write_status(client, run, entry)
    if artifacts and parent.data.tags.get(DIGEST) != sweep.digest:
        _write_artifacts(client, parent.info.run_id, artifacts)
        _write_tags(client, parent, sweep)
    _write_status(client, parent, sweep)


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the sweep's experiment, made where there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        tags = KIND | {entries.NOTE: description.EXPERIMENT}
        return str(client.create_experiment(name, places.location(uri, name), tags))
    if experiment.lifecycle_stage == "deleted":
        raise connection.deleted(uri, name)
    return str(experiment.experiment_id)


def _write_data(client: "MlflowClient", run: "Run", data: Data | None) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = run.inputs.dataset_inputs if run.inputs else []
    if data is None or any(held.dataset.digest == data.digest for held in inputs):
        return
    source: tuple[str, dict[str, Any]] = ("code", {"tags": {"mlflow.source.name": "scl_ray.datasets"}})
    if data.source is not None:
        source = "local", {"uri": data.source}
    dataset = Dataset(data.name, data.digest, source[0], json.dumps(source[1]), profile=json.dumps(dict(data.profile)))
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", data.use)])])


def _write_trial(client: "MlflowClient", run: "Run", entry: Entry) -> None:
    from mlflow.entities import Metric, Param

    run_id, data = run.info.run_id, run.data
    logged = {point.step for point in client.get_metric_history(run_id, "loss")} if "loss" in data.metrics else set()
    # What one epoch measured goes into one call, so that its loss tells whether the epoch is logged.
    groups = [points for points in _epoch_points(entry.epochs, run.info.start_time) if points[0].step not in logged]
    changed = {key: value for key, value in entry.metrics.items() if data.metrics.get(key) != value}
    # At step 0, what is measured once is drawn as bars that compare runs, else as curves of a single point.
    # What is written for the first time has a time of its own, so that a call that is repeated says the same again.
    first, now = entry.end or run.info.start_time, int(1000 * time.time())
    groups += [[Metric(key, value, now if key in data.metrics else first, 0)] for key, value in changed.items()]
    for batch in _batches(groups):
        client.log_batch(run_id, metrics=batch, synchronous=True)
    parameters = [Param(key, value) for key, value in entry.parameters.items() if key not in data.params]
    _write_tags(client, run, entry, parameters)


def _write_tags(client: "MlflowClient", run: "Run", entry: Entry, parameters: Sequence["Param"] = ()) -> None:
    """The last that is written of an entry, since its digest says that all is."""
    from mlflow.entities import RunTag

    tags = [RunTag(key, value) for key, value in {**entry.tags, DIGEST: entry.digest}.items()]
    client.log_batch(run.info.run_id, params=parameters, tags=tags, synchronous=True)
    for key in entries.REMOVED:
        if key in run.data.tags and key not in entry.tags:
            client.delete_tag(run.info.run_id, key)


def _epoch_points(epochs: Iterable[Record], start: int) -> Iterator[list["Metric"]]:
    """One group of points per epoch, ``loss`` among them, at the time since *start* (ms) that training took."""
    from mlflow.entities import Metric

    seconds = 0.0
    for row in epochs:
        seconds += row.get("seconds") or 0.0
        time_ms = int(start + 1000 * seconds)
        # A loss that is not finite is null in a record, where JSON has no name for it.
        numbers = {key: math.nan if value is None else float(value) for key, value in entries.of_epoch(row).items()}
        yield [Metric(key, value, time_ms, row["epoch"]) for key, value in numbers.items()]


def _batches(groups: Iterable[list["Metric"]]) -> list[list["Metric"]]:
    """The groups' points in as few batches as MLflow's limit allows, no group divided."""
    batches: list[list[Metric]] = []
    for group in groups:
        if not batches or len(batches[-1]) + len(group) > BATCH:
            batches.append([])
        batches[-1].extend(group)
    return batches


def _write_status(client: "MlflowClient", run: "Run", entry: Entry) -> None:
    if run.info.status == entry.status:
        return
    if entry.status == "RUNNING":
        client.update_run(run.info.run_id, status=entry.status)
    else:
        client.set_terminated(run.info.run_id, entry.status, entry.end)


def _write_artifacts(client: "MlflowClient", run_id: str, artifacts: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path, data in artifacts.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        with connection.artifacts_stored():
            client.log_artifacts(run_id, folder)


def _files(folder: str | None) -> dict[str, bytes]:
    """The report's files by their path among the artifacts."""
    if folder is None:
        return {}
    fs, root = open_filesystem(folder)
    return {f"report/{PurePosixPath(path).relative_to(root)}": fs.cat_file(path) for path in sorted(fs.find(root))}
