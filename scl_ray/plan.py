"""What a sweep wants, what is already there, and so what is to be done.

What is finished is what is on disk: nothing here remembers an earlier run.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from scl_ray.config import Cell, Evaluation, InputError, Slot, Sweep, Trial
from scl_ray.given.config import Comparison, Network
from scl_ray.hand_off import shard_images
from scl_ray.parts import Part, Shard, Versioned
from scl_ray.store import SCHEMA, Store

if TYPE_CHECKING:
    from scl_ray.datasets import Dataset

SAMPLE = 16  # the first ranks, whose images, maps and curves are kept for the report


T = TypeVar("T", bound=Trial | Network)  # what is planned: a point of a sweep's grid, or a given network


class Work(NamedTuple, Generic[T]):
    """What one trial still needs."""

    trial: T
    train: bool
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Plan(Generic[T]):
    """The trials, cells and images that a sweep covers, and the work that each trial still needs."""

    sweep: Sweep | Comparison
    dataset: dict[str, Any]
    trials: dict[str, T]
    cells: tuple[Versioned, ...]
    not_cells: tuple[tuple[Cell, str], ...]
    images: int
    shard_images: int
    work: dict[str, Work[T]]

    def shards(self, store: Store, trial_id: str, parts: Mapping[str, Sequence[Part]] | None = None) -> list[Shard]:
        """What of a trial's evaluation *store* does not hold. *parts*: the trial's, by kind, where they are known."""
        evaluation = self.sweep.evaluation
        wanted = readouts(self.trials[trial_id].readout, evaluation)
        return store.missing(trial_id, self.cells, wanted, self.images, self.shard_images, evaluation.save_maps,
                             parts)  # fmt: skip

    def record(self) -> dict[str, Any]:
        """``plan.json``: which rows of the store are this sweep's."""
        return {
            "schema": SCHEMA,
            "kind": self.sweep.kind,
            "trials": list(self.trials),
            "cells": [[*v.cell, v.version] for v in self.cells],
            "metrics": {v.cell.metric: _reading(v.cell.metric) for v in self.cells},
            "not_cells": [[*cell, reason] for cell, reason in self.not_cells],
            "images": self.images,
            "sample": SAMPLE,
            "protocols": list(self.sweep.evaluation.protocol),
            "dataset": self.dataset,
        }

    def trial_record(self, trial: T) -> dict[str, Any]:
        """What a trial's record says whatever became of it."""
        return {
            "label": trial.label,
            "objective_label": trial.objective_label,
            "configuration": trial.configuration(),
            "dataset": {
                **{key: self.dataset[key] for key in ("name", "fingerprint", "image_size")},
                "classes": len(self.dataset["classes"]),
            },
        }


def make(sweep: Sweep, dataset: "Dataset", store: Store, slots: int) -> Plan[Trial]:
    """Compare what *sweep* wants with what *store* holds. *slots* is how many shards can run at once."""
    trials = {trial.identity(dataset.fingerprint, dataset.image_size): trial for trial in sweep.trials()}
    plan = compare(sweep, trials, dataset, store, slots)
    if sweep.early_stopping is not None:
        rules = sweep.early_stopping.model_dump(mode="json")
        for trial_id, record in store.records(list(plan.work)).items():
            # Stopped by the very rules that the sweep still has; by others it might go on.
            if record["status"] == "stopped" and record["early_stopping"] == rules:
                del plan.work[trial_id]
    return plan


def compare(sweep: Sweep | Comparison, trials: dict[str, T], dataset: "Dataset", store: Store, slots: int) -> Plan[T]:
    """Compare what is wanted of *trials*, by their identity, with what *store* holds."""
    from scl_ray.evaluation import cell_version

    summary = describe(dataset)
    cells, not_cells = cells_of(sweep, dataset.test_masks is not None)
    versioned = tuple(Versioned(cell, cell_version(cell)) for cell in cells)
    images = images_of(sweep, len(dataset.test_labels))
    forward_passes(cells, summary["image_size"])
    step = shard_images(images, len(trials), slots)
    plan = Plan(sweep, summary, trials, versioned, tuple(not_cells), images, step, work={})
    trained = store.trained(list(trials))
    parts = {kind: store.parts_by_trial(kind, trials) for kind in ("scores", "predictions", "samples")}
    for trial_id, trial in trials.items():
        own = {kind: held[trial_id] for kind, held in parts.items()}
        work = Work(trial, trial_id not in trained, tuple(plan.shards(store, trial_id, own)))
        if work.train or work.shards:
            plan.work[trial_id] = work
    return plan


