"""A trial's training by a group of workers: a Ray Train trainer that runs inside the trial's coordinator.

It needs torch, which coordinators of single tasks do without.
"""

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

# Read when a trainer is made. The workers' working directory stays as any task's.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
# A group waits for its slots as long as the tasks that have them take.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(24 * 3600))
# A worker's report is taken at such a look, and so an epoch is seldom shorter.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# A lost group is started again by the coordinator, which asks for its slots again.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

import ray
from ray import train
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from scl_ray.cluster import tasks
from scl_ray.cluster.failures import Failed, clause, is_stand_in, lost

LOOK_EVERY = 1.0  # seconds between two looks whether the trainer has ended while it reports nothing


class _Passed(train.UserCallback):
    """Passes on, from the trainer's own actor, what the first worker reports."""

    def __init__(self, reports: Queue) -> None:
        self.reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.reports.put(metrics[0])


def run(
    work: Mapping[str, Any], workers: int, options: Mapping[str, Any], storage: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Train in *workers* workers and yield what `tasks.train` yields in the first of them.

    *work* holds the arguments of `tasks.train`, the dataset as a reference in a list. *options* are those of a task on
    one slot, which each worker takes. *storage* is where the trainer may keep its own state.

    Raises Failed or Lost.
    """
    reports = Queue(actor_options={"num_cpus": 0})
    callbacks: list[Any] = [_Passed(reports)]
    trainer = TorchTrainer(
        tasks.train_together,
        train_loop_config=dict(work),
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=options["num_gpus"] > 0,
            resources_per_worker={"CPU": options["num_cpus"], "GPU": options["num_gpus"]},
        ),
        run_config=train.RunConfig(
            name=f"group-{uuid.uuid4().hex}",
            failure_config=train.FailureConfig(max_failures=0),
            callbacks=callbacks,
            **storage,
        ),
    )
    ended: Future[Any] = Future()
    # Not a pool's thread, which would keep the process of a coordinator that is stopped from ending.
    threading.Thread(target=_fit, args=(trainer, ended), daemon=True).start()
    while True:
        # Asked first: what is reported before the end is then in the queue.
        is_over = ended.done()
        try:
            yield reports.get(timeout=LOOK_EVERY)
        except Empty:
            if is_over:
                break
    reports.shutdown()
    try:
        ended.result()
    except train.WorkerGroupError as error:
        raised = list(map(_behind, error.worker_failures.values()))
        if own := next(filter(_is_their_own, raised), None):
            raise Failed(clause(own)) from error
        # A worker that is lost makes the others raise what they like.
        took = [cause for cause in raised if isinstance(cause, ray.exceptions.RayError)]
        raise lost([*took, *raised][0]) from error
    except (train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise lost(_behind(error)) from error


def _is_their_own(error: BaseException) -> bool:
    """Whether a worker went wrong by itself: what it cannot have raised because another was lost, or memory was short.

    torch says with a RuntimeError, and the system with an OSError, that a connection to another worker broke.
    """
    return is_stand_in(error) or not isinstance(error, (RuntimeError, OSError, MemoryError, ray.exceptions.RayError))


def _behind(error: Exception) -> BaseException:
    """What Ray Train wraps: what a worker raised, how it was found dead, or what happened to the trainer's actor."""
    for name in ("_base_exc", "health_check_failure", "controller_failure"):
        error = getattr(error, name, error)
    return error


def _fit(trainer: TorchTrainer, ended: "Future[Any]") -> None:
    try:
        ended.set_result(trainer.fit())
    except BaseException as error:  # it is raised where the result is asked for
        ended.set_exception(error)
