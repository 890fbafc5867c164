"""Write a sweep's store with generated numbers of known truth, in the format that `scl_ray.results` reads.

The score of an image is the truth of its objective, metric and method, plus its seed's offset, plus a deviation that
sums to zero over the images every trial classifies correctly. So every mean and every spread over seeds is known.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from scl_ray import specs
from scl_ray.config import Cell
from scl_ray.parts import Versioned, evaluation
from scl_ray.store import Store, open_store

OBJECTIVES = {
    "cross_entropy": {"name": "cross_entropy", "label_smoothing": 0.0},
    "supcon τ=0.07": {"name": "supcon", "temperature": 0.07},
    "supcon τ=0.5": {"name": "supcon", "temperature": 0.5},
    "triplet margin=0.3": {"name": "triplet", "margin": 0.3, "mining": "semi_hard"},
}
SEEDS = (0, 1, 2)
METHODS = ("grad_cam", "eigen_cam", "integrated_gradients")
TRUTH = {  # metric -> the mean under each objective
    "pixel_flipping_auc": (0.371, 0.262, 0.305, 0.322),
    "prediction_flip_auc": (0.402, 0.296, 0.341, 0.366),
    "ssim_continuity": (0.951, 0.962, 0.955, 0.949),
    "ssim_continuity[noise=0.1]": (0.544, 0.571, 0.602, 0.573),
    "ssim_contrastivity": (0.203, 0.341, 0.262, 0.281),
    "complexity": (6.81, 6.39, 6.58, 6.71),
    "sparseness": (0.412, 0.498, 0.455, 0.431),
}
READING = {  # a metric's name -> facet, better direction
    "pixel_flipping_auc": ("faithfulness", "lower"), "prediction_flip_auc": ("faithfulness", "lower"),
    "ssim_continuity": ("continuity", "higher"), "ssim_contrastivity": ("contrastivity", "lower"),
    "complexity": ("complexity", "lower"), "sparseness": ("sparseness", "higher"),
}  # fmt: skip
STEP = {"complexity": 0.02, "ssim_continuity": 0.02}  # distance of two seeds' means; 0.01 elsewhere
METHOD_OFFSET = {"grad_cam": 0.0, "eigen_cam": 0.03, "integrated_gradients": -0.02}
PUBLISHED_OFFSET = -0.1  # what the published protocol adds to every score
IMAGES, SAMPLE, SHARD, TEST_IMAGES = 48, 16, 20, 360
ALWAYS_WRONG = (5, 11)  # ranks that every trial misclassifies
UNDEFINED_RANK = 7  # Eigen-CAM's ssim_contrastivity makes no sense; its complexity is undefined here under supcon


def trial_id(label: str, backbone: str, seed: int) -> str:
    return f"{list(OBJECTIVES).index(label):02d}{sum(backbone.encode()) % 256:02x}{seed:08d}"


def wrong_ranks(label: str, seed: int) -> set[int]:
    """The ranks a trial misclassifies: two of everybody's, one of its own, which differs by seed, and one more for
    each objective before its own."""
    number = list(OBJECTIVES).index(label)
    return {*ALWAYS_WRONG, 20 + number * 3 + seed % 3, *range(40, 40 + number)}


def common_ranks(trials: Iterable[tuple[str, int]], images: int = IMAGES) -> list[int]:
    """The ranks that all *trials* (label, seed) classify correctly."""
    wrong = set().union(*(wrong_ranks(label, seed) for label, seed in trials))
    return [rank for rank in range(images) if rank not in wrong]


def seed_offset(metric: str, seed: int, seeds: tuple[int, ...]) -> float:
    """Equally spaced and centred: with three seeds the spread (n - 1) is STEP itself."""
    return (seeds.index(seed) - (len(seeds) - 1) / 2) * STEP.get(metric, 0.01)


def cells(protocols: tuple[str, ...]) -> list[Cell]:
    found = []
    for protocol in protocols:
        extra = {"protocol": "published"} if protocol == "published" else {}
        for method in METHODS:
            for metric in TRUTH:
                if (method, metric) != ("eigen_cam", "ssim_contrastivity"):
                    name, parameters = specs.parse(metric)
                    found.append(Cell(specs.canonical(method, extra, {}),
                                      specs.canonical(name, parameters | extra, {})))  # fmt: skip
    return found


def write(
    out: Path | str,
    name: str = "demo",
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    backbones: tuple[str, ...] = ("resnet8",),
    protocols: tuple[str, ...] = ("corrected",),
    failed: tuple[tuple[str, int], ...] = (),
    images: int = IMAGES,
) -> Store:
    """Write the store and return it. *failed* names trials (label, seed) whose training stopped; *images* is how many
    the plan wants of the 48 that are held."""
    compared = [(label, seed) for label in OBJECTIVES for seed in seeds if (label, seed) not in failed]
    common = common_ranks(compared, images)
    store = open_store(str(out), name)
    pixels, labels = _digits()
    order = np.random.default_rng(0).permutation(TEST_IMAGES)
    wanted = [Versioned(cell, "1") for cell in cells(protocols)]
    trials = [(label, backbone, seed) for label in OBJECTIVES for backbone in backbones for seed in seeds]
    store.write_json("plan.json", {
        "schema": 1,
        "trials": [trial_id(*trial) for trial in trials],
        "cells": [[*v.cell, v.version] for v in wanted],
        "metrics": {v.cell.metric: dict(zip(("facet", "direction"), READING[specs.parse(v.cell.metric)[0]],
                                            strict=True)) for v in wanted},
        "not_cells": [["eigen_cam", "ssim_contrastivity", "Eigen-CAM has no class to contrast"]],
        "images": images, "sample": SAMPLE, "protocols": list(protocols),
        "dataset": {"name": "digits", "fingerprint": "0123456789ab", "image_size": 32,
                    "classes": [str(digit) for digit in range(10)], "test_images": TEST_IMAGES,
                    "mean": [0.3], "std": [0.37]},
    })  # fmt: skip
    store.write("samples/images.parquet", _parquet({
        "image": pa.array(order[:SAMPLE], pa.int32()), "label": pa.array(labels[order[:SAMPLE]], pa.int32()),
        "channels": pa.array([1] * SAMPLE, pa.int32()), "height": pa.array([32] * SAMPLE, pa.int32()),
        "width": pa.array([32] * SAMPLE, pa.int32()),
        "pixels": pa.array([pixels[i].ravel() for i in order[:SAMPLE]], pa.list_(pa.uint8())),
    }))  # fmt: skip
    for label, backbone, seed in trials:
        trial = trial_id(label, backbone, seed)
        stopped = (label, seed) in failed
        store.write_record(trial, _record(label, backbone, seed, protocols, stopped))
        if not stopped:
            _write_trial(store, trial, label, seed, seeds, common, protocols, wanted, order, pixels, labels)
    return store


def score(
    label: str, method: str, metric: str, rank: int, seed: int, seeds: tuple[int, ...], common: list[int]
) -> float | None:
    """The score of one image; specs are plain or with the published protocol. *common* are the ranks that count."""
    published = "protocol=published" in metric
    metric, method = _plain()[metric], specs.parse(method)[0]
    if rank not in common:
        return 9.0  # would spoil every mean if it were not left out
    if (method, metric, rank) == ("eigen_cam", "complexity", UNDEFINED_RANK) and label.startswith("supcon"):
        return None
    deviation = 0.05 * np.cos(np.arange(len(common)))
    if (method, metric) == ("eigen_cam", "complexity"):
        deviation[common.index(UNDEFINED_RANK)] = 0.0
        others = [i for i, r in enumerate(common) if r != UNDEFINED_RANK]
        deviation[others] -= deviation[others].mean()
    deviation -= deviation.mean()
    truth = TRUTH[metric][list(OBJECTIVES).index(label)] + METHOD_OFFSET[method] + PUBLISHED_OFFSET * published
    return float(truth + seed_offset(metric, seed, seeds) + deviation[common.index(rank)])


@cache
def _plain() -> dict[str, str]:
    """Every metric's spec, with the published protocol or not, to the one without."""
    return {plain: plain for plain in TRUTH} | {specs.canonical(*_with_published(plain), {}): plain for plain in TRUTH}


