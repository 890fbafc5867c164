"""What a sweep wants, what is already there, and so what is to be done.

What is finished is what is on disk: nothing here remembers an earlier run.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from scl_ray.config import Cell, InputError, Slot, Sweep, Trial
from scl_ray.store import SCHEMA, Shard, Store, Versioned

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

SAMPLE = 16  # the first ranks, whose images, maps and curves are kept for the report
GRANULE = 64  # shards are cut on multiples of it


class Work(NamedTuple):
    """What one trial still needs."""

    trial: Trial
    train: bool
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Plan:
    """The trials, cells and images that a sweep covers, and the work that each trial still needs."""

    sweep: Sweep
    dataset: dict[str, Any]
    trials: dict[str, Trial]
    cells: tuple[Versioned, ...]
    not_cells: tuple[tuple[Cell, str], ...]
    images: int
    work: dict[str, Work]

    def record(self) -> dict[str, Any]:
        """``plan.json``: which rows of the store are this sweep's."""
        return {
            "schema": SCHEMA,
            "trials": list(self.trials),
            "cells": [[*v.cell, v.version] for v in self.cells],
            "not_cells": [[*cell, reason] for cell, reason in self.not_cells],
            "images": self.images,
            "sample": SAMPLE,
            "protocols": list(self.sweep.evaluation.protocol),
            "dataset": self.dataset,
        }

    def trial_record(self, trial: Trial) -> dict[str, Any]:
        """What a trial's record says whatever became of it."""
        return {
            "label": trial.label,
            "objective_label": trial.objective.label,
            "configuration": trial.model_dump(mode="json", exclude={"objective": {"training"}}),
            "dataset": {
                **{key: self.dataset[key] for key in ("name", "fingerprint", "image_size")},
                "classes": len(self.dataset["classes"]),
            },
        }


def make(sweep: Sweep, dataset: "Dataset", store: Store, slots: int) -> Plan:
    """Compare what *sweep* wants with what *store* holds. *slots* is how many shards can run at once."""
    from scl_ray.evaluation import cell_version

    summary = describe(dataset)
    cells, not_cells = cells_of(sweep, dataset.test_masks is not None)
    versioned = tuple(Versioned(cell, cell_version(cell)) for cell in cells)
    images = images_of(sweep, len(dataset.test_labels))
    trials = {trial.identity(summary["fingerprint"], summary["image_size"]): trial for trial in sweep.trials()}
    step = shard_images(images, len(trials), slots)
    work = {}
    for trial_id, trial in trials.items():
        shards = store.missing(
            trial_id, versioned, readouts(trial, sweep), images, step, save_maps=sweep.evaluation.save_maps
        )
        work[trial_id] = Work(trial, not store.is_trained(trial_id), tuple(shards))
    todo = {trial_id: w for trial_id, w in work.items() if w.train or w.shards}
    return Plan(sweep, summary, trials, versioned, tuple(not_cells), images, todo)


def check(sweep: Sweep, dataset: "Dataset") -> None:
    """Raise InputError when *dataset* cannot serve *sweep*'s evaluation."""
    images_of(sweep, len(dataset.test_labels))
    cells_of(sweep, dataset.test_masks is not None)


def cells_of(sweep: Sweep, has_masks: bool) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """The sweep's cells, and those that make no sense with the reason."""
    from scl_ray.evaluation import cells

    valid, not_cells = cells(sweep.evaluation.methods, sweep.evaluation.metrics, has_masks)
    if not valid:
        raise InputError(f"evaluation: no method goes with any metric ({not_cells[0][1]}); add one that does")
    return valid, not_cells


def images_of(sweep: Sweep, available: int) -> int:
    """How many test images are explained. Raises InputError when the configuration asks for more than there are."""
    wanted = sweep.evaluation.images
    if wanted is not None and wanted > available:
        raise InputError(f"evaluation.images: {wanted} is more than the {available} test images of "
                         f"{sweep.dataset.name}; lower it or leave it out for all")  # fmt: skip
    return wanted or available


def readouts(trial: Trial, sweep: Sweep) -> list[str]:
    """The read-outs whose predictions are kept: one for each protocol that is evaluated."""
    kind = "own_layer" if trial.objective.name == "cross_entropy" else "linear_probe"
    return [kind if protocol == "corrected" else f"{kind}_published" for protocol in sweep.evaluation.protocol]


def shard_images(images: int, trials: int, slots: int) -> int:
    """How many images a shard holds: few enough that every slot has some of the last trials' work.

    A multiple of `GRANULE`, at most 1,024, so that a lost shard costs little.
    """
    per_slot = images * min(trials, 2) / (4 * slots)
    return min(1024, max(1, round(per_slot / GRANULE)) * GRANULE)


def describe(dataset: "Dataset") -> dict[str, Any]:
    """What plan and records say of the dataset."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "image_size": int(dataset.test_images.shape[-1]),
        "classes": list(dataset.classes),
        "test_images": len(dataset.test_labels),
        "mean": [float(value) for value in dataset.mean],
        "std": [float(value) for value in dataset.std],
    }


def local_slots(slot: Slot) -> int:
    """How many tasks of this kind this machine runs at once. Raises InputError when it is too small for one."""
    import torch

    slots = (os.cpu_count() or 1) // slot.cpus
    if torch.cuda.is_available() and slot.gpus:
        slots = min(slots, int(torch.cuda.device_count() / slot.gpus))
    if not slots:
        raise InputError(f"resources: this machine has not the {slot.cpus} CPUs or {slot.gpus:g} GPUs of one task; "
                         "lower resources.train and resources.evaluate")  # fmt: skip
    return slots


def total_images(shards: Sequence[Shard]) -> int:
    return sum(shard.images for shard in shards)
