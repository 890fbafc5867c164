"""What of a store is not as it was written: found, named and removed, so that the run that follows computes it anew."""

import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from scl_ray.given.config import Comparison
from scl_ray.parts import Part, Versioned, gaps
from scl_ray.plan import SAMPLE, Plan
from scl_ray.store import KINDS, Store

SAMPLE_IMAGES = "samples/images.parquet"
REQUESTS = 16  # at once, to a remote storage: each holds a part in memory


class Damage(NamedTuple):
    """A file of the store, by its path below the root, and what is wrong with it, as a clause."""

    path: str
    why: str


def mend(store: Store, plan: Plan, console: Console, *, checkpoints: Collection[str] = ()) -> bool:
    """Remove what is damaged of the *plan*'s trials, each named on the *console*. Returns whether there was anything:
    the plan is then to be made again.

    Every part is read whole; of a checkpoint the size is compared, since its bytes are when it is used, but for those
    of *checkpoints*, which are read too. The report goes with what it was made of.
    """
    # On a disk, hashing takes the time, and leaves Python's lock alone; elsewhere, waiting for answers.
    threads = len(os.sched_getaffinity(0)) if isinstance(store.fs, LocalFileSystem) else REQUESTS
    with ThreadPoolExecutor(threads) as pool:
        found = [
            damage for each in pool.map(partial(_of_trial, store, plan, checkpoints), plan.trials) for damage in each
        ]
    if store.exists(SAMPLE_IMAGES) and (why := store.problem(store.path(SAMPLE_IMAGES))):
        found.append(Damage(SAMPLE_IMAGES, why))
    for damage in found:
        _remove(store, plan, damage, console)
    if found:
        store.remove("report/index.html")
    return bool(found)


def mend_checkpoint(store: Store, plan: Plan, trial: str, console: Console) -> None:
    """Remove the trial's checkpoint, named on the *console*, if it is damaged when it is read: then the same command
    makes it anew."""
    if why := store.checkpoint_problem(trial, is_read=True):
        _remove(store, plan, _of_checkpoint(trial, why), console)


def _of_checkpoint(trial: str, why: str) -> Damage:
    # Without it the whole checkpoint counts as lost.
    return Damage(f"checkpoints/{trial}/checkpoint.json", why)


def _remove(store: Store, plan: Plan, damage: Damage, console: Console) -> None:
    done_again = "it is computed again"
    if damage.path.startswith("checkpoints/"):
        is_given = plan.sweep.kind == Comparison.kind
        done_again = "it comes back when its file is given" if is_given else "the trial is to be trained again"
    console.print(f"damaged: {damage.path} ({damage.why}); {done_again}", style="yellow")
    store.remove(damage.path)


def _of_trial(store: Store, plan: Plan, checkpoints: Collection[str], trial: str) -> list[Damage]:
    def damage(part: Part, why: str) -> Damage:
        return Damage(part.path.removeprefix(store.path("")), why)

    found = []
    if why := store.checkpoint_problem(trial, is_read=trial in checkpoints):
        found.append(_of_checkpoint(trial, why))
    whole: dict[str, list[Part]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for part in store.parts(kind, trial):
            why = store.problem(part.path)
            if why is None and kind != "predictions" and not store.held(part):
                # Only from before there were checksums: it can be read, and yet does not say what it holds.
                why = "its footer is damaged"
            if why:
                found.append(damage(part, why))
            else:
                whole[kind].append(part)
    # Curves and maps are made in passing, when scores are: where they are gone, the scores go too.
    maps = {kind: list(_held(store, whole[kind], plan.cells)) for kind in ("curves", "samples")}
    for part in whole["scores"]:
        if lacks := _lacks(store, plan, part, maps):
            found.append(damage(part, f"the {lacks} that belong to it are gone"))
    return found


def _held(store: Store, parts: Iterable[Part], wanted: Iterable[Versioned]) -> Iterator[tuple[Versioned, int, int]]:
    cells = set(wanted)
    for part in parts:
        for versioned in cells.intersection(store.cells(part)):
            yield versioned, part.first, part.last


def _lacks(
    store: Store, plan: Plan, scores: Part, held: dict[str, list[tuple[Versioned, int, int]]]
) -> str | None:  # fmt: skip
    """Which of ``curves`` and ``maps`` the sample images of a part of scores lack, if any."""
    from scl_ray import metrics

    count = min(scores.last + 1, SAMPLE)
    for versioned in set(plan.cells).intersection(store.cells(scores)):
        spans = [(first, last) for each, first, last in held["curves"] if each == versioned]
        if metrics.resolve(versioned.cell.metric).entry.curve and _is_open(spans, scores.first, count):
            return "curves"
        spans = [(first, last) for each, first, last in held["samples"] if _same_map(each, versioned)]
        # Where all maps are kept, they are wanted by themselves.
        if not plan.sweep.evaluation.save_maps and _is_open(spans, scores.first, count):
            return "maps"
    return None


def _same_map(one: Versioned, other: Versioned) -> bool:
    """Whether the maps of two cells are the same: a version is the method's, then the metric's."""
    return one.cell.method == other.cell.method and one.version.split("-")[0] == other.version.split("-")[0]


def _is_open(held: Iterable[tuple[int, int]], first: int, count: int) -> bool:
    """Whether any rank from *first* to below *count* is not *held*."""
    return any(last >= first for _, last in gaps(held, count, count))
