"""The grid pointing game: does the map find the one image of its class in a mosaic?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, Parameter
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.undefined import CHANGED


def explain_mosaics(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, grid: int, protocol: str
) -> dict[str, Tensor]:
    """The maps of all methods for a mosaic of each image, by cell (N,grid**2,H*W); the image's own cell is the first.

    A mosaic is *grid* times as large as the image, which lies in a random cell of it; in the others lie reference
    images of other classes than the one explained, no two of one class where there are enough classes. What is drawn
    depends on neither the network nor the batch, so that all networks meet the same mosaics. The paper instead draws
    from what its network classifies right and most confidently, which is another choice for every network.

    Raises ValueError, before any method runs, when the network does not take images of that size, and when the
    reference has too few images of other classes.
    """
    places, foils = draw_mosaics(batch, spec, grid)
    images = batch.images.split(-(-len(batch.images) // grid**2))  # a mosaic takes the memory of grid**2 images
    ids = list(range(len(batch.images)) if batch.image_ids is None else map(int, batch.image_ids))
    key = f"mosaics of {grid}"
    if key not in batch.kept:
        serves(batch, grid=grid)
        assert batch.reference is not None
        # What compares with the reference compares images of one size.
        batch.kept[key] = batch.reference.repeat(1, 1, grid, grid), {}
    reference, kept = batch.kept[key]
    found: dict[str, list[Tensor]] = {method: [] for method in maps}
    start = 0
    for own in images:
        part = slice(start, start + len(own))
        start += len(own)
        mosaics = batch.but(
            images=tile(batch, own, places[part], foils[part], grid),
            targets=batch.targets[part],
            image_ids=ids[part],
            masks=None,
            reference=reference,
            kept=kept,
            at_once=max(1, batch.at_once // grid**2),
        )
        for method, explained in attribution.explain_many(mosaics, maps).items():
            found[method].append(_cells(explained, places[part], grid))
    return {method: torch.cat(parts) for method, parts in found.items()}


def serves(batch: Batch, *, grid: int, **parameters: Any) -> None:
    """Raise ValueError, in one sentence, when the network does not take mosaics of *grid* x *grid* images."""
    first = batch.images[:1]
    mosaic = first.repeat(1, 1, grid, grid)
    try:
        with torch.inference_mode():
            batch.model(mosaic)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        sizes = ["x".join(map(str, images.shape[-2:])) for images in (mosaic, first)]
        raise ValueError(
            f"the grid pointing game explains mosaics of {sizes[0]} pixels, and {type(batch.model).__name__} takes "
            f"only images of {sizes[1]}; use it with fully convolutional networks"
        ) from error


def mosaic_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes of an image that explaining its mosaic takes as long as."""
    grid: int = parameters["grid"]
    return grid**2 * attribution.cost(methods, grid * image_size)


def grid_pointing_game(batch: Batch, maps: Tensor, cells: Tensor, **parameters: Any) -> Tensor:
    """Share of the positive attribution of a mosaic that lies in the cell of the image explained, in [0,1].

    Higher is better; chance is 1/grid**2, which is what a method that knows no class can reach. Undefined where nothing
    is positive.

    Böhle et al., Convolutional Dynamic Alignment Networks for Interpretable Classifications, CVPR 2021, after Zhang
    et al., Top-Down Neural Attention by Excitation Backprop, IJCV 126, 2018.
    """
    positive = cells.double().clamp(min=0).sum(2)
    return positive[:, 0] / positive.sum(1)


def draw_mosaics(batch: Batch, spec: str, grid: int) -> tuple[Tensor, Tensor]:
    """The cells (N,grid**2) of each image and its foils, row by row, and the foils' reference indices (N,grid**2-1).

    Raises ValueError when the reference has too few images of other classes than an image's, or of another shape.
    """
    assert batch.reference is not None
    if batch.reference.shape[1:] != batch.images.shape[1:]:
        raise ValueError("a mosaic is made of images of one shape; give reference images of the shape of the images")
    if batch.reference_labels is None and "reference_classes" not in batch.kept:
        batch.kept["reference_classes"] = batch.scores(batch.reference).argmax(1)
    labels = batch.kept["reference_classes"] if batch.reference_labels is None else batch.reference_labels
    classes, wanted = labels.cpu().numpy(), grid**2 - 1
    places, foils = [], []
    for stream, target in zip(batch.generators(spec), batch.targets.tolist(), strict=True):
        places.append(stream.permutation(grid**2))
        others = stream.permutation(len(classes))
        others = others[classes[others] != target]
        if len(others) < wanted:
            raise ValueError(
                f"a mosaic of {grid}x{grid} needs {wanted} reference images of other classes than {target}, and there "
                f"are {len(others)}; give more"
            )
        # The first of every class come before the second ones.
        foils.append(others[np.argsort(_occurrence(classes[others]), kind="stable")[:wanted]])
    device = batch.images.device
    return torch.from_numpy(np.stack(places)).to(device), torch.from_numpy(np.stack(foils)).to(device)


def tile(batch: Batch, images: Tensor, places: Tensor, foils: Tensor, grid: int) -> Tensor:
    """Mosaics (M,C,grid*H,grid*W) of *images* (M,C,H,W) and their *foils*, each in its place."""
    assert batch.reference is not None
    parts = torch.cat([images[:, None], batch.reference[foils]], 1)
    held = places.argsort(1).view(len(places), grid**2, 1, 1, 1).expand_as(parts)
    return parts.gather(1, held).unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _cells(explained: Tensor, places: Tensor, grid: int) -> Tensor:
    """The maps (M,grid**2,H*W) of the parts of mosaics from the maps (M,grid*H,grid*W) of the whole; undoes `tile`."""
    by_cell = explained.unflatten(2, (grid, -1)).unflatten(1, (grid, -1)).transpose(2, 3).flatten(3).flatten(1, 2)
    return by_cell.gather(1, places[..., None].expand_as(by_cell))


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values come before each."""
    order = np.argsort(values, kind="stable")
    _, first, counts = np.unique(values[order], return_index=True, return_counts=True)
    occurrence = np.empty_like(order)
    occurrence[order] = np.arange(len(order)) - np.repeat(first, counts)
    return occurrence


METRICS = {
    "grid_pointing_game": Metric(
        grid_pointing_game,
        passes=explain_mosaics,
        cost=mosaic_cost,
        serves=serves,
        needs=frozenset({"re-explanation", "reference"}),
        parameters={
            "protocol": PROTOCOL,
            "grid": Parameter(
                2,
                lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 2,
                "a whole number of at least 2",
            ),
        },
        undefined=CHANGED,
        facet="coherence",
        direction="higher",
        range=(0, 1),
        citation="Böhle et al., CVPR 2021; Zhang et al., IJCV 2018",
    ),
}