def _with_published(spec: str) -> tuple[str, dict]:
    name, parameters = specs.parse(spec)
    return name, parameters | {"protocol": "published"}


def _write_trial(store, trial, label, seed, seeds, common, protocols, wanted, order, pixels, labels):
    held = [v.cell for v in wanted]
    number = list(OBJECTIVES).index(label)
    for first in range(0, IMAGES, SHARD):
        last = min(first + SHARD, IMAGES) - 1
        ranks = range(first, last + 1)
        rows = [(int(order[r]), m, k, score(label, m, k, r, seed, seeds, common)) for r in ranks for m, k in held]
        write_scores(store, trial, first, last, wanted, rows)
        for protocol in protocols:
            wrong = [r in wrong_ranks(label, seed) for r in ranks]
            truth = labels[order[first : last + 1]].astype(np.int32)
            store.write_part("predictions", trial, _readouts(label)[protocol], first, last, pa.table({
                "image": pa.array(order[first : last + 1], pa.int32()), "label": truth,
                "prediction": np.where(wrong, (truth + 1) % 10, truth).astype(np.int32),
                "confidence": np.linspace(0.6, 0.99, len(truth)).astype(np.float32) ** (1 + number),
            }))  # fmt: skip
    steps = np.arange(32)
    curves, maps = [], []
    for rank in range(SAMPLE):
        for cell in held:
            if cell.metric.startswith("pixel_flipping_auc"):
                rate = 4 + 3 * number + seed + 0.3 * rank + 5 * METHOD_OFFSET[specs.parse(cell.method)[0]]
                values = np.exp(-steps / 32 * rate) * 0.95
                curves += [(int(order[rank]), *cell, int(s), float(v)) for s, v in zip(steps, values, strict=True)]
        for method in {cell.method: None for cell in held}:
            attribution = _attribution(pixels[order[rank], 0], specs.parse(method)[0], number)
            maps.append((int(order[rank]), method, 32, 32, attribution.astype(np.float16).ravel()))
    names = ("image", "method", "metric", "step", "value")
    types = (pa.int32(), pa.string(), pa.string(), pa.int32(), pa.float32())
    store.write_part("curves", trial, evaluation(wanted), 0, SAMPLE - 1, _table(names, types, curves), wanted)
    names = ("image", "method", "height", "width", "map")
    types = (pa.int32(), pa.string(), pa.int32(), pa.int32(), pa.list_(pa.float16()))
    store.write_part("samples", trial, evaluation(wanted), 0, SAMPLE - 1, _table(names, types, maps), wanted)


