"""One shard: explain a range of test images by all methods, score the maps, and lay the values out as Arrow tables."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from scl_ray import attribution, metrics, plugins, specs
from scl_ray.config import Cell

if TYPE_CHECKING:
    from scl_ray.checkpoint import Checkpoint
    from scl_ray.datasets import Dataset

Protocol = Literal["corrected", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("corrected", "published")

REFERENCE = 8  # images of a class

_NAME = pa.dictionary(pa.int32(), pa.string())
SCORES = pa.schema([("image", pa.int32()), ("method", _NAME), ("metric", _NAME), ("value", pa.float32())])
CURVES = SCORES.insert(3, pa.field("step", pa.int32()))
PREDICTIONS = pa.schema(
    [("image", pa.int32()), ("label", pa.int32()), ("prediction", pa.int32()), ("confidence", pa.float32())]
)
MAPS = pa.schema(
    [("image", pa.int32()), ("method", _NAME), ("height", pa.int32()), ("width", pa.int32()),
     ("map", pa.list_(pa.float16()))]
)  # fmt: skip


@dataclass(frozen=True)
class ShardTables:
    """What evaluating one shard gives. What is undefined or not finite is null.

    scores: image, method, metric, value; every cell of every image.
    predictions: image, label, prediction, confidence, by read-out.
    curves: image, method, metric, step, value; metrics that sum up a curve, on the images of the sample.
    maps: image, method, height, width, map; row by row, on the images of the sample, or on all.
    """

    scores: pa.Table
    predictions: dict[str, pa.Table]
    curves: pa.Table
    maps: pa.Table


def evaluate(
    checkpoint: "Checkpoint",
    dataset: "Dataset",
    first: int,
    last: int,
    cells: Sequence[Cell],
    *,
    readouts: Sequence[str] = (),
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    sample: int = 16,
    save_maps: bool = False,
) -> ShardTables:
    """Explain and score the images of ranks *first* to *last*, inclusive, of the dataset's evaluation order.

    The network of a cell's protocol is explained, for the class that it predicts. Values depend on neither
    *batch_size* (default: by device and image size) nor the range that an image is evaluated in.

    readouts: the names of `Checkpoint.readout_name` whose predictions are wanted.
    sample: curves and maps are kept for ranks below it; maps for all ranks with *save_maps*.
    Raises ValueError for ranks that the dataset does not have, and for a read-out that the checkpoint does not have.
    """
    if not 0 <= first <= last < len(dataset.evaluation_order):
        raise ValueError(f"ranks {first}-{last}: the dataset has ranks 0-{len(dataset.evaluation_order) - 1}")
    names = {protocol: checkpoint.readout_name(protocol) for protocol in PROTOCOLS}
    if unknown := set(readouts) - set(names.values()):
        raise ValueError(f"read-out {min(unknown)!r}: the checkpoint has {' and '.join(names.values())}")
    device = torch.device(device)
    scores, curves, maps = [], [], []
    predictions: dict[str, pa.Table] = {}
    with _full_float32(device):
        for protocol, name in names.items():
            own = [cell for cell in cells if protocol_of(cell) == protocol]
            if not own and name not in readouts:
                continue
            predicted = []
            for start, indices, batch in _batches(checkpoint, protocol, dataset, first, last, own, device, batch_size):
                in_sample = indices[: max(0, sample - start)]
                found = attribution.explain_many(batch, _methods(own))
                predicted.append(_prediction_rows(indices, dataset.test_labels[indices], batch))
                maps += [_map_rows(indices if save_maps else in_sample, *item) for item in found.items()]
                for pair, result in metrics.score_many(batch, found, own).items():
                    cell = Cell(*pair)
                    scores.append(_rows(SCORES, indices, **cell._asdict(), value=_numpy(result.values)))
                    if result.curve is not None:
                        curves.append(_curve_rows(in_sample, cell, result.curve))
            if name in readouts:
                predictions[name] = _joined(predicted, PREDICTIONS)
    return ShardTables(_joined(scores, SCORES), predictions, _joined(curves, CURVES), _joined(maps, MAPS))


def cells(
    methods: Sequence[str], metrics_: Sequence[str], has_masks: bool
) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """The cells that make sense of all pairs of canonical specs, and those that do not, each with the reason.

    A method goes only with metrics of its own protocol; pairs across protocols are no cells, and are not listed.
    Raises ValueError, in one sentence, for an unknown name, parameter or value.
    """
    valid: list[Cell] = []
    refused: list[tuple[Cell, str]] = []
    for method in map(attribution.resolve, methods):
        for metric in map(metrics.resolve, metrics_):
            if method.parameters["protocol"] != metric.parameters["protocol"]:
                continue
            cell = Cell(method.spec, metric.spec)
            if "class" in metric.entry.needs and not attribution.explains_class(method.spec):
                refused.append((cell, f"{method.spec} explains no class, so there is none to contrast"))
            elif "masks" in metric.entry.needs and not has_masks:
                refused.append((cell, f"{metric.spec} needs masks of the objects, which the dataset does not have"))
            else:
                valid.append(cell)
    return valid, refused


def protocol_of(cell: Cell) -> str:
    """The protocol of a cell, which its method and its metric share. Raises ValueError when they do not."""
    protocol = attribution.resolve(cell.method).parameters["protocol"]
    if metrics.resolve(cell.metric).parameters["protocol"] != protocol:
        raise ValueError(f"{cell.method} and {cell.metric} follow different protocols")
    return str(protocol)


def cell_version(cell: Cell) -> str:
    """What decides a cell's values beside its specs: the versions of method and metric, or the user's source."""
    versions = []
    for spec, resolve in ((cell.method, attribution.resolve), (cell.metric, metrics.resolve)):
        name = specs.parse(spec)[0]
        versions.append(plugins.source_hash(name) if plugins.is_plugin(name) else str(resolve(spec).entry.version))
    return "-".join(versions)


def forward_passes(cells: Sequence[Cell], image_size: int) -> int:
    """Forward passes that evaluating one image of *image_size* squared takes; a backward to the input counts two.

    Parts of the user's own count nothing beyond what the others share.
    """
    total = 0
    for protocol in PROTOCOLS:
        own = [cell for cell in cells if protocol_of(cell) == protocol]
        if own:
            methods = _methods(own)
            total += attribution.shared_passes(methods) + attribution.cost(methods, image_size, shared=True)
            total += metrics.cost(own, image_size)
    return total


def _batches(
    checkpoint: "Checkpoint",
    protocol: Protocol,
    dataset: "Dataset",
    first: int,
    last: int,
    own: Sequence[Cell],
    device: torch.device,
    batch_size: int | None,
) -> Iterator[tuple[int, np.ndarray, attribution.Batch]]:
    """The images of the ranks, batch by batch: the first rank, the test indices, and what scoring them takes.

    The forward pass that serves all methods tells the class to explain, the predicted one.
    """
    network = checkpoint.explained(protocol).to(device)
    if device.type == "cpu":
        # oneDNN's convolutions take about half the time with channels last (ResNet-8 at 32x32: 0.33 for 0.60 ms).
        network = network.to(memory_format=torch.channels_last)
    # What is drawn depends on the dataset, not on the trial: all objectives meet the same noise and foils.
    seed = int.from_bytes(hashlib.sha256(dataset.fingerprint.encode()).digest()[:8], "big")
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (checkpoint.mean, checkpoint.std))

    def normalised(images: np.ndarray) -> Tensor:
        return (torch.tensor(images).to(device).float() / 255 - mean) / std

    chosen = reference_images(dataset)
    reference, reference_labels = normalised(dataset.train_images[chosen]), torch.tensor(dataset.train_labels[chosen])
    kept: dict[str, Any] = {}
    size = batch_size or _default_batch_size(dataset.test_images.shape[-2] * dataset.test_images.shape[-1], device)
    for start in range(first, last + 1, size):
        indices = dataset.evaluation_order[start : min(start + size, last + 1)]
        images = normalised(dataset.test_images[indices])
        masks = None if dataset.test_masks is None else torch.tensor(dataset.test_masks[indices]).to(device)
        batch = attribution.Batch(
            network,
            images,
            targets=torch.zeros(len(indices), dtype=torch.int64, device=device),
            mean=mean,
            std=std,
            seed=seed,
            image_ids=indices.tolist(),
            reference=reference,
            reference_labels=reference_labels.to(device),
            masks=masks,
            kept=kept,
        )
        passed = attribution.shared_forward(batch, _methods(own))
        yield start, indices, batch.but(targets=passed["class_score"].scores.argmax(1), passed=passed)


def reference_images(dataset: "Dataset") -> np.ndarray:
    """Indices of the training images that methods and metrics compare with: the first `REFERENCE` of every class."""
    labels = dataset.train_labels
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:REFERENCE] for k in range(len(dataset.classes))]))


def _default_batch_size(pixels: int, device: torch.device) -> int:
    # Large enough to keep the device busy at 32x32, small enough for the memory of a large network at 224x224.
    most, budget = (256, 2**22) if device.type == "cuda" else (64, 2**20)
    return max(1, min(most, budget // pixels))


def _methods(own: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in own))


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Without TF32, whose ten bits of mantissa would make values depend on the batch size."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def _prediction_rows(images: np.ndarray, labels: np.ndarray, batch: attribution.Batch) -> pa.Table:
    confidence = batch.passed["class_score"].scores.softmax(1).amax(1)
    return _rows(PREDICTIONS, images, label=labels, prediction=_numpy(batch.targets), confidence=_numpy(confidence))


def _map_rows(images: np.ndarray, method: str, maps: Tensor) -> pa.Table:
    height, width = maps.shape[1:]
    return _rows(MAPS, images, method=method, height=height, width=width, map=_numpy(maps[: len(images)].flatten(1)))


def _curve_rows(images: np.ndarray, cell: Cell, curve: Tensor) -> pa.Table:
    steps = np.tile(np.arange(curve.shape[1]), len(images))
    values = _numpy(curve[: len(images)].flatten())
    return _rows(CURVES, images.repeat(curve.shape[1]), **cell._asdict(), step=steps, value=values)


def _rows(schema: pa.Schema, images: np.ndarray, **columns: np.ndarray | str | int) -> pa.Table:
    """A table with one row for each of *images*; a column is given by as many values, or by one for all."""
    columns["image"] = images
    return pa.table([_column(columns[field.name], len(images), field.type) for field in schema], schema=schema)


def _column(values: np.ndarray | str | int, rows: int, kind: pa.DataType) -> pa.Array:
    if isinstance(values, str):
        return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [values])
    if not isinstance(values, np.ndarray):
        values = np.full(rows, values)
    if pa.types.is_list(kind):
        starts = np.arange(rows + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(starts, _column(values.reshape(-1), values.size, kind.value_type))
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and so null
            values = values.astype(kind.to_pandas_dtype())
        return pa.array(values, kind, mask=~np.isfinite(values))
    return pa.array(values, kind)


def _joined(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks() if tables else schema.empty_table()


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
