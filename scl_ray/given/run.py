"""Evaluates given networks in this process: from files of weights to the report, shard after shard, on all cores or
the GPU.

Under one name lies one comparison: the networks that were evaluated under it, on the same images. Another network joins
them, and what is on disk is not computed again.
"""

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from rich.console import Console

from scl_ray import cancelling, checkpoint, dry_run, events, interruption, lock, mending, session, shards, tracking
from scl_ray import plan as planning
from scl_ray.cluster.progress import Progress
from scl_ray.datasets import Dataset
from scl_ray.given import images, joining
from scl_ray.given.checkpoint import GivenClassifier
from scl_ray.given.config import Asked, Comparison, Network
from scl_ray.plan import Plan, Work
from scl_ray.store import Store, local_folder, open_store

SLOTS = 1  # this process works on one shard at a time


class _Given(NamedTuple):
    """What the command brings: its images, and its networks by identity."""

    dataset: Dataset
    networks: dict[str, Network]
    classifiers: dict[str, GivenClassifier]


def run(asked: Asked, out: str, console: Console) -> int:
    """Evaluate what is missing and say what was found. Returns 0 when all is done, 1 when something failed.

    Raises InputError before any work starts when it cannot be done as asked.
    """
    folder = local_folder(out)
    out = out.rstrip("/") if folder is None else str(folder)
    store = open_store(out, asked.name)
    uri = tracking.tracking_uri(out)
    tracking.check(uri, asked.name)
    given = _given(asked)
    session.check_writable(store, out)
    with lock.held(store, lost=session.leave) as token, cancelling.heeded(store, token, stop=interruption.ask):
        store.remove_leftovers()
        plan = _plan(asked, given, store, console)
        # A network that joined earlier cannot be made anew here, so it is known before all else whether it is whole.
        if mending.mend(store, plan, console, checkpoints=plan.work):
            plan = _plan(asked, given, store, console)
        _try(plan, asked, given, store)
        with events.kept(store):
            session.write_plan(store, plan, given.dataset)
            failures = _evaluate(plan, given, store, console)
            return session.finish(plan, store, out, uri, failures, True, console)


def describe(asked: Asked, out: str, console: Console) -> None:
    """Print what `run` would do and about how long it would take. Writes nothing."""
    given, store = _given(asked), open_store(out, asked.name)
    plan = _plan(asked, given, store, console)
    _try(plan, asked, given, store)
    size, missing, passes, seconds = given.dataset.image_size, 0, 0, 0.0
    for trial_id, work in plan.work.items():
        count = sum(shard.images * planning.forward_passes([v.cell for v in (*shard.cells, *shard.maps)], size)
                    for shard in work.shards)  # fmt: skip
        missing += sum(len(shard.cells) * shard.images for shard in work.shards)
        classifier = _classifier(store, trial_id, given.classifiers)
        passes += count
        seconds += count * _seconds(classifier, given.dataset)
    wanted = len(plan.trials) * len(plan.cells) * plan.images
    for cell, reason in plan.not_cells:
        console.print(f"not a cell: {cell.method} x {cell.metric}: {reason}")
    console.print(f"comparison {asked.name}: {len(plan.trials)} networks ({', '.join(_labels(plan))}), "
                  f"{len(plan.cells)} cells on {plan.images:,} images each")  # fmt: skip
    console.print(f"done already: {wanted - missing:,} of {wanted:,} scores")
    console.print(f"to evaluate: {sum(len(work.shards) for work in plan.work.values())} shards with {passes:,} "
                  "forward passes (a backward pass counts as two)")  # fmt: skip
    if plan.work:
        console.print(f"estimate: about {dry_run.duration(seconds)} on this machine's CPU (a forward pass of each "
                      "network was timed just now)")  # fmt: skip
    console.print("nothing was written")


@torch.no_grad()
def _seconds(classifier: GivenClassifier, dataset: Dataset) -> float:
    """What a forward pass takes, an image."""
    sample = images.normalised(dataset.test_images[:8], classifier.mean, classifier.std)
    classifier.network(sample)
    started = time.perf_counter()
    classifier.network(sample)
    return (time.perf_counter() - started) / len(sample)


