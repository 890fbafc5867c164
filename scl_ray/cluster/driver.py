"""The driver: from a configuration to a finished sweep.

It plans, lets Tune run the trials that have something missing, follows them, and is the only process that talks to
MLflow. Tune's restore is not used: identity and what is on disk decide what runs.
"""

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

# Ray is configured by its environment, so this import comes before Ray's own.
from scl_ray.cluster import connection

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old one is silent when asked to be
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import pyarrow.fs as pafs
import ray
from ray import tune
from rich.console import Console

from scl_ray import datasets, lock, plugins, session, tracking
from scl_ray import plan as planning
from scl_ray.cluster.coordinator import coordinate
from scl_ray.cluster.progress import Progress
from scl_ray.config import Sweep, Trial
from scl_ray.plan import Plan
from scl_ray.store import Store, local_folder, open_store
from scl_ray.tracker import Tracker

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

# A lost coordinator is named at the end of the run; Tune would print its traceback into the live view.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

COORDINATOR_MEMORY = 300 * 2**20
COORDINATOR_RESTARTS = 2
EXTRA_COORDINATORS = 1  # so that the next trial's training waits in the queue when a slot becomes free


def run(sweep: Sweep, out: str, address: str | None, console: Console) -> int:
    """Bring the sweep to its end and say what it found. Returns 0 when all is done, 1 when something failed.

    Raises InputError before any work starts when it cannot be run as asked.
    """
    folder = local_folder(out)
    out = out.rstrip("/") if folder is None else str(folder)
    store = open_store(out, sweep.name)
    uri = tracking.tracking_uri(out)
    tracking.check(uri, sweep.name)
    with contextlib.ExitStack() as stack:
        if address is None:
            slots = min(map(planning.local_slots, (sweep.resources.train, sweep.resources.evaluate)))
        else:
            stack.enter_context(connection.connected(address))
            slots = connection.check_resources(sweep.resources)
        dataset = datasets.load(sweep.dataset)
        session.check_writable(store, out)
        if address is not None and folder is not None:
            connection.check_shared_folder(folder)
        stack.enter_context(lock.held(store, lost=session.leave))
        session.check_kind(store, sweep.kind)
        store.remove_leftovers()
        store.remove(".tune")
        plan = planning.make(sweep, dataset, store, slots)
        if plan.work:
            planning.check_backbones(plan, sweep.grid.backbone)
        session.write_plan(store, plan, dataset)
        failures: dict[str, str] = {}
        is_logged = True
        if plan.work:
            if address is None:
                stack.enter_context(connection.connected(None))
                slots = connection.check_resources(sweep.resources)
            failures, is_logged = _run_trials(sweep, plan, store, dataset, slots, out, uri, console)
        return session.finish(plan, store, out, uri, failures, is_logged, console)


def _run_trials(
    sweep: Sweep,
    plan: Plan[Trial],
    store: Store,
    dataset: "Dataset",
    slots: int,
    out: str,
    uri: str,
    console: Console,
) -> tuple[dict[str, str], bool]:
    """Run every trial that has something missing. Returns what failed, trial to reason, and whether MLflow kept up."""
    trainable = tune.with_parameters(
        coordinate,
        plan=plan,
        store=store,
        # In a list, so that coordinators pass the reference on and only tasks fetch the images, once per node.
        dataset=[ray.put(dataset)],
        sources=plugins.bundle(sweep.plugin_names()),
        train_options=connection.task_options(sweep.resources.train),
        evaluate_options=connection.task_options(sweep.resources.evaluate),
        memory=sweep.resources.evaluate.memory,
    )
    scratch: dict[str, Any] = {"storage_path": store.path(".tune")}
    if local_folder(out) is None:
        scratch["storage_filesystem"] = pafs.PyFileSystem(pafs.FSSpecHandler(store.fs))
    progress = Progress(plan, slots, console)
    tracker = Tracker(uri, sweep.name, warn=console.print)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "memory": COORDINATOR_MEMORY}),
        param_space={"trial": tune.grid_search(list(plan.work))},
        tune_config=tune.TuneConfig(max_concurrent_trials=slots + EXTRA_COORDINATORS, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            callbacks=[_Follow(plan, progress, store, tracker)],
            failure_config=tune.FailureConfig(max_failures=COORDINATOR_RESTARTS),
            verbose=0,
            **scratch,
        ),
    )
    with progress, tracker:
        results = tuner.fit()
        is_logged = tracker.close()
    console.print(f"trials  {progress.usage()}")
    failures = dict(progress.failures)
    for result in map(results.__getitem__, range(len(results))):
        if result.error is not None:
            last_line = str(result.error).strip().splitlines()[-1]
            assert result.config is not None
            failures[result.config["trial"]] = f"its coordinator was lost ({last_line})"
    store.remove(".tune")
    return failures, is_logged


class _Follow(tune.Callback):
    """Passes what the coordinators report to the progress view and to MLflow's writer."""

    def __init__(self, plan: Plan, progress: Progress, store: Store, tracker: Tracker) -> None:
        self.plan, self.progress, self.store, self.tracker = plan, progress, store, tracker

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that a sweep never makes; a terminal and a thread cannot be.
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        trial_id = trial.config["trial"]
        self.progress.update(trial_id, result)
        if result["phase"] == "training" and "epoch" in result["reached"]:
            record = {"trial": trial_id, "status": "training", **self.plan.trial_record(self.plan.trials[trial_id])}
            self.tracker.epoch(record, result["reached"])
        elif result["phase"] in ("trained", "done", "failed"):
            try:
                written = self.store.record(trial_id)
            except OSError:  # a slow or absent storage costs a line of the log, which the end of the run completes
                return
            if written is not None:
                self.tracker.trial(written)
