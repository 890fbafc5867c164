"""The gallery: the same images under each objective, as attribution maps with the predicted class."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from scl_ray.report.figures import Drawn, save
from scl_ray.results import Results, maps, plain, sample_images

IMAGES = 8  # as many as one row shows
_THUMBNAIL = 128  # pixels; larger maps are scaled down


@dataclass(frozen=True)
class Picture:
    """One cell of the gallery: pixels (H,W,3) uint8 and what stands below it."""

    pixels: np.ndarray
    alt: str
    caption: str
    correct: bool = True

    @property
    def uri(self) -> str:
        image = Image.fromarray(self.pixels)
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        png = io.BytesIO()
        image.save(png, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


@dataclass(frozen=True)
class Gallery:
    """One method: the images, and a row of maps for each objective (its first trained seed)."""

    method: str
    images: list[Picture]
    rows: dict[str, list[Picture | None]]
    seeds: dict[str, int]


def make(results: Results, backbone: str, protocol: str) -> list[Gallery]:
    """A gallery for each method of one backbone and protocol; none where no sample is stored."""
    sample = dict(list(sample_images(results).items())[:IMAGES])
    classes = results.plan["dataset"]["classes"]
    trials = results.trials[results.trials["backbone"] == backbone]
    trained = [trial for trial in trials["trial"] if results.records[trial]["status"] == "trained"]
    shown = trials[trials["trial"].isin(trained)].drop_duplicates("objective_label")
    found = {trial: maps(results, trial, sample) for trial in shown["trial"]}
    predicted = results.query("SELECT trial, image, label, prediction, confidence FROM predictions WHERE protocol = $1",
                              [protocol]).set_index(["trial", "image"])  # fmt: skip
    galleries = []
    cells = results.cells[results.cells["protocol"] == protocol]
    for method in dict.fromkeys(cells["method"]):
        rows = {}
        for trial, label in zip(shown["trial"], shown["objective_label"], strict=True):
            named = results.records[trial].get("classes", classes)  # a given network may have outputs of its own
            row: list[Picture | None] = []
            for image, (_, pixels) in sample.items():
                attribution = found[trial].get((image, method))
                known = (trial, image) in predicted.index
                row.append(_explained(pixels, attribution, predicted.loc[(trial, image)], named, label, image)
                           if attribution is not None and known else None)  # fmt: skip
            rows[str(label)] = row
        if any(picture for row in rows.values() for picture in row):
            originals = [Picture(rgb(pixels), f"test image {image}, {classes[label]}", str(classes[label]))
                         for image, (label, pixels) in sample.items()]  # fmt: skip
            seeds = {str(label): int(seed) for label, seed in zip(shown["objective_label"], shown["seed"], strict=True)}
            galleries.append(Gallery(plain(method), originals, rows, seeds))
    return galleries


def mosaic(gallery: Gallery, slug: str) -> Drawn:
    """The gallery as one figure for a paper: a row an objective, a column an image."""
    blank = np.full_like(gallery.images[0].pixels, 255)
    rows = {"image": gallery.images} | gallery.rows
    tiles = [[_framed(picture.pixels if picture else blank) for picture in row] for row in rows.values()]
    side = tiles[0][0].shape[0]
    figure = Figure(figsize=(1.5 + 0.8 * len(gallery.images), 0.3 + 0.8 * len(rows)))
    axis = figure.subplots()
    axis.imshow(np.vstack([np.hstack(row) for row in tiles]), interpolation="nearest")
    axis.set_yticks(side * (np.arange(len(rows)) + 0.5), list(rows))
    axis.set_xticks(side * (np.arange(len(gallery.images)) + 0.5), [picture.caption for picture in gallery.images])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    title = f"Attribution maps: {gallery.method}"
    return save(figure, f"gallery-{gallery.method}-{slug}", title, f"{title} of {len(gallery.images)} test images.")


def _explained(
    pixels: np.ndarray, attribution: np.ndarray, predicted: pd.Series, classes: Sequence[str], label: str, image: int
) -> Picture:
    correct = predicted["prediction"] == predicted["label"]
    name = str(classes[int(predicted["prediction"])])
    caption = f"{name} · {100 * predicted['confidence']:.0f} %"
    nothing = "" if np.ptp(attribution) > 0 else ", the same everywhere"
    alt = f"map of test image {image} under {label}, predicted {name}{'' if correct else ' (wrong)'}{nothing}"
    return Picture(overlay(pixels, attribution), alt, caption, bool(correct))


def overlay(pixels: np.ndarray, attribution: np.ndarray) -> np.ndarray:
    """The map's colours over the grey image, (H,W,3) uint8.

    A map without negative values runs from dark to bright; a signed one from orange (against the class) to purple
    (for it). The strongest 0.5 % saturate, so that one pixel does not hide the others.
    """
    finite = np.isfinite(attribution)  # float16 does not hold what is too large
    attribution = np.where(finite, attribution, np.abs(attribution).max(initial=0.0, where=finite))
    scale = float(np.quantile(np.abs(attribution), 0.995)) or float(np.abs(attribution).max()) or 1.0
    scaled = np.clip(attribution / scale, -1, 1)
    signed = attribution.min() < 0
    colours = colormaps["PuOr"](0.5 + scaled / 2) if signed else colormaps["inferno"](scaled)
    grey = rgb(pixels).mean(axis=2, keepdims=True) / 255
    return np.round(255 * (0.3 * grey + 0.7 * colours[..., :3])).astype(np.uint8)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """An image (C,H,W) of one or three channels as (H,W,3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0))


def _framed(pixels: np.ndarray) -> np.ndarray:
    edge = max(1, pixels.shape[0] // 32)
    return np.pad(pixels, ((edge, edge), (edge, edge), (0, 0)), constant_values=255)