def write_scores(store, trial, first, last, wanted, rows):
    """One part of scores: rows (image, method, metric, value), cells *wanted* in its footer."""
    types = (pa.int32(), pa.string(), pa.string(), pa.float32())
    table = _table(("image", "method", "metric", "value"), types, rows)
    store.write_part("scores", trial, evaluation(wanted), first, last, table, wanted)


def _table(names, types, rows) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = {name: pa.array(column, kind) for name, kind, column in zip(names, types, columns, strict=True)}
    return pa.table({k: v.dictionary_encode() if k in ("method", "metric") else v for k, v in arrays.items()})


def _parquet(columns: dict) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _readouts(label: str) -> dict[str, str]:
    base = "own_layer" if label == "cross_entropy" else "linear_probe"
    return {"corrected": base, "published": f"{base}_published"}


def _record(label: str, backbone: str, seed: int, protocols: tuple[str, ...], stopped: bool) -> dict:
    number = list(OBJECTIVES).index(label)
    readout = _readouts(label)["corrected"]
    record = {
        "label": f"{label} · {backbone} · seed {seed}", "objective_label": label,
        "status": "failed" if stopped else "trained",
        "error": "the loss is not finite (nan) in epoch 3; lower training.learning_rate" if stopped else None,
        "configuration": {"dataset": {"name": "digits"}, "objective": OBJECTIVES[label], "backbone": backbone,
                          "seed": seed, "training": {"epochs": 20, "batch_size": 128, "learning_rate": 0.1}},
        "dataset": {"name": "digits", "fingerprint": "0123456789ab", "image_size": 32, "classes": 10},
        "versions": {"scl_ray": "0.1.0", "torch": "2.11.0"}, "host": f"node-{seed}", "device": "cpu",
        "finished": f"2026-01-02T03:0{seed % 10}:00+00:00", "seconds": 21.5 + number,
    }  # fmt: skip
    if stopped:
        return record
    epochs = [{"epoch": e, "loss": 2.3 / e, "seconds": 1.0, "images_per_second": 1400.0} for e in range(1, 21)]
    return record | {
        "checkpoint": f"checkpoints/{trial_id(label, backbone, seed)}",
        "readouts": {protocol: _readouts(label)[protocol] for protocol in protocols}, "epochs": epochs,
        "metrics": {f"accuracy/{readout}": 0.96 - 0.01 * number + 0.002 * seed, "accuracy/prototype": 0.93,
                    "accuracy/knn": 0.94, "temperature": 1.2, "calibration/ece": 0.02 + 0.01 * number - 0.001 * seed,
                    "geometry/nc1": 0.4 - 0.05 * number + 0.01 * (seed * 7 % 5), "geometry/silhouette": None},
    }  # fmt: skip


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """360 real digits at 32x32: (N,1,H,W) uint8 and their labels."""
    digits = load_digits()
    small = (digits.images[:TEST_IMAGES] * 255 / 16).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in small]
    return np.stack(resized)[:, None], digits.target[:TEST_IMAGES]


def _attribution(image: np.ndarray, method: str, number: int) -> np.ndarray:
    """A map that looks like one: the image's gradient magnitude, smoothed to the method's resolution."""
    vertical, horizontal = np.gradient(image.astype(float))
    magnitude = Image.fromarray((np.hypot(vertical, horizontal)).astype(np.float32))
    side = {"grad_cam": 4, "eigen_cam": 5, "integrated_gradients": 24}[method] + number
    coarse = magnitude.resize((side, side), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC)
    raw = np.clip(np.asarray(coarse), 0, None)
    return raw / raw.max()
