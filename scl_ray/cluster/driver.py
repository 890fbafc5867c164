"""The driver: from a configuration to a finished sweep.

It plans, lets Tune run the trials that have something missing, follows them, and is the only process that talks to
MLflow. Tune's restore is not used: identity and what is on disk decide what runs.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

# Ray is configured by its environment, so this import comes before Ray's own.
from scl_ray.cluster import connection, permits

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old one is silent when asked to be
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # only epochs hold what early stopping compares
# For a restore that a sweep never makes, Tune would write down the state of all trials again and again.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")

import pyarrow.fs as pafs
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console

from scl_ray import cancelling, cost, datasets, events, interruption, lock, mending, plugins, session, tracking
from scl_ray import plan as planning
from scl_ray.cluster import capacity, head, metrics
from scl_ray.cluster.coordinator import coordinate
from scl_ray.cluster.progress import Progress
from scl_ray.config import EarlyStopping, InputError, Sweep, Trial
from scl_ray.hand_off import Kind, Order
from scl_ray.plan import Plan
from scl_ray.store import Store, local_folder, open_store
from scl_ray.tracker import Tracker

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

# A lost coordinator is named at the end of the run; Tune would print its traceback into the live view.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

COORDINATOR_MEMORY = 300 * 2**20
COORDINATOR_RESTARTS = 2


def run(sweep: Sweep, out: str, address: str | None, console: Console) -> int:
    """Bring the sweep to its end and say what it found. Returns 0 when all is done, 1 when something failed.

    Raises InputError before any work starts when it cannot be run as asked. Being stopped, it unwinds with all of its
    work in the cluster ended and the lock free.
    """
    folder = local_folder(out)
    out = out.rstrip("/") if folder is None else str(folder)
    store = open_store(out, sweep.name)
    uri = tracking.tracking_uri(out)
    tracking.check(uri, sweep.name)
    with contextlib.ExitStack() as stack:
        if address is None:
            train_slots = planning.local_slots(sweep.resources.train)
            slots = min(train_slots, planning.local_slots(sweep.resources.evaluate))
        else:
            _connect(stack, address)
            slots = train_slots = connection.check_resources(sweep.resources)
        dataset = datasets.load(sweep.dataset)
        check_workers(sweep, len(dataset.train_labels), train_slots)
        session.check_writable(store, out)
        if address is not None:
            connection.check_images(dataset)
            connection.check_storage(out, sweep.name)
        token = stack.enter_context(lock.held(store, lost=session.leave))
        stack.enter_context(cancelling.heeded(store, token, stop=interruption.ask))
        session.check_kind(store, sweep.kind)
        store.remove_leftovers()
        store.remove(".tune")
        plan = planning.make(sweep, dataset, store, slots)
        if mending.mend(store, plan, console):
            plan = planning.make(sweep, dataset, store, slots)
        if plan.work:
            planning.check_backbones(plan, sweep.grid.backbone)
        stack.enter_context(events.kept(store))
        session.write_plan(store, plan, dataset)
        stack.enter_context(session.stop_is_logged(uri, sweep.name))
        ended = Ended({}, [], True)
        if plan.work:
            if address is None:
                _connect(stack, None)
                slots = connection.check_resources(sweep.resources)
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="scl_ray-", ignore_cleanup_errors=True))
            # Inside the lock: what still ran after it would write to what somebody else holds.
            stack.callback(ray.shutdown)
            ended = _run_trials(sweep, plan, store, dataset, slots, out, uri, own, console)
        return session.finish(plan, store, out, uri, ended.failures, ended.is_logged, console, ended.retries)


class Ended(NamedTuple):
    """What became of the trials: what failed and what was started again, with reasons; whether MLflow kept up."""

    failures: dict[str, str]
    retries: list[tuple[str, str]]
    is_logged: bool


def _connect(stack: contextlib.ExitStack, address: str | None) -> None:
    with interruption.kept():
        stack.enter_context(connection.connected(address))
    if address is not None:
        stack.enter_context(head.watched())


def _run_trials(
    sweep: Sweep,
    plan: Plan[Trial],
    store: Store,
    dataset: "Dataset",
    slots: int,
    out: str,
    uri: str,
    own: str,
    console: Console,
) -> Ended:
    """Run every trial that has something missing. *own*: a local folder for what Tune writes down for itself."""
    scratch: dict[str, Any] = {"storage_path": store.path(".tune")}
    if local_folder(out) is None:
        scratch["storage_filesystem"] = pafs.PyFileSystem(pafs.FSSpecHandler(store.fs))
    options: dict[Kind, dict[str, Any]] = {
        "train": connection.task_options(sweep.resources.train),
        "evaluate": connection.task_options(sweep.resources.evaluate),
    }
    desk = permits.start(capacity.slots_now(options))
    trainable = tune.with_parameters(
        coordinate,
        plan=replace(plan, work={}),  # coordinators look themselves, and each reads all of this anew for each trial
        store=store,
        # In a list, so that coordinators pass the reference on and only tasks fetch the images, once per node.
        dataset=[ray.put(dataset)],
        sources=plugins.bundle(sweep.plugin_names()),
        train_options=options["train"],
        evaluate_options=options["evaluate"],
        memory=sweep.resources.evaluate.memory,
        permits=desk,
        scratch=scratch,
        stopping=sweep.early_stopping,
    )
    order = Order(cost.of_trials(plan, len(dataset.train_labels)))
    progress = Progress(plan, slots, console)
    tracker = Tracker(uri, sweep.name, store, warn=console.print)
    scheduler = _scheduler(sweep.early_stopping, plan, store)
    follow = _Follow(plan, sweep.early_stopping, scheduler, progress, store, tracker, desk, order)
    trials = capacity.Trials(slots)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "memory": COORDINATOR_MEMORY}),
        # Chosen when it is about to start.
        param_space={"trial": tune.sample_from(lambda _: order.start())},
        tune_config=tune.TuneConfig(
            num_samples=len(plan.work),
            search_alg=trials,
            scheduler=scheduler,
            # What a stopped trial has begun ends with its coordinator's process.
            reuse_actors=sweep.early_stopping is None,
        ),
        run_config=tune.RunConfig(
            name="tune",
            callbacks=[
                follow,
                capacity.Following(options, trials, desk, progress),
                metrics.Measuring(sweep.name, progress),
            ],
            failure_config=tune.FailureConfig(max_failures=COORDINATOR_RESTARTS),
            verbose=0,
            # Beside the driver: coordinators write nothing there, and in an object store each trial would take Tune a
            # dozen requests, one after the other.
            storage_path=own,
        ),
    )
    with progress, tracker:
        try:
            results = tuner.fit()
        except KeyboardInterrupt:
            ray.shutdown()  # first of all: nothing more is begun, and what runs ends
            raise
        is_logged = tracker.close()
    console.print(f"trials  {progress.usage()}")
    failures = dict(progress.failures)
    for result in map(results.__getitem__, range(len(results))):
        if result.error is not None:
            last_line = str(result.error).strip().splitlines()[-1]
            assert result.config is not None
            failures[result.config["trial"]] = f"its coordinator was lost ({last_line})"
    with contextlib.suppress(OSError):  # what is left of it, the next run removes
        store.remove(".tune")
    return Ended(failures, follow.retries, is_logged)


def check_workers(sweep: Sweep, train_images: int, slots: int) -> None:
    """Raise InputError unless every trial's workers find their slots and their share of each batch."""
    for training in (trial.training for trial in sweep.trials()):
        if training.workers > slots:
            raise InputError(f"training.workers: {training.workers} is more than the {slots} slots that there are; "
                             "lower it or resources.train")  # fmt: skip
        batch = min(training.batch_size, train_images)
        if batch % training.workers:
            raise InputError(f"training.workers: {training.workers} workers cannot share a batch of all {batch} "
                             "training images equally; lower training.batch_size")  # fmt: skip
        if training.workers > 1 and sweep.resources.train.gpus % 1:
            raise InputError(f"resources.train.gpus: {sweep.resources.train.gpus:g} is not enough for training.workers,"
                             " of which each needs a GPU of its own; set it to 1")  # fmt: skip


