"""What every run does around its work: checks of the store, the plan on disk; at the end report, log and summary."""

import contextlib
import logging
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import yaml
from rich.console import Console

from scl_ray import apart, events, interruption, mending, tracking
from scl_ray import plan as planning
from scl_ray.config import InputError
from scl_ray.plan import Plan
from scl_ray.sealing import Damaged
from scl_ray.storage import StorageError
from scl_ray.store import FAILURES, Store
from scl_ray.summing_up import SummedUp, sum_up
from scl_ray.tracking import Record

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

STOP_SECONDS = 2.5  # what MLflow has to hear that a sweep was stopped
RETRIES_NAMED = 5
LOG_SECONDS = 300.0  # what all else that MLflow lacks may add; what it had no time for, the same command logs
NETWORKS_SECONDS = 60.0  # what copying networks to MLflow may add to a run's end; most are copied while it runs


def check_writable(store: Store, out: str) -> None:
    """Raise InputError unless results can be written below *out*."""
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        store.write(probe, bytes(2**16))  # on a full disk an empty file could be written
        store.remove(probe)
    except Exception as error:  # every remote filesystem raises errors of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"--out {out}: cannot be written ({reason}); give another folder") from error


def check_kind(store: Store, kind: str) -> None:
    """Raise InputError where the store holds something else than a *kind*: sweep or comparison."""
    plan = store.read_json("plan.json")
    held = kind if plan is None else plan.get("kind", "sweep")
    if held != kind:
        raise InputError(f"{store.name}: holds a {held}, with which a {kind} does not mix; choose another --name")


