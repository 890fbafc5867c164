"""The coordinator of one trial: a Tune trainable that holds no slot.

It starts the trial's training and the shards of its evaluation as remote tasks, starts again what a lost machine took
with it, and tells Tune how far it is. It imports no torch: there are a few more coordinators than slots.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from scl_ray.cluster import tasks
from scl_ray.plan import Plan, Work
from scl_ray.store import Shard, Store

ATTEMPTS = 3  # starts of the same piece of work that got no further

_train = ray.remote(tasks.train)
_evaluate = ray.remote(tasks.evaluate)


def coordinate(
    config: Mapping[str, str], plan: Plan, store: Store, dataset: list[ray.ObjectRef], sources: Mapping[str, str],
    train_options: Mapping[str, Any], evaluate_options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Bring one trial from what the store holds to what the plan wants."""
    trial_id = config["trial"]
    work = plan.work[trial_id]
    if work.train:
        problem = _trained(trial_id, work, plan, store, dataset, sources, train_options)
        if problem:
            store.write_record(
                trial_id, {**plan.trial_record(work.trial), "status": "failed", "error": problem, "epochs": []}
            )
            tune.report({"phase": "failed", "error": problem})
            return
    tune.report({"phase": "trained"})
    failed = _evaluated(trial_id, work, store, dataset, sources, evaluate_options)
    if not failed:
        store.remove_superseded(trial_id, plan.cells)
    tune.report({"phase": "failed", "error": "; ".join(failed)} if failed else {"phase": "done"})


def _trained(
    trial_id: str, work: Work, plan: Plan, store: Store, dataset: list[ray.ObjectRef], sources: Mapping[str, str],
    options: Mapping[str, Any],
) -> str | None:  # fmt: skip
    """Train, from the last whole epoch when a machine was lost. Returns what went wrong, if anything did."""
    about = plan.trial_record(work.trial)
    start = _train.options(**options, num_returns="streaming")
    attempt = 1
    while True:
        try:
            epochs: Any = start.remote(store, trial_id, work.trial, about, dataset[0], sources, options["num_cpus"])
            for epoch in epochs:
                reached = ray.get(epoch)
                tune.report({"phase": "training", "reached": reached})
                if reached:
                    attempt = 1
            return None
        except ray.exceptions.RayTaskError as error:
            return _sentence(error)
        except ray.exceptions.RayError as error:
            if attempt == ATTEMPTS:
                return f"training was lost {ATTEMPTS} times ({_sentence(error)})"
            attempt += 1
            tune.report({"phase": "retry", "error": _sentence(error)})


def _evaluated(
    trial_id: str, work: Work, store: Store, dataset: list[ray.ObjectRef], sources: Mapping[str, str],
    options: Mapping[str, Any],
) -> list[str]:  # fmt: skip
    """Run every shard; one that fails does not stop the others. Returns what went wrong."""
    start = _evaluate.options(**options)

    def submit(shard: Shard) -> ray.ObjectRef:
        return start.remote(store, trial_id, shard, dataset[0], sources, options["num_cpus"])

    running = {submit(shard): (shard, 1) for shard in work.shards}
    failed = []
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        shard, attempt = running.pop(done)
        span = f"images {shard.first}-{shard.last}"
        try:
            tune.report({"phase": "evaluating", "shard_images": shard.images, **ray.get(done)})
        except ray.exceptions.RayTaskError as error:
            failed.append(f"{span}: {_sentence(error)}")
        except ray.exceptions.RayError as error:
            if attempt == ATTEMPTS:
                failed.append(f"{span}: lost {ATTEMPTS} times ({_sentence(error)})")
            else:
                running[submit(shard)] = (shard, attempt + 1)
                tune.report({"phase": "retry", "error": _sentence(error)})
    return failed


def _sentence(error: ray.exceptions.RayError) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [""]
    text = lines[0] if cause is not error else lines[-1]
    return f"{type(cause).__name__}: {text}" if cause is not error else text