def _scheduler(stopping: EarlyStopping | None, plan: Plan[Trial], store: Store) -> ASHAScheduler | None:
    """What stops hopeless trials, if the sweep wants that; it knows the trials that earlier runs have trained."""
    if stopping is None:
        return None
    kind: Any = ASHAScheduler  # which takes any measure of time, though it says int
    scheduler = kind(
        time_attr="trained",
        metric=stopping.MEASURE,
        mode="max",
        max_t=1,
        grace_period=stopping.grace_period,
        reduction_factor=stopping.reduction_factor,
        stop_last_trials=False,
    )
    for trial_id, record in store.records(list(plan.trials)).items():
        if trial_id in plan.work and plan.work[trial_id].train:
            continue
        ended = SimpleNamespace(trial_id=trial_id)
        scheduler.on_trial_add(None, ended)
        _tell(scheduler, ended, record["epochs"], plan.trials[trial_id].training.epochs)
    return cast(ASHAScheduler, scheduler)


def _tell(scheduler: Any, trial: Any, rows: Sequence[Mapping[str, Any]], epochs: int) -> None:
    """Tell the *scheduler* what the *trial* measured when an earlier run trained it.

    Whether it was to go on was decided then. Untold, it would be compared by where it goes on with what others had
    reached long before.
    """
    for row in rows:
        trained = EarlyStopping.share(row["epoch"], epochs)
        if trained < 1 and EarlyStopping.MEASURE in row:
            known = {"trained": trained, EarlyStopping.MEASURE: row[EarlyStopping.MEASURE]}
            scheduler.on_trial_result(None, trial, known)