def write_plan(store: Store, plan: Plan, dataset: "Dataset", *, is_to_run: bool = True) -> None:
    """Write what this run covers, unless it is the same as the last run's and nothing is to be made of it: it is all
    done, or not even *is_to_run*."""
    resolved = yaml.safe_dump(plan.sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode()
    is_same = store.read("sweep.yaml") == resolved and store.read_json("plan.json") == plan.record()
    if is_same and not (plan.work and is_to_run) and store.exists(mending.SAMPLE_IMAGES):
        return
    # First of all: an older report must not pass for this run's, should the run end before its own is written.
    store.remove("report/index.html")
    store.remove(FAILURES)
    store.write_table(mending.SAMPLE_IMAGES, _sample_images(plan, dataset))
    store.write("sweep.yaml", resolved)
    # Last, since it says that the others are this run's.
    store.write_json("plan.json", plan.record())


def _sample_images(plan: Plan, dataset: "Dataset") -> pa.Table:
    indices = dataset.evaluation_order[: min(planning.SAMPLE, plan.images)]
    images = dataset.test_images[indices]
    return pa.table({
        "image": pa.array(indices, pa.int32()),
        "label": pa.array(dataset.test_labels[indices], pa.int32()),
        **{name: pa.array([size] * len(images), pa.int32())
           for name, size in zip(("channels", "height", "width"), images.shape[1:], strict=True)},
        "pixels": pa.array(list(images.reshape(len(images), -1)), pa.list_(pa.uint8())),
    })  # fmt: skip


@contextlib.contextmanager
def stop_is_logged(uri: str, name: str) -> Iterator[None]:
    """When the block is interrupted, MLflow's run of the sweep is marked as killed, if MLflow answers quickly."""
    try:
        yield
    except KeyboardInterrupt:
        if "mlflow" in sys.modules:  # else its runs were not touched, and it takes seconds to import
            marking = threading.Thread(target=_mark_killed, args=(uri, name), daemon=True)
            marking.start()
            marking.join(STOP_SECONDS)
        raise


def _mark_killed(uri: str, name: str) -> None:
    # Where MLflow is away, the run goes on being called running until the sweep is run again.
    with contextlib.suppress(tracking.TrackingError, InputError):
        tracking.log_sweep(uri, name, (), {}, status="KILLED")


def finish(
    plan: Plan, store: Store, out: str, uri: str, failures: Mapping[str, str], is_logged: bool, console: Console,
    retries: Sequence[tuple[str, str]] = (),
) -> int:  # fmt: skip
    """Report, log and sum up what is there now. Returns 0, or 1 when something failed.

    failures: trial to reason. is_logged: whether MLflow has kept up so far; when it has not, it is not asked again.
    retries: trial and reason of each piece of work that was lost and started again.
    """
    unwritten: Exception | None = None
    is_to_write = False
    try:
        if failures:
            store.write_json(FAILURES, dict(failures))
        store.remove_superseded(plan.trials.keys() - failures.keys(), plan.cells)
        is_to_write = not store.exists("report/index.html")
    except (StorageError, Damaged) as error:
        unwritten = error
    try:
        # Every score is read for it, which takes the more memory the more trials there are.
        summed_up = apart.call(sum_up, out, plan.sweep.name, is_to_write, is_logged)
    except (apart.Lost, StorageError, Damaged) as error:
        summed_up, is_logged = SummedUp(None, {}, error), False
    unwritten = unwritten or summed_up.unwritten
    records = store.records(list(plan.trials))
    if is_logged:
        is_logged = _log(plan, store, records, summed_up.means, out, uri, failures, console)
    stopped = {trial: record["reason"] for trial, record in records.items() if record["status"] == "stopped"}
    if summed_up.table is not None:
        console.print(summed_up.table)
    _summarise(plan, out, uri, stopped, failures, retries, console)
    if not is_logged:
        console.print("MLflow lacks some of the log; the results are complete, and the same command logs the rest")
    if unwritten is not None:
        console.print(f"failed  the report: {unwritten}", style="red")
    code = 1 if failures or unwritten is not None else 0
    events.say("run ended", code=code, failed=len(failures), stopped=len(stopped), retries=len(retries))
    return code


def _log(
    plan: Plan, store: Store, records: Mapping[str, Record], means: Mapping[str, Mapping[str, float | None]], out: str,
    uri: str, failures: Mapping[str, str], console: Console,
) -> bool:  # fmt: skip
    """Bring MLflow up to date with the store. Returns False when it cannot be used."""
    try:
        tracking.log_sweep(
            uri,
            plan.sweep.name,
            records.values(),
            {trial: means[trial] for trial in means.keys() - failures.keys()},
            f"{out}/{plan.sweep.name}/report",
            plan.sweep.model_dump(mode="json"),
            status="FAILED" if failures else "FINISHED",
            seconds=LOG_SECONDS,
        )
        lacking = _log_networks(plan, store, records, uri, console)
    except (tracking.TrackingError, InputError) as error:  # InputError: its experiment was deleted meanwhile
        console.print(str(error), style="yellow")
        return False
    if lacking:
        console.print(f"MLflow lacks {len(lacking)} networks; the same command logs more")
    return True


def _log_networks(plan: Plan, store: Store, records: Mapping[str, Record], uri: str, console: Console) -> set[str]:
    """Copy to MLflow the networks that it lacks. Returns the trials that still lack theirs.

    Of a trial that was finished before, nothing else has read the checkpoint's bytes: one that is damaged is removed,
    and the same command makes it anew.
    """
    deadline = time.monotonic() + NETWORKS_SECONDS
    damaged: set[str] = set()
    while True:
        try:
            return damaged | tracking.log_networks(
                uri, plan.sweep.name, store, records.values(), lambda: time.monotonic() < deadline
            )
        except Damaged as error:
            if error.trial is None or error.trial in damaged:
                raise
            mending.mend_checkpoint(store, plan, error.trial, console)
            damaged.add(error.trial)


def _summarise(
    plan: Plan, out: str, uri: str, stopped: Mapping[str, str], failures: Mapping[str, str],
    retries: Sequence[tuple[str, str]], console: Console,
) -> None:  # fmt: skip
    """Print what was lost and done again, what was stopped, what failed, and where everything is."""
    if retries:
        console.print(f"{len(retries)} {'retry' if len(retries) == 1 else 'retries'}: what was lost was done again")
    for trial, reason in retries[:RETRIES_NAMED]:
        console.print(f"again   {plan.trials[trial].label} ({trial}): {reason}", style="yellow")
    if len(retries) > RETRIES_NAMED:
        console.print(f"again   and {len(retries) - RETRIES_NAMED} more")
    for trial, reason in stopped.items():
        console.print(f"stopped {plan.trials[trial].label} ({trial}): {reason}")
    for trial, reason in failures.items():
        console.print(f"failed  {plan.trials[trial].label} ({trial}): {reason}", style="red")
    for what, where in (
        ("report", f"{out}/{plan.sweep.name}/report/index.html"),
        ("scores", f"{out}/{plan.sweep.name}/scores"),
        ("MLflow", tracking.ui_command(out)),
    ):
        console.print(f"{what:8}{where}", soft_wrap=True)
    if not uri.startswith("http"):
        console.print(f"        and open http://127.0.0.1:5000/{tracking.PAGE}", soft_wrap=True)


def leave(holder: str) -> None:
    """End this process, since *holder* has taken over what it writes."""
    # Two writers would undo each other's work; what is finished is on disk, so leaving at once loses nothing.
    events.say("lock lost", logging.ERROR, reason=f"{holder} has taken over")
    print(f"stopped: {holder} has taken over this sweep", file=sys.stderr, flush=True)
    interruption.end_at_once(2)
