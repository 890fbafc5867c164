"""What a sweep's configuration no longer wants of its store: trials, cells, read-outs, maps and images.

A file counts only when it is one that a sweep writes; whatever else lies there is left alone, and so are MLflow's runs.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.filesize import decimal

from scl_ray import datasets, lock, plan, session
from scl_ray.config import InputError, Sweep
from scl_ray.datasets import Dataset
from scl_ray.parts import Part, Versioned, part_of
from scl_ray.plan import SAMPLE, Plan
from scl_ray.storage import StorageError
from scl_ray.store import Store, open_store

# In the order of removal. Whatever is left by a kill is as sound as a run's: no scores without what belongs to them,
# no checkpoint that looks whole, and the record, which says what the rest is, goes last.
KINDS = ("scores", "curves", "samples", "predictions", "checkpoints", "trials")

# What a sweep calls a trial's files, after the trial; what is not here is in parts.
_NAMES = {"checkpoints": r"/(checkpoint\.json|weights\.safetensors|resume\.pt)", "trials": r"\.json"}
_NOT_IN_GRID = "not in the grid"


class Unwanted(NamedTuple):
    """A file, by its full path, that the configuration does not want, or wants less of.

    ``size``: bytes that removing it frees, estimated where it is written anew with the cells *kept*, on ranks up to
    *last*.
    """

    trial: str
    reason: str
    kind: str
    path: str
    size: int
    part: Part | None = None
    kept: tuple[Versioned, ...] = ()
    last: int = -1


def prune(sweep: Sweep, out: str, console: Console, *, remove: bool) -> None:
    """List what *sweep* does not want of what lies below *out*, and remove it if told so.

    Raises InputError without the dataset, and when what is to be removed belongs to a run that is alive.
    """
    try:
        dataset = datasets.load(sweep.dataset.model_copy(update={"download": False}))
    except InputError as error:
        raise InputError(
            f"{error}; without the dataset, whose content is part of a trial's identity, what is not wanted cannot be "
            "told"
        ) from error
    store = open_store(out, sweep.name)
    wanted, found = _look(sweep, dataset, store)
    with contextlib.ExitStack() as stack:
        if remove and found:  # else nothing is written, not even a lock
            stack.enter_context(lock.held(store, lost=session.leave))
            wanted, found = _look(sweep, dataset, store)  # whoever held it until now may have changed it
        for line in describe(store, found):
            console.print(line)
        if not found:
            console.print(f"{store.name}: holds nothing that the configuration does not want")
        elif not remove:
            console.print("nothing was removed; the same command with --yes removes it")
        else:
            _remove(store, wanted, dataset, found)
            console.print("removed; MLflow's runs were left alone")


def _look(sweep: Sweep, dataset: Dataset, store: Store) -> tuple[Plan, list[Unwanted]]:
    session.check_kind(store, sweep.kind)
    wanted = plan.make(sweep, dataset, store, slots=1)
    return wanted, unwanted(store, wanted)


def _remove(store: Store, wanted: Plan, dataset: Dataset, found: Sequence[Unwanted]) -> None:
    sample = dataset.evaluation_order[:SAMPLE].tolist()
    # First of all: what is read from now on is what is kept.
    try:
        session.write_plan(store, wanted, dataset, is_to_run=False)
    except StorageError:
        # On a full disk, room is first made by what no plan of this grid reads.
        for one in found:
            if one.reason == _NOT_IN_GRID:
                take_away(store, one, sample)
        found = [one for one in found if one.reason != _NOT_IN_GRID]
        session.write_plan(store, wanted, dataset, is_to_run=False)
    for one in found:
        take_away(store, one, sample)


def unwanted(store: Store, wanted: Plan) -> list[Unwanted]:
    """What *wanted* does not want, in the order in which it is to be removed."""
    found, cells = [], frozenset(wanted.cells)
    for kind in KINDS:
        written = re.compile(rf"{kind}/(?P<trial>[0-9a-f]{{12}}){_NAMES.get(kind, '/[^/]+')}")
        files = store.fs.find(store.path(kind), detail=True)
        for path, info in sorted(files.items()):
            part, file = part_of(path), written.fullmatch(path.removeprefix(store.path("")))
            if kind in _NAMES and file and file["trial"] not in wanted.trials:
                found.append(Unwanted(file["trial"], _NOT_IN_GRID, kind, path, info["size"]))
            elif kind not in _NAMES and file and part:
                found.extend(_of_part(store, wanted, cells, kind, part, info["size"]))
    place = {trial: number for number, trial in enumerate(dict.fromkeys(one.trial for one in found))}
    # Trials that go as a whole go first: to write a part anew takes room.
    return sorted(found, key=lambda one: (one.reason != _NOT_IN_GRID, place[one.trial], KINDS.index(one.kind)))


def _of_part(
    store: Store, wanted: Plan, wanted_cells: frozenset[Versioned], kind: str, part: Part, size: int
) -> Iterator[Unwanted]:  # fmt: skip
    trial = part.path.split("/")[-2]
    evaluation = wanted.sweep.evaluation
    whole = Unwanted(trial, "", kind, part.path, size)
    if trial not in wanted.trials:
        yield whole._replace(reason=_NOT_IN_GRID)
    elif part.first >= wanted.images:
        yield whole._replace(reason="past the images wanted")
    elif kind == "predictions":
        if part.holds not in plan.readouts(wanted.trials[trial].readout, evaluation):
            yield whole._replace(reason="read-out not wanted")
    else:
        cells = store.cells(part)
        kept = tuple(versioned for versioned in cells if versioned in wanted_cells)
        last = part.last if kind != "samples" or evaluation.save_maps else min(part.last, SAMPLE - 1)
        if not kept:
            yield whole._replace(reason="cells not wanted")
        elif part.first > last:
            yield whole._replace(reason="maps not wanted")
        elif len(kept) < len(cells) or last < part.last:
            share = len(kept) / len(cells) * (last - part.first + 1) / (part.last - part.first + 1)
            reason = "cells not wanted" if len(kept) < len(cells) else "maps not wanted"
            yield Unwanted(trial, reason, kind, part.path, round(size * (1 - share)), part, kept, last)


def describe(store: Store, found: Sequence[Unwanted]) -> Iterator[str]:
    """A line for each trial and reason, and one for all."""
    by_trial: dict[str, list[Unwanted]] = defaultdict(list)
    for one in found:
        by_trial[one.trial].append(one)
    records = store.records(list(by_trial))
    for trial, several_reasons in by_trial.items():
        own = sorted(several_reasons, key=lambda one: one.reason)
        label = records[trial]["label"] if trial in records else "a trial without a record"
        for reason, group in groupby(own, key=lambda one: one.reason):
            several = list(group)
            kinds = ", ".join(kind for kind in KINDS if kind in {one.kind for one in several})
            yield f"{label} ({trial}): {reason}: {kinds}, {_bytes(several)}"
    if found:
        yield f"not wanted: {_bytes(found)} in {len(found):,} files of {len(by_trial):,} trials"


def take_away(store: Store, one: Unwanted, sample: Sequence[int]) -> None:
    """Remove a file, or write it anew with what is kept of it; *sample*: the images of the first ranks."""
    if one.part is None:
        store.fs.rm_file(one.path)
    else:
        is_cut = one.last < one.part.last
        store.keep(one.kind, one.trial, one.part, one.kept, one.last, sample if is_cut else None)
    if isinstance(store.fs, LocalFileSystem) and one.kind != "trials":
        with contextlib.suppress(OSError):  # not yet empty, or something else lies there
            store.fs.rmdir(one.path.rsplit("/", 1)[0])


def _bytes(found: Sequence[Unwanted]) -> str:
    return decimal(sum(one.size for one in found))
