"""What the run of a sweep and those of its trials are to hold, made of their records alone."""

import hashlib
import json
import posixpath
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from scl_ray.specs import tracking_name

Record = Mapping[str, Any]  # trials/<trial>.json; of a trial in training at least trial, label and configuration
Means = Mapping[str, float | None]

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's or an experiment's description
LONGEST_NAME = 250  # characters of a metric's name
REMOVED = (NOTE, "error")  # tags that are removed when there is nothing to say any more

# A trial's record calls what calibrates its scores a temperature; supcon's parameter is one too.
_RENAMED = {"temperature": "calibration/temperature"}


class Data(NamedTuple):
    """The dataset as an input of a run. *use* is what the run did with it, *source* where it was read."""

    name: str
    digest: str
    use: str
    source: str | None
    profile: Mapping[str, Any]


class Entry(NamedTuple):
    """What one run is to hold. The sweep's own has no trial. A trial's begins and ends with its training, whenever it
    is logged. ``digest`` is of all that may change but the status."""

    label: str
    status: str
    digest: str = ""
    trial: str = ""
    start: int | None = None  # in ms, as `end`
    end: int | None = None
    parameters: Mapping[str, str] = {}
    epochs: tuple[Record, ...] = ()
    metrics: Mapping[str, float] = {}
    tags: Mapping[str, str] = {}  # those of `REMOVED` that are missing here are removed
    data: Data | None = None


def of_sweep(name: str, status: str, note: str, trials: list[Entry], hashes: Mapping[str, str]) -> Entry:
    """The sweep's own run. *note* is its description; *hashes* are those of its artifacts by their path."""
    entry = Entry(name, status, tags={NOTE: note} if note else {}, data=next((t.data for t in trials if t.data), None))
    return entry._replace(digest=_digest([entry._replace(status=""), hashes]))


def of_trial(record: Record, means: Means | None, sweep_status: str) -> Entry:
    """One trial's run. *means*: of each ``<facet>/<metric>/<method>``, where its evaluation is complete."""
    status = sweep_status
    if record.get("status") == "failed":
        status = "FAILED"
    elif record.get("status") == "stopped":
        status = "KILLED"
    elif record.get("status") == "trained" and means is not None:
        status = "FINISHED"
    configuration = record["configuration"]
    measured = {_RENAMED.get(key, key): value for key, value in record.get("metrics", {}).items()}
    took = {"system/training_seconds": record.get("seconds"), "system/workers": record.get("workers")}
    metrics = {**_numbers(configuration), **took, **measured, **(means or {})}
    entry = Entry(
        label=record["label"],
        status=status,
        trial=record["trial"],
        parameters=_parameters(configuration),
        epochs=tuple(record.get("epochs", ())),
        metrics={_metric_name(key): float(value) for key, value in metrics.items() if value is not None},
        tags=_tags(record),
        data=_data(record),
    )
    end = int(1000 * datetime.fromisoformat(record["finished"]).timestamp()) if record.get("finished") else None
    seconds = sum(row.get("seconds") or 0.0 for row in entry.epochs)
    start = (end or int(1000 * time.time())) - int(1000 * seconds)
    return entry._replace(digest=_digest(entry._replace(status="")), start=start, end=end)


def _metric_name(name: str) -> str:
    """The *name* as MLflow takes it: with its characters, as a path that no other spelling has, and not too long."""
    allowed = posixpath.normpath("/".join(map(tracking_name, name.split("/"))))
    if len(allowed) <= LONGEST_NAME:
        return allowed
    end = f":{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f"{allowed[: LONGEST_NAME - len(end)]}{end}"


def of_epoch(row: Record) -> dict[str, float | None]:
    """What one epoch measured, by metric; speed among the system's metrics, which MLflow shows apart."""
    system = {"seconds": "system/epoch_seconds", "images_per_second": "system/images_per_second"}
    return {_metric_name(system.get(key, key)): value for key, value in row.items() if key != "epoch"}


def _parameters(configuration: Mapping[str, Any]) -> dict[str, str]:
    parameters = {
        "objective": configuration["objective"]["name"],
        "backbone": configuration["backbone"],
        "seed": configuration["seed"],
        "dataset": configuration["dataset"]["name"],
        **configuration["training"],
    }
    own = _of_objective(configuration)
    parameters |= {key if key not in parameters else f"objective.{key}": value for key, value in own.items()}
    return {
        tracking_name(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in parameters.items()
        if value is not None
    }


def _numbers(configuration: Mapping[str, Any]) -> dict[str, float]:
    """The objective's numbers, as metrics too: MLflow compares and orders parameters as text."""
    own = _of_objective(configuration)
    return {f"objective/{key}": v for key, v in own.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _of_objective(configuration: Mapping[str, Any]) -> dict[str, Any]:
    objective = {key: value for key, value in configuration["objective"].items() if key != "name"}
    return {**objective.pop("parameters", {}), **objective}


def _tags(record: Record) -> dict[str, str]:
    """``objective_label`` groups seeds of one objective; what went wrong is the run's description too."""
    tags = {key: record.get(key) for key in ("objective_label", "device", "host", "error")}
    what = {"failed": "Failed", "stopped": "Stopped"}.get(record.get("status", ""))
    why = record.get("error") or record.get("reason")
    tags[NOTE] = f"{what}: {why}" if what and why else None
    return {key: value for key, value in tags.items() if value}


def _data(record: Record) -> Data | None:
    about = record.get("dataset")
    if about is None:
        return None
    configuration = record["configuration"]
    return Data(
        name=about["name"],
        digest=about["fingerprint"][:12],
        use="training and evaluation" if configuration["training"] else "evaluation",
        source=configuration["dataset"].get("root"),
        profile={key: about[key] for key in ("image_size", "classes") if key in about},
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=float).encode()).hexdigest()
