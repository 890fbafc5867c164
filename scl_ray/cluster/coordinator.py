"""The coordinator of one trial: a Tune trainable that holds no slot.

It starts the trial's training and the shards of its evaluation as remote tasks, each when it is permitted, starts again
what a lost machine took with it, and tells Tune how far it is. Unless its trial is trained by a group of workers it
imports no torch: there are a few more coordinators than slots.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import tune

from scl_ray.cluster import permits as permitting
from scl_ray.cluster import tasks
from scl_ray.cluster.failures import Exhausted, Failed, Losses, Lost, told_apart
from scl_ray.config import EarlyStopping
from scl_ray.parts import Shard
from scl_ray.plan import Plan
from scl_ray.sealing import Damaged
from scl_ray.storage import StorageError
from scl_ray.store import Store

# A shard that was lost by itself may have been too large: each further start takes so many times fewer images at once.
SMALLER = 4
SHARDS_NAMED = 5  # of those of a trial that failed

_train = ray.remote(tasks.train)
_evaluate = ray.remote(tasks.evaluate)


def coordinate(
    config: Mapping[str, str], plan: Plan, store: Store, dataset: list[ray.ObjectRef], sources: Mapping[str, str],
    train_options: Mapping[str, Any], evaluate_options: Mapping[str, Any], memory: float | None, permits: Any,
    scratch: Mapping[str, Any], stopping: EarlyStopping | None,
) -> None:  # fmt: skip
    """Bring one trial from what the store holds to what the plan wants.

    *memory*: GiB that a shard may take. *permits*: the actor that says when work may be given to the cluster.
    *scratch*: where Ray's libraries keep their own state. *stopping*: how Tune stops trials early, if it does.
    """
    trial_id = config["trial"]
    trial = plan.trials[trial_id]
    about = plan.trial_record(trial)
    # A first coordinator of this trial may have been lost with permits in its hands.
    ray.get(permits.forget.remote(trial_id))

    def train() -> Generator[dict[str, Any]]:
        work = {
            "store": store, "trial_id": trial_id, "trial": trial, "about": about, "sources": sources,
            "threads": train_options["num_cpus"], "comparable": stopping is not None,
        }  # fmt: skip
        with permitting.permit(permits, trial_id, "train", trial.training.workers) as key:
            if trial.training.workers == 1:
                yield from _on_one_slot(work, dataset, train_options)
            else:
                from scl_ray.cluster import group

                for reached in group.run({**work, "dataset": dataset}, trial.training.workers, train_options, scratch):
                    if not reached:  # its first word: all workers are there
                        permits.placed.remote(key)
                    yield reached

    # What is finished is what is on disk: this may be a second start, after a first coordinator was lost.
    files = _checkpoint(store, trial_id)
    if files is None:
        problem = _trained(train, lambda: store.is_trained(trial_id), trial.training.epochs, stopping)
        if problem:
            # What failed the trial may be the very storage. The summary names it all the same.
            with contextlib.suppress(StorageError):
                store.write_record(trial_id, {**about, "status": "failed", "error": problem, "epochs": []})
            tune.report({"phase": "failed", "error": problem})
            return
        files = store.read_checkpoint(trial_id)
    tune.report({"phase": "trained"})
    # Read once, it reaches each node once; in a list, so that only workers that lack its network fetch it.
    checkpoint = [ray.put(files)]
    del files

    def evaluate(shard: Shard, smaller: int) -> ray.ObjectRef:
        threads, start = evaluate_options["num_cpus"], _evaluate.options(**evaluate_options)
        return start.remote(store, trial_id, shard, dataset[0], checkpoint, sources, threads, memory, smaller)

    failed = _evaluated(evaluate, plan.shards(store, trial_id), permits, trial_id)
    tune.report({"phase": "failed", "error": _named(failed)} if failed else {"phase": "done"})


def _checkpoint(store: Store, trial_id: str) -> dict[str, bytes] | None:
    """The files of a checkpoint that is there and whole."""
    if not store.is_trained(trial_id):
        return None
    try:
        return store.read_checkpoint(trial_id)
    except Damaged as error:
        store.drop_checkpoint(trial_id)
        tune.report({"phase": "retry", "error": f"training: {error.what}"})
        return None


def _on_one_slot(
    work: Mapping[str, Any], dataset: list[ray.ObjectRef], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What `tasks.train` yields as a remote task, which ends when nobody listens any more."""
    items = _train.options(**options, num_returns="streaming").remote(**work, dataset=dataset[0])
    try:
        with told_apart():
            for item in items:
                yield ray.get(item)
    except GeneratorExit:  # Tune stops the trial
        ray.cancel(items, force=True)
        raise


