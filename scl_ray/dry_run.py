"""What a sweep would do and roughly how long it would take, without a cluster and, if need be, without its data."""

import time
from collections.abc import Sequence

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from scl_ray import datasets, plan
from scl_ray.config import InputError, Sweep, Trial
from scl_ray.store import open_store

GPU_FLOPS = 2e13  # float32 operations a second that a data-centre GPU sustains on such networks: an assumption, said so


def describe(sweep: Sweep, out: str, console: Console) -> None:
    """Print trials, cells, shards and forward passes, what is already done, and an estimate of the time.

    Writes nothing. Without the dataset it still counts; what is done cannot be told then.
    """
    slots = plan.local_slots(sweep.resources.train)
    trials = sweep.trials()
    dataset, absence = None, ""
    try:
        dataset = datasets.load(sweep.dataset.model_copy(update={"download": False}))
    except InputError as error:
        if sweep.dataset.name not in datasets.INFO:
            raise
        absence = str(error)
    grid = sweep.grid
    console.print(f"sweep {sweep.name}: {len(trials)} trials = {len(grid.objective)} objectives x "
                  f"{len(grid.backbone)} backbones x {len(grid.seed)} seeds")  # fmt: skip
    if dataset is not None:
        todo = plan.make(sweep, dataset, open_store(out, sweep.name), slots)
        cells, not_cells, images = [v.cell for v in todo.cells], todo.not_cells, todo.images
        size, train_images = dataset.image_size, len(dataset.train_labels)
        to_train = [work.trial for work in todo.work.values() if work.train]
        jobs = [(work.trial.backbone, shard.images, [v.cell for v in shard.cells])
                for work in todo.work.values() for shard in work.shards]  # fmt: skip
        wanted = len(todo.trials) * len(cells) * images
        missing = sum(count * len(shard_cells) for _, count, shard_cells in jobs)
        console.print(f"done already: {len(todo.trials) - len(to_train)} of {len(todo.trials)} trials trained, "
                      f"{wanted - missing:,} of {wanted:,} scores")  # fmt: skip
    else:
        info = datasets.INFO[sweep.dataset.name]
        console.print(f"{absence}\nso what is already done cannot be told; counted as if nothing were:")
        size, images = sweep.dataset.image_size or info.image_size, plan.images_of(sweep, info.test_images)
        train_images = round(info.train_images * (1 - sweep.dataset.validation))
        cells, not_cells = plan.cells_of(sweep, has_masks=False)
        to_train = trials
        step = plan.shard_images(images, len(trials), slots)
        cuts = [min(step, images - first) for first in range(0, images, step)]
        jobs = [(trial.backbone, count, cells) for trial in trials for count in cuts]
    for cell, reason in not_cells:
        console.print(f"not a cell: {cell.method} x {cell.metric}: {reason}")
    per_image = {shard: _passes(list(shard), size, classes) for shard in {tuple(j[2]) for j in jobs}}
    passes = sum(count * per_image[tuple(shard)] for _, count, shard in jobs)
    epochs = sum(trial.training.epochs for trial in to_train)
    console.print(f"to train: {len(to_train)} trials, {epochs:,} epochs of {train_images:,} images")
    console.print(f"to evaluate: {len(cells)} cells on {images:,} images a trial in {len(jobs)} shards, "
                  f"{passes:,} forward passes (a backward pass counts as two)")  # fmt: skip
    if not to_train and not jobs:
        console.print("nothing to do; nothing was written")
        return
    seconds, operations = _cost(to_train, train_images, [(b, n * per_image[tuple(c)]) for b, n, c in jobs], size, classes)
    console.print(f"estimate: about {_duration(seconds / slots)} on {slots} slots of this machine's CPU (a forward pass of "
                  f"each backbone was timed just now), or {operations / GPU_FLOPS / 3600:.2g} GPU-hours at an assumed "
                  f"{GPU_FLOPS / 1e12:g} TFLOP/s ({operations:.2g} floating-point operations)")  # fmt: skip
    console.print("nothing was written")


def _cost(
    to_train: Sequence[Trial], train_images: int, evaluations: Sequence[tuple[str, int]], image_size: int, classes: int
) -> tuple[float, float]:
    """Seconds on one slot of this machine and floating-point operations, of all that is to be trained and evaluated.

    *evaluations* are (backbone, forward passes).
    """
    from scl_ray import objectives

    passes: dict[str, float] = {}
    for trial in to_train:
        # A training step costs about three forward passes: one forward, and a backward that costs two.
        steps = 3 * objectives.build(trial.objective, classes).views * trial.training.epochs * train_images
        passes[trial.backbone] = passes.get(trial.backbone, 0) + steps
    for backbone, count in evaluations:
        passes[backbone] = passes.get(backbone, 0) + count
    seconds = operations = 0.0
    for backbone, count in passes.items():
        per_pass, flops = _forward_cost(backbone, image_size)
        seconds += count * per_pass
        operations += count * flops
    return seconds, operations


def _forward_cost(backbone: str, image_size: int) -> tuple[float, float]:
    """Seconds on one thread and floating-point operations of one image's forward pass."""
    from scl_ray.backbones import build

    network = build(backbone, image_size).eval()
    images = torch.zeros(8, 3, image_size, image_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                network(images)
            started = time.perf_counter()
            network(images)
            seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    return seconds / len(images), counter.get_total_flops() / len(images)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