def check_backbones(plan: Plan, names: Sequence[str]) -> None:
    """Raise InputError when a backbone, built here untrained, does not suit one of the plan's methods or metrics.

    A user's own that raises while it is built says so in its trials, and holds no others up.
    """
    import torch

    from scl_ray import attribution, backbones, metrics
    from scl_ray.checkpoint import ExplainedNetwork
    from scl_ray.readout import ReadOut

    size, classes = plan.dataset["image_size"], len(plan.dataset["classes"])
    methods = dict.fromkeys(v.cell.method for v in plan.cells)
    # Not the mean image, with which there is nothing to tell apart: whatever the network, what it shares out adds up.
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, dtype=torch.int64)
    reference, labels = image.expand(classes, -1, -1, -1), torch.arange(classes)
    for name in names:
        try:
            with torch.random.fork_rng(devices=[]):
                backbone = backbones.build(name, size).eval()
                weight = torch.randn(classes, backbones.feature_size(backbone, size))
            readout = ReadOut(weight, torch.zeros(classes), normalise=True)
            network = ExplainedNetwork(backbone, readout, weight).eval()
            batch = attribution.Batch(network, image, target, reference=reference, reference_labels=labels)
            attribution.check(batch, methods)
            metrics.check(batch, dict.fromkeys(v.cell.metric for v in plan.cells))
        except InputError:
            raise
        except backbones.BuildError:
            continue
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"grid.backbone: {name} cannot be explained at {size}x{size} pixels ({reason}); change "
                             "dataset.image_size, the backbone, evaluation.methods or evaluation.metrics"
                             ) from error  # fmt: skip


def forward_passes(cells: Sequence[Cell], image_size: int) -> int:
    """Forward passes that evaluating one image takes. Raises InputError where a metric does not suit *image_size*."""
    from scl_ray import evaluation

    try:
        return evaluation.forward_passes(cells, image_size)
    except ValueError as error:
        raise InputError(f"evaluation.methods, evaluation.metrics: {error}") from error


def cells_of(sweep: Sweep | Comparison, has_masks: bool) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """The sweep's cells, and those that make no sense with the reason."""
    from scl_ray.evaluation import cells

    valid, not_cells = cells(sweep.evaluation.methods, sweep.evaluation.metrics, has_masks)
    if not valid:
        reason = not_cells[0][1] if not_cells else "their protocols differ"
        raise InputError(f"evaluation.methods, evaluation.metrics: no method goes with any metric ({reason}); add one "
                         "that does")  # fmt: skip
    return valid, not_cells


def images_of(sweep: Sweep | Comparison, available: int) -> int:
    """How many test images are explained. Raises InputError when the configuration asks for more than there are."""
    wanted = sweep.evaluation.images
    if wanted is not None and wanted > available:
        raise InputError(f"evaluation.images: {wanted} is more than the {available} test images of "
                         f"{sweep.dataset.name}; lower it or leave it out for all")  # fmt: skip
    return wanted or available


def readouts(kind: str, evaluation: Evaluation) -> list[str]:
    """The read-outs whose predictions are kept: one of this *kind* for each protocol that is evaluated."""
    return [kind if protocol == "corrected" else f"{kind}_published" for protocol in evaluation.protocol]


def _reading(metric: str) -> dict[str, str]:
    """How a metric's values are read: its facet, and whether lower or higher is better."""
    from scl_ray import metrics

    entry, parameters = metrics.resolve(metric)[1:]
    return {"facet": entry.facet, "direction": entry.better(parameters)}


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

    slots = len(os.sched_getaffinity(0)) // slot.cpus
    if torch.cuda.is_available() and slot.gpus:
        slots = min(slots, tasks_on(torch.cuda.device_count(), slot.gpus))
    if not slots:
        raise InputError(f"resources: this machine has not the {slot.cpus} CPUs or {slot.gpus:g} GPUs of one task; "
                         "lower resources.train and resources.evaluate")  # fmt: skip
    return slots


def tasks_on(gpus: float, share: float) -> int:
    """How many tasks that each take *share* of a GPU, or several whole ones, fit on *gpus* GPUs."""
    # A part of a GPU is always a part of one; 1 / 0.2 must be 5 in spite of rounding.
    return int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share)


def total_images(shards: Sequence[Shard]) -> int:
    return sum(shard.images for shard in shards)