class _Follow(tune.Callback):
    """Passes what the coordinators report to the progress view, to MLflow's writer and to the order of the trials."""

    def __init__(
        self, plan: Plan[Trial], stopping: EarlyStopping | None, scheduler: ASHAScheduler | None, progress: Progress,
        store: Store, tracker: Tracker, desk: Any, order: Order,
    ) -> None:  # fmt: skip
        self.plan, self.stopping, self.scheduler, self.progress = plan, stopping, scheduler, progress
        self.store, self.tracker, self.desk, self.order = store, tracker, desk, order
        self.epochs: dict[str, list[dict[str, Any]]] = {}
        self.retries: list[tuple[str, str]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that a sweep never makes; a terminal and a thread cannot be.
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        trial_id = trial.config["trial"]
        self.progress.update(trial_id, result)
        if result["phase"] == "training":
            if self.scheduler is not None and "earlier" in result["reached"]:
                epochs = self.plan.trials[trial_id].training.epochs
                _tell(self.scheduler, trial, result["reached"]["earlier"], epochs)
            self._training(trial_id, result["reached"])
        elif result["phase"] == "retry":
            self.retries.append((trial_id, result["error"]))
        elif result["phase"] in ("trained", "done", "failed"):
            self._log(trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        lost = {"phase": "retry", "error": "its coordinator was lost"}
        self.progress.update(trial.config["trial"], lost)
        self.retries.append((trial.config["trial"], lost["error"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._forget(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        trial_id = trial.config["trial"]
        if self.stopping is not None and self.progress.phase[trial_id] == "training":
            self._stopped(trial_id, self.stopping)
            self._log(trial_id)
        self._forget(trial)

    def _forget(self, trial: Any) -> None:
        """Nobody asks any more for what was kept of a trial that is over; of thousands it would be much."""
        trial_id = trial.config["trial"]
        self.desk.forget.remote(trial_id)
        self.epochs.pop(trial_id, None)
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    def _stopped(self, trial_id: str, stopping: EarlyStopping) -> None:
        """The scheduler has ended the trial's training. What resuming needs stays."""
        trial, epochs = self.plan.trials[trial_id], self.epochs[trial_id]
        reason = (f"stopped early, after epoch {epochs[-1]['epoch']} of {trial.training.epochs}: "
                  f"{stopping.MEASURE} {epochs[-1][stopping.MEASURE]:.3f} is not among the best one in "
                  f"{stopping.reduction_factor:g} that came so far")  # fmt: skip
        self.progress.update(trial_id, {"phase": "stopped", "reason": reason})
        if not self.store.is_trained(trial_id):
            rules = stopping.model_dump(mode="json")
            about = {**self.plan.trial_record(trial), "status": "stopped", "reason": reason, "early_stopping": rules}
            self.store.write_record(trial_id, {**about, "epochs": epochs})

    def _training(self, trial_id: str, reached: dict[str, Any]) -> None:
        if "earlier" in reached:
            self.epochs[trial_id] = list(reached["earlier"])
        elif "epoch" in reached:
            trial = self.plan.trials[trial_id]
            self.epochs[trial_id].append(reached)
            self.order.measured(trial_id, 1 / trial.training.epochs, reached["seconds"])
            record = {"trial": trial_id, "status": "training", **self.plan.trial_record(trial)}
            self.tracker.trial({**record, "epochs": self.epochs[trial_id]})

    def _log(self, trial_id: str) -> None:
        try:
            written = self.store.record(trial_id)
        except OSError:  # a slow or absent storage costs a line of the log, which the end of the run completes
            return
        if written is not None:
            self.tracker.trial(written)
