"""The driver: from a configuration to a finished sweep.

It plans, lets Tune run the trials that have something missing, follows them, and is the only process that talks to
MLflow. Tune's restore is not used: identity and what is on disk decide what runs.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ray is configured by its environment, so this import comes before Ray's own.
from scl_ray.cluster import connection

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import yaml
from ray import tune
from rich.console import Console

from scl_ray import lock, plugins
from scl_ray import plan as planning
from scl_ray.cluster.coordinator import coordinate
from scl_ray.cluster.progress import Progress
from scl_ray.config import InputError, Sweep
from scl_ray.plan import Plan
from scl_ray.store import Store, local_folder, open_store

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset
    from scl_ray.tracking import Tracker

COORDINATOR_MEMORY = 300 * 2**20
EXTRA_COORDINATORS = 2  # so that the next trial's training waits in the queue when a slot becomes free


def run(sweep: Sweep, out: str, address: str | None, console: Console) -> int:
    """Bring the sweep to its end and say what it found. Returns 0 when all is done, 1 when something failed."""
    from scl_ray import datasets, tracking

    store = open_store(out, sweep.name)
    check_writable(store, out)
    uri = tracking.tracking_uri(out)
    tracking.check(uri)
    with contextlib.ExitStack() as stack:
        if address is not None:
            stack.enter_context(connection.connected(address))
            folder = local_folder(out)
            if folder is not None:
                connection.check_shared_folder(folder)
        dataset = datasets.load(sweep.dataset)
        stack.enter_context(lock.held(store, lost=_stop))
        slots = connection.check_resources(sweep.resources) if address is not None else planning.local_slots(sweep.resources.train)
        plan = planning.make(sweep, dataset, store, slots)
        changed = _write_plan(store, plan, dataset) or bool(plan.work)
        tracker = stack.enter_context(tracking.Tracker(uri, sweep.name, warn=console.print))
        failures: Mapping[str, str] = {}
        if plan.work:
            if address is None:
                stack.enter_context(connection.connected(None))
                slots = connection.check_resources(sweep.resources)
            failures = _run_trials(plan, store, dataset, slots, tracker, console)
        _conclude(plan, store, out, failures, changed, tracker, console)
    return 1 if failures else 0


def check_writable(store: Store, out: str) -> None:
    """Raise InputError unless results can be written below *out*."""
    try:
        store.write(".probe", b"")
        store.remove(".probe")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror or error}); give another folder") from error


def _write_plan(store: Store, plan: Plan, dataset: "Dataset") -> bool:
    """Write what this run covers. Returns whether that differs from the last run's."""
    resolved = yaml.safe_dump(plan.sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode()
    if store.read("sweep.yaml") == resolved and store.read_json("plan.json") == plan.record():
        return False
    store.write("sweep.yaml", resolved)
    store.write_json("plan.json", plan.record())
    store.write_table("samples/images.parquet", _sample_images(plan, dataset))
    return True


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


def _run_trials(
    plan: Plan, store: Store, dataset: "Dataset", slots: int, tracker: "Tracker", console: Console
) -> dict[str, str]:
    """Run every trial that has something missing. Returns what failed: trial to reason."""
    trainable = tune.with_parameters(
        coordinate,
        plan=plan,
        store=store,
        # In a list, so that coordinators pass the reference on and only tasks fetch the images, once per node.
        dataset=[ray.put(dataset)],
        sources=plugins.bundle(plan.sweep.plugin_names()),
        train_options=connection.task_options(plan.sweep.resources.train),
        evaluate_options=connection.task_options(plan.sweep.resources.evaluate),
    )
    progress = Progress(plan, slots, console)
    scratch: dict[str, Any] = {"storage_path": store.path(".tune")}
    if local_folder(store.root) is None:
        scratch["storage_filesystem"] = pafs.PyFileSystem(pafs.FSSpecHandler(store.fs))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "memory": COORDINATOR_MEMORY}),
        param_space={"trial": tune.grid_search(list(plan.work))},
        tune_config=tune.TuneConfig(max_concurrent_trials=slots + EXTRA_COORDINATORS, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            callbacks=[_Follow(progress, store, tracker)],
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
            **scratch,
        ),
    )
    with progress:
        results = tuner.fit()
    for result in results:
        if result.error is not None:
            lines = str(result.error).strip().splitlines()
            progress.failures[result.config["trial"]] = f"its coordinator was lost ({lines[-1]})"
    store.remove(".tune")
    return progress.failures


class _Follow(tune.Callback):
    """Passes what the coordinators report to the progress view and to MLflow's writer."""

    def __init__(self, progress: Progress, store: Store, tracker: "Tracker") -> None:
        self.progress, self.store, self.tracker = progress, store, tracker

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id = trial.config["trial"]
        self.progress.update(trial_id, result)
