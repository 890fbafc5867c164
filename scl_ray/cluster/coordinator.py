"""The coordinator of one trial: a Tune trainable that holds no slot.

It starts the trial's training and the shards of its evaluation as remote tasks, starts again what a lost machine took
with it, and tells Tune how far it is. It imports no torch: there are a few more coordinators than slots.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune

from scl_ray.cluster import tasks
from scl_ray.plan import Plan
from scl_ray.store import Shard, Store

ATTEMPTS = 3  # starts of the same piece of work that got no further

_train = ray.remote(tasks.train)
_evaluate = ray.remote(tasks.evaluate)


def coordinate(
    config: Mapping[str, str], plan: Plan, store: Store, dataset: list[ray.ObjectRef], sources: Mapping[str, str],
    train_options: Mapping[str, Any], evaluate_options: Mapping[str, Any], memory: float | None,
) -> None:  # fmt: skip
    """Bring one trial from what the store holds to what the plan wants. *memory*: GiB that a shard may take."""
    trial_id = config["trial"]
    trial = plan.trials[trial_id]
    about = plan.trial_record(trial)

    def train() -> Any:
        start = _train.options(**train_options, num_returns="streaming")
        return start.remote(store, trial_id, trial, about, dataset[0], sources, train_options["num_cpus"])

    def evaluate(shard: Shard) -> ray.ObjectRef:
        start = _evaluate.options(**evaluate_options)
        return start.remote(store, trial_id, shard, dataset[0], sources, evaluate_options["num_cpus"], memory)

    # What is finished is what is on disk: this may be a second start, after a first coordinator was lost.
    if not store.is_trained(trial_id):
        problem = _trained(train, lambda: store.is_trained(trial_id))
        if problem:
            store.write_record(trial_id, {**about, "status": "failed", "error": problem, "epochs": []})
            tune.report({"phase": "failed", "error": problem})
            return
    tune.report({"phase": "trained"})
    failed = _evaluated(evaluate, plan.shards(store, trial_id))
    tune.report({"phase": "failed", "error": "; ".join(failed)} if failed else {"phase": "done"})


def _trained(train: Callable[[], Any], is_trained: Callable[[], bool]) -> str | None:
    """Train, from the last whole epoch when a machine was lost. Returns what went wrong, if anything did."""
    attempt = 1
    while True:
        try:
            for item in train():
                reached = ray.get(item)
                tune.report({"phase": "training", "reached": reached})
                if reached:
                    attempt = 1
            return None
        except ray.exceptions.RayTaskError as error:
            return _sentence(error)
        except ray.exceptions.RayError as error:
            if is_trained():  # lost between its last word and its end
                return None
            if attempt == ATTEMPTS:
                return f"training was lost {ATTEMPTS} times ({_sentence(error)})"
            attempt += 1
            tune.report({"phase": "retry", "error": _sentence(error)})


def _evaluated(evaluate: Callable[[Shard], ray.ObjectRef], shards: Sequence[Shard]) -> list[str]:
    """Run every shard; one that fails does not stop the others. Returns what went wrong."""
    running = {evaluate(shard): (shard, 1) for shard in shards}
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
                running[evaluate(shard)] = (shard, attempt + 1)
                tune.report({"phase": "retry", "error": _sentence(error)})
    return failed


def _sentence(error: ray.exceptions.RayError) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [""]
    text = lines[0] if cause is not error else lines[-1]
    return f"{type(cause).__name__}: {text}" if cause is not error else text
