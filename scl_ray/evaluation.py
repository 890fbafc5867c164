"""One shard: explain a range of test images by all methods, score the maps, and lay the values out as Arrow tables."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from scl_ray import attribution, metrics, plugins, specs
from scl_ray.config import Cell
from scl_ray.memory import bounded, fitting, in_batches
from scl_ray.precision import full_float32

if TYPE_CHECKING:
    from scl_ray.checkpoint import Checkpoint
    from scl_ray.datasets import Dataset
    from scl_ray.given.checkpoint import GivenClassifier

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
    checkpoint: "Checkpoint | GivenClassifier",
    dataset: "Dataset",
    first: int,
    last: int,
    cells: Sequence[Cell],
    *,
    readouts: Sequence[str] = (),
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    memory: float | None = None,
    tasks: int = 1,
    smaller: int = 1,
    sample: int = 16,
    save_maps: bool = False,
) -> ShardTables:
    """Explain and score the images of ranks *first* to *last*, inclusive, of the dataset's evaluation order.

    The network of a cell's protocol is explained, for the class that it predicts.

    readouts: the names of `Checkpoint.readout_name` whose predictions are wanted.
    batch_size: how many images are explained together; by default what suits the device and fits into *memory*, in GiB,
      or else into half of what is free, which on a CPU as many *tasks* as this one share. A batch that does not fit is
      halved. Batches are so many times *smaller* than all this allows. Values depend neither on these nor on the range
      that an image is evaluated in.
    sample: curves and maps are kept for ranks below it; maps for all ranks with *save_maps*.
    Raises ValueError for ranks that the dataset does not have, and for a read-out that the checkpoint does not have;
    MemoryError where there is no room for one image.
    """
    if not 0 <= first <= last < len(dataset.evaluation_order):
        raise ValueError(f"ranks {first}-{last}: the dataset has ranks 0-{len(dataset.evaluation_order) - 1}")
    names = {protocol: checkpoint.readout_name(protocol) for protocol in PROTOCOLS}
    if unknown := set(readouts) - set(names.values()):
        raise ValueError(f"read-out {min(unknown)!r}: the checkpoint has {' and '.join(names.values())}")
    device = torch.device(device)
    found = _Rows([], [], [], [])
    predictions: dict[str, pa.Table] = {}
    with full_float32(device), bounded(device, memory):
        for protocol, name in names.items():
            own = [cell for cell in cells if protocol_of(cell) == protocol]
            if not own and name not in readouts:
                continue
            context = _context(checkpoint, protocol, dataset, device)
            size = fitting(context.model, context.images, memory, tasks)
            if batch_size is not None:
                size = size._replace(images=batch_size)
            size = size.smaller(smaller)
            kept_maps = len(dataset.evaluation_order) if save_maps else sample
            predicted = []
            for rows in in_batches(first, last, size, partial(_rows_of, context, dataset, own, sample, kept_maps)):
                predicted += rows.predictions
                found.scores.extend(rows.scores)
                found.curves.extend(rows.curves)
                found.maps.extend(rows.maps)
            if name in readouts:
                predictions[name] = _joined(predicted, PREDICTIONS)
    return ShardTables(
        _joined(found.scores, SCORES), predictions, _joined(found.curves, CURVES), _joined(found.maps, MAPS)
    )


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
            methods = list(dict.fromkeys(cell.method for cell in own))
            total += attribution.shared_passes(methods) + attribution.cost(methods, image_size, shared=True)
            total += metrics.cost(own, image_size)
    return total


class _Rows(NamedTuple):
    """The tables of some images under one protocol."""

    scores: list[pa.Table]
    predictions: list[pa.Table]
    curves: list[pa.Table]
    maps: list[pa.Table]


def _rows_of(
    context: attribution.Batch, dataset: "Dataset", own: Sequence[Cell], sample: int, kept_maps: int,
    start: int, stop: int, copies: int,
) -> _Rows:  # fmt: skip
    """Explain and score the ranks *start* to *stop*. Curves are kept for ranks below *sample*, maps *kept_maps*."""
    indices = dataset.evaluation_order[start:stop]
    methods = list(dict.fromkeys(cell.method for cell in own))
    batch = _batch(context, dataset, indices, methods, copies)
    found = attribution.explain_many(batch, methods)
    rows = _Rows([], [_prediction_rows(indices, dataset.test_labels[indices], batch)], [], [])
    for method, maps in found.items():
        rows.maps.append(_map_rows(indices[: max(0, kept_maps - start)], method, maps))
    for pair, result in metrics.score_many(batch, found, own).items():
        cell = Cell(*pair)
        rows.scores.append(_rows(SCORES, indices, **cell._asdict(), value=_numpy(result.values)))
        if result.curve is not None:
            rows.curves.append(_curve_rows(indices[: max(0, sample - start)], cell, result.curve))
    return rows


def _context(
    checkpoint: "Checkpoint | GivenClassifier", protocol: Protocol, dataset: "Dataset", device: torch.device
) -> attribution.Batch:
    """What explaining and scoring any image of the dataset takes, with one image in place of those to come."""
    network = checkpoint.explained(protocol).to(device)
    if device.type == "cpu":
        # oneDNN's convolutions take about half the time with channels last (ResNet-8 at 32x32: 0.33 for 0.60 ms).
        network = network.to(memory_format=torch.channels_last)
    one = attribution.Batch(
        network,
        images=_pixels(dataset.test_images[:1], device),
        targets=torch.zeros(1, dtype=torch.int64, device=device),
        mean=torch.tensor(checkpoint.mean, device=device),
        std=torch.tensor(checkpoint.std, device=device),
        # What is drawn depends on the dataset, not on the trial: all objectives meet the same noise and foils.
        seed=int.from_bytes(hashlib.sha256(dataset.fingerprint.encode()).digest()[:8], "big"),
    )
    chosen = reference_images(dataset)
    # A dataset of test images alone may have none to compare with.
    reference = one.from_pixels(_pixels(dataset.train_images[chosen], device)) if len(chosen) else None
    labels = torch.tensor(dataset.train_labels[chosen]).to(device) if len(chosen) else None
    return one.but(images=one.from_pixels(one.images), reference=reference, reference_labels=labels)


def _batch(
    context: attribution.Batch, dataset: "Dataset", indices: np.ndarray, methods: Sequence[str], copies: int
) -> attribution.Batch:
    """The images of the test *indices*. The forward pass that serves all methods tells the class to explain."""
    device = context.images.device
    images = context.from_pixels(_pixels(dataset.test_images[indices], device))
    masks = None if dataset.test_masks is None else torch.tensor(dataset.test_masks[indices]).to(device)
    batch = context.but(images=images, image_ids=indices.tolist(), masks=masks, at_once=copies)
    passed = attribution.shared_forward(batch, methods)
    return batch.but(targets=passed["class_score"].scores.argmax(1), passed=passed)


def _pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """In [0,1]."""
    return torch.tensor(images).to(device).float() / 255


def reference_images(dataset: "Dataset") -> np.ndarray:
    """Indices of the training images that methods and metrics compare with: the first `REFERENCE` of every class."""
    labels = dataset.train_labels
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:REFERENCE] for k in range(len(dataset.classes))]))


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