def _given(asked: Asked) -> _Given:
    dataset = images.load(asked.dataset, len(asked.mean), asked.evaluation.images)
    found = joining.read(asked, dataset)
    return _Given(
        dataset,
        {trial_id: network for trial_id, (network, _) in found.items()},
        {trial_id: classifier for trial_id, (_, classifier) in found.items()},
    )


def _plan(asked: Asked, given: _Given, store: Store, console: Console) -> Plan[Network]:
    """What is to be done."""
    session.check_kind(store, Comparison.kind)
    known, left_out = joining.earlier(store, given.dataset, len(asked.mean), asked.dataset.validation)
    for reason in left_out:
        console.print(f"left out: {reason}", style="yellow")
    trials = joining.together(known, given.networks, bool(asked.label))
    comparison = Comparison(
        name=asked.name, dataset=asked.dataset, networks=list(trials.values()), evaluation=asked.evaluation
    )
    return planning.compare(comparison, trials, given.dataset, store, SLOTS)


def _try(plan: Plan[Network], asked: Asked, given: _Given, store: Store) -> None:
    """Raise InputError unless every network that lacks something suits what is asked for."""
    for trial_id, work in plan.work.items():
        classifier = _classifier(store, trial_id, given.classifiers)
        joining.check(classifier, _seen_by(work.trial, classifier, given.dataset), asked.evaluation)


def _evaluate(plan: Plan[Network], given: _Given, store: Store, console: Console) -> dict[str, str]:
    """Calibrate what is new and evaluate what is missing, one shard at a time. Returns what failed, trial to reason."""
    for label in joining.several(plan.trials.values()):
        console.print(f"{label} stands for several networks, which count as its seeds")
    if not plan.work:
        return {}
    new = {trial_id for trial_id, work in plan.work.items() if work.train}
    for trial_id in new:
        plan.work[trial_id] = plan.work[trial_id]._replace(train=False)
    with Progress(plan, SLOTS, console) as progress:
        for trial_id, work in plan.work.items():
            progress.update(trial_id, {"phase": "trained"})
            try:
                if trial_id in new:
                    console.print(_join(plan, trial_id, given, store))
                for done in _shards(trial_id, work, given.dataset, store):
                    progress.update(trial_id, done)
            except Exception as error:  # a user's network may raise anything, and the others are evaluated all the same
                reason = (str(error).strip().splitlines() or [""])[0]
                progress.update(trial_id, {"phase": "failed", "error": f"{type(error).__name__}: {reason}"})
            else:
                progress.update(trial_id, {"phase": "done"})
    return progress.failures


def _join(plan: Plan[Network], trial_id: str, given: _Given, store: Store) -> str:
    """Put a new network into the store. Returns what to say of it."""
    network, classifier = plan.trials[trial_id], given.classifiers[trial_id]
    data = _seen_by(network, classifier, given.dataset)
    return (
        f"{network.label} ({trial_id}): {joining.join(store, trial_id, plan.trial_record(network), classifier, data)}"
    )


def _shards(trial_id: str, work: Work[Network], dataset: Dataset, store: Store) -> Iterator[dict[str, object]]:
    """Evaluate a network's shards. Yields after each what `Progress` takes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = _classifier(store, trial_id, {})
    data = _seen_by(work.trial, classifier, dataset)
    for shard in work.shards:
        started = time.perf_counter()
        shards.evaluate(store, trial_id, classifier, shard, data, device)
        seconds = time.perf_counter() - started
        yield {"phase": "evaluating", "shard_images": shard.images, "first": shard.first, "last": shard.last,
               "slot_seconds": seconds, "node": None}  # fmt: skip


def _classifier(store: Store, trial_id: str, given: Mapping[str, GivenClassifier]) -> GivenClassifier:
    """A network of the plan: as it was given, or as the store holds it."""
    if trial_id in given:
        return given[trial_id]
    found = checkpoint.from_files(store.read_checkpoint(trial_id))
    assert isinstance(found, GivenClassifier)
    return found


def _seen_by(network: Network, classifier: GivenClassifier, dataset: Dataset) -> Dataset:
    return images.labelled(dataset, network.outputs, classifier.classes)


def _labels(plan: Plan[Network]) -> list[str]:
    return list(dict.fromkeys(network.label for network in plan.trials.values()))
