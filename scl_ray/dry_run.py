"""What a sweep would do and roughly how long it would take, without a cluster and, if need be, without its data."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.console import Console

from scl_ray import backbones, cost, datasets, hand_off, plan, session
from scl_ray.config import Cell, InputError, Sweep, Trial
from scl_ray.store import open_store

GPU_FLOPS = 2e13  # float32 operations a second that a data-centre GPU sustains on such networks: an assumption, said so


class _Todo(NamedTuple):
    """What is still to be done: trials to train, and (backbone, images, cells) of every shard to evaluate."""

    train: Sequence[Trial]
    shards: Sequence[tuple[str, int, tuple[Cell, ...]]]


def describe(sweep: Sweep, out: str, console: Console) -> None:
    """Print trials, cells, shards and forward passes, what is already done, and an estimate of the time.

    Writes nothing. Without the dataset it still counts; what is done cannot be told then.
    """
    trials, grid = sweep.trials(), sweep.grid
    try:
        slots = plan.local_slots(sweep.resources.train)
        machine = f"on {slots} slots of this machine's CPU"
    except InputError:  # it is to run elsewhere
        slots, machine = 1, "on one slot of this machine's CPU, too small to run it"
    console.print(f"sweep {sweep.name}: {len(trials)} trials = {len(grid.objective)} objectives x "
                  f"{len(grid.backbone)} backbones x {len(grid.seed)} seeds")  # fmt: skip
    try:
        dataset = datasets.load(sweep.dataset.model_copy(update={"download": False}))
    except InputError as error:
        console.print(f"{error}; so what is already done cannot be told, and all is counted as still to do")
        info = datasets.INFO.get(sweep.dataset.name)
        cells, not_cells = plan.cells_of(sweep, has_masks=info is not None and info.has_masks)
        if info is None:
            console.print(f"to train: {len(trials)} trials, {sum(t.training.epochs for t in trials):,} epochs")
            console.print(f"to evaluate: {len(cells)} cells a trial; without its images the cost cannot be told")
            console.print("nothing was written")
            return
        size, classes = sweep.dataset.image_size or info.image_size, info.classes
        train_images = round(info.train_images * (1 - sweep.dataset.validation))
        images = plan.images_of(sweep, info.test_images)
        step = hand_off.shard_images(images, len(trials), slots)
        cuts = [min(step, images - first) for first in range(0, images, step)]
        todo = _Todo(trials, [(trial.backbone, count, tuple(cells)) for trial in trials for count in cuts])
    else:
        store = open_store(out, sweep.name)
        session.check_kind(store, sweep.kind)
        found = plan.make(sweep, dataset, store, slots)
        size, classes, train_images = dataset.image_size, len(dataset.classes), len(dataset.train_labels)
        images, cells, not_cells = found.images, [v.cell for v in found.cells], list(found.not_cells)
        todo = _Todo(
            [work.trial for work in found.work.values() if work.train],
            [(work.trial.backbone, shard.images, tuple(v.cell for v in (*shard.cells, *shard.maps)))
             for work in found.work.values() for shard in work.shards],
        )  # fmt: skip
        wanted = len(found.trials) * len(cells) * images
        missing = sum(len(s.cells) * s.images for work in found.work.values() for s in work.shards)
        console.print(
            f"done already: {len(found.trials) - len(todo.train)} of {len(found.trials)} trials trained, "
            f"{wanted - missing:,} of {wanted:,} scores"
        )
    for cell, reason in not_cells:
        console.print(f"not a cell: {cell.method} x {cell.metric}: {reason}")
    epochs = sum(trial.training.epochs for trial in todo.train)
    passes = _evaluation_passes(todo, size)
    console.print(f"to train: {len(todo.train)} trials, {epochs:,} epochs of {train_images:,} images")
    console.print(f"to evaluate: {len(cells)} cells on {images:,} images a trial, in {len(todo.shards)} shards with "
                  f"{passes.total():,} forward passes (a backward pass counts as two)")  # fmt: skip
    if todo.train or todo.shards:
        try:
            seconds, operations = _cost(_training_passes(todo, train_images, classes) + passes, size)
        except backbones.BuildError as error:
            console.print(f"no estimate: {error}; its trials would fail")
            console.print("nothing was written")
            return
        hours = operations / GPU_FLOPS / 3600
        console.print(f"estimate: about {duration(seconds / slots)} {machine} (a forward pass of each backbone was "
                      f"timed just now), or {hours:{',.0f' if hours >= 10 else '.2g'}} GPU-hours at an assumed "
                      f"{GPU_FLOPS / 1e12:g} TFLOP/s")  # fmt: skip
    console.print("nothing was written")


def _evaluation_passes(todo: _Todo, image_size: int) -> Counter[str]:
    """Forward passes of one image, by backbone."""
    per_image = {cells: plan.forward_passes(cells, image_size) for cells in {cells for _, _, cells in todo.shards}}
    passes: Counter[str] = Counter()
    for backbone, count, cells in todo.shards:
        passes[backbone] += count * per_image[cells]
    return passes


def _training_passes(todo: _Todo, train_images: int, classes: int) -> Counter[str]:
    """Forward passes of one image, by backbone."""
    passes: Counter[str] = Counter()
    for trial in todo.train:
        passes[trial.backbone] += cost.training_passes(trial, train_images, classes)
    return passes


def _cost(passes: Counter[str], image_size: int) -> tuple[float, float]:
    """Seconds on one slot of this machine, and floating-point operations, of forward passes by backbone."""
    seconds = operations = 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for backbone, count in passes.items():
        network, images = backbones.build(backbone, image_size).eval(), torch.zeros(8, 3, image_size, image_size)
        operations += count * cost.operations(network, images)
        with torch.no_grad():
            started = time.perf_counter()
            network(images)
            seconds += count * (time.perf_counter() - started) / len(images)
    torch.set_num_threads(threads)
    return seconds, operations


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"