def _trained(
    train: Callable[[], Generator[dict[str, Any]]],
    is_trained: Callable[[], bool],
    epochs: int,
    stopping: EarlyStopping | None,
) -> str | None:
    """Train, from the last epoch that was kept when a machine was lost. Returns what went wrong, if anything did."""
    losses, furthest = Losses(), 0
    while True:
        try:
            with contextlib.closing(train()) as items:
                for reached in items:
                    report: dict[str, Any] = {"phase": "training", "reached": reached}
                    if stopping is not None and "epoch" in reached and reached["epoch"] < epochs:
                        # What Tune's scheduler decides by. A trial that has trained to its end is not stopped.
                        trained = stopping.share(reached["epoch"], epochs)
                        report |= {"trained": trained, stopping.MEASURE: reached[stopping.MEASURE]}
                    tune.report(report)
                    # An epoch that it trains once more, since it was not kept, is no step further.
                    if reached.get("epoch", 0) > furthest:
                        losses, furthest = Losses(), reached["epoch"]
            return None
        except Failed as error:
            return str(error)
        except Lost as error:
            if is_trained():  # lost between its last word and its end
                return None
            losses = losses.and_by(error)
            if losses.are_enough:
                return f"training was lost {losses.total()} ({error})"
            tune.report({"phase": "retry", "error": f"training: {error} ({losses.next_start()})"})


def _evaluated(
    evaluate: Callable[[Shard, int], ray.ObjectRef], shards: Sequence[Shard], permits: Any, trial_id: str
) -> list[str]:
    """Run every shard; one that fails does not stop the others. Returns what went wrong."""
    waiting = deque((shard, Losses()) for shard in shards)
    asked: dict[ray.ObjectRef, str] = {}  # at most one: the permit for the next shard, and its key
    running: dict[ray.ObjectRef, tuple[Shard, Losses, str]] = {}
    failed = []
    while waiting or running:
        if waiting and not asked:
            key = permitting.new_key()
            asked[permits.acquire.remote(key, trial_id, "evaluate")] = key
        (done,), _ = ray.wait([*asked, *running], num_returns=1)
        if done in asked:
            ray.get(done)
            shard, losses = waiting.popleft()
            running[evaluate(shard, SMALLER**losses.alone)] = shard, losses, asked.pop(done)
            continue
        shard, losses, key = running.pop(done)
        permits.release.remote(key)
        span = f"images {shard.first}-{shard.last}"
        try:
            with told_apart():
                about = {"shard_images": shard.images, "first": shard.first, "last": shard.last}
                tune.report({"phase": "evaluating", **about, **ray.get(done)})
        except Failed as error:
            failed.append(f"{span}: {error}")
        except Lost as error:
            losses = losses.and_by(error)
            if losses.are_enough:
                failed.append(f"{span}: {_given_up(error, losses)}")
            else:
                waiting.appendleft((shard, losses))
                tune.report({"phase": "retry", "error": f"{span}: {error} ({losses.next_start()})"})
    return failed


def _named(failed: Sequence[str]) -> str:
    """What went wrong in one line, however many shards it was."""
    more = len(failed) - SHARDS_NAMED
    return "; ".join([*failed[:SHARDS_NAMED], *([f"and {more} more shards"] if more > 0 else [])])


def _given_up(error: Lost, losses: Losses) -> str:
    """What to say of a shard that is not started again, and what might help."""
    said = f"lost {losses.total()} ({error})"
    if not losses.alone:
        return said
    at_last = f"the last time with {SMALLER ** (losses.alone - 1)} times fewer images at once than the first"
    if isinstance(error, Exhausted):
        return f"did not fit into memory, {at_last} ({error})"
    return (f"{said}, {at_last}; if the node's memory did not suffice, lower resources.evaluate.memory, or raise "
            "resources.evaluate.cpus so that fewer shards share a node")  # fmt: skip
