"""Where a sweep stands, told by its store alone: also while somebody else's process runs it, and without its data."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from scl_ray import lock
from scl_ray.config import Sweep
from scl_ray.results import missing, open_results
from scl_ray.store import FAILURES, Store, open_store

State = Literal["waiting", "training", "evaluating", "done", "failed", "stopped"]
UNTRAINED: tuple[State, ...] = ("waiting", "training", "failed")
STATES: tuple[State, ...] = ("waiting", "training", "evaluating", "done", "failed", "stopped")


def describe(sweep: Sweep, out: str, console: Console) -> None:
    """Print who runs the *sweep* below *out*, its trials by state, the scores held of those wanted, what is missing.

    It is the last run's plan that is compared with what is there. Raises InputError where there is no such sweep.
    """
    holder = lock.holder(open_store(out, sweep.name))
    results = open_results(out, sweep.name)
    store, plan, records = results.store, results.plan, results.records
    files = _files(store)
    cells, lacks = len(plan["cells"]), dict.fromkeys(plan["trials"], 0)
    row: Any
    for row in missing(results).itertuples():
        lacks[row.trial] += cells * plan["images"] if row.what == "training" else row.last - row.first + 1
    failures: dict[str, str] = store.read_json(FAILURES) or {}
    states = {trial: _state(trial, records.get(trial), lacks[trial], files, failures) for trial in plan["trials"]}
    by_state: dict[State, list[str]] = defaultdict(list)
    for trial, state in states.items():
        by_state[state].append(trial)

    console.print(f"sweep   {store.name}: {_runner(holder)}", soft_wrap=True)
    counts = ", ".join(f"{len(by_state[state]):,} {state}" for state in STATES if by_state[state])
    console.print(f"trials  {len(states):,}: {counts}")
    # Of what was stopped early nothing is wanted any more.
    going = [trial for trial in states if states[trial] != "stopped"]
    wanted, lacking = len(going) * cells * plan["images"], sum(lacks[trial] for trial in going)
    console.print(f"scores  {wanted - lacking:,} of {wanted:,}")
    labels = _labels(sweep, plan, records, [*by_state["training"], *by_state["evaluating"], *by_state["failed"]])
    for trial in by_state["training"]:
        console.print(f"training    {labels[trial]} ({trial})")
    for trial in by_state["evaluating"]:
        held = cells * plan["images"] - lacks[trial]
        console.print(f"evaluating  {labels[trial]} ({trial}): {held:,} of {cells * plan['images']:,} scores")
    for trial in by_state["stopped"]:
        console.print(f"stopped     {records[trial]['label']} ({trial}): {records[trial]['reason']}", soft_wrap=True)
    for trial in by_state["failed"]:
        why = failures.get(trial) or records[trial]["error"]
        console.print(f"failed      {labels[trial]} ({trial}): {why}", soft_wrap=True)
    if (latest := max(filter(None, files.values()), default=None)) is not None:
        console.print(f"written {latest:%F %T} UTC, for the last time")
    trained = [trial for trial in by_state["failed"] if f"checkpoints/{trial}/checkpoint.json" in files]
    to_train = sum(len(by_state[state]) for state in UNTRAINED) - len(trained)
    what = ", ".join([
        *([f"the training of {to_train:,} trial{'s' * (to_train > 1)}"] if to_train else []),
        *([f"{lacking:,} scores"] if lacking else []),
        *(["the report"] if "report/index.html" not in files else []),
    ])  # fmt: skip
    console.print(f"missing {what or 'nothing: the sweep is complete'}")
    if what and holder is None:
        console.print("go on   by the command that started it: what is finished is not computed again")


def _state(
    trial: str, record: Mapping[str, Any] | None, lacks: int, files: Collection[str], failures: Collection[str]
) -> State:
    """The trial's state, as far as the store tells: of one that trains, it holds what resuming needs.

    failures: the trials that had failed at the end of the last run.
    """
    checkpoint = f"checkpoints/{trial}"
    is_trained = record is not None and record["status"] == "trained" and f"{checkpoint}/checkpoint.json" in files
    if is_trained and not lacks:
        return "done"
    if record is not None and record["status"] == "stopped":
        return "stopped"
    if trial in failures or (record is not None and record["status"] == "failed"):
        return "failed"
    if is_trained:
        return "evaluating"
    return "training" if f"{checkpoint}/resume.pt" in files else "waiting"


def _runner(holder: lock.Holder | None) -> str:
    if holder is None:
        return "nobody runs it"
    silent = time.time() - holder["renewed"] / 1e9
    # Clocks of two hosts may differ by a few seconds.
    if silent > 2 * lock.LEASE:
        return f"{lock.describe(holder)} ran it and has not been heard of for {silent / 60:.0f} min"
    return f"run by {lock.describe(holder)}"


def _labels(
    sweep: Sweep, plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], shown: Sequence[str]
) -> dict[str, str]:
    """What people call the trials: by their records, or by the configuration if that is the one that was run."""
    labels = {trial: records[trial]["label"] for trial in shown if trial in records}
    if len(labels) < len(shown):
        of = (plan["dataset"]["fingerprint"], plan["dataset"]["image_size"])
        labels = {trial.identity(*of): trial.label for trial in sweep.trials()} | labels
    return {trial: labels.get(trial, "a trial without a record") for trial in shown}


def _files(store: Store) -> dict[str, datetime | None]:
    """When each file was written, if the filesystem tells, by its path; not those of the lock or of Tune's scratch."""
    found: dict[str, datetime | None] = {}
    if isinstance(store.fs, LocalFileSystem):
        for folder, folders, names in os.walk(store.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a file that was being written has its name by now
                    path = Path(folder, name)
                    found[str(path.relative_to(store.root))] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    else:
        for full, info in store.fs.find(store.root, detail=True).items():
            found[full.removeprefix(f"{store.root}/")] = info.get("LastModified") or info.get("last_modified")
    return {path: when for path, when in found.items() if not path.startswith(".")}
