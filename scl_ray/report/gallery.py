"""The gallery: the same images under each objective and method, with their scores, the best, median and worst first."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from scl_ray.report import terms
from scl_ray.report.figures.drawing import Drawn, save
from scl_ray.results import Results, maps, plain, sample_images

MOST_METHODS = 6
MOST_PICTURES = 800  # on a page, of some kilobytes each
CASES = (("best", 3), ("median", 2), ("worst", 3))
_PER_FIGURE = 8  # images side by side on paper
_THUMBNAIL = 96  # pixels; larger maps are scaled down


@dataclass(frozen=True)
class Picture:
    """One cell of the gallery: pixels (H,W,3) uint8, what stands below it, and its scores by facet."""

    pixels: np.ndarray
    alt: str
    caption: str
    correct: bool = True
    scores: Mapping[str, str] | None = None

    @property
    def uri(self) -> str:
        image = Image.fromarray(self.pixels)
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        small = max(image.size) <= 48
        file = io.BytesIO()
        # A map of few pixels is shown with each of them; a larger one is smooth and loses nothing that is seen.
        image.save(file, format="webp", lossless=small, quality=80, method=4)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Case:
    """One image: as it is, its map under each objective (None where there is none), and for each facet its place among
    the shown and whether it is one of the ``best``, ``median`` or ``worst``."""

    image: Picture
    maps: list[Picture | None]
    places: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Gallery:
    """One method: its cases; the objectives of their maps with the seed of the network shown."""

    method: str
    objectives: dict[str, int]
    cases: list[Case]


def make(results: Results, measures: pd.DataFrame, backbone: str, protocol: str, room: int) -> list[Gallery]:
    """A gallery for each of the first methods of one backbone and protocol; none where no sample is stored.

    *measures*: the rows of `Tables.measures` that stand for the facets; by their metrics images are ranked. *room*: how
    many pictures there may be; beyond it there are fewer images.
    """
    trials = results.trials[results.trials["backbone"] == backbone]
    trained = [trial for trial in trials["trial"] if results.records[trial]["status"] == "trained"]
    shown = trials[trials["trial"].isin(trained)].drop_duplicates("objective_label")
    cells = results.cells[results.cells["protocol"] == protocol]
    methods = list(dict.fromkeys(cells["method"]))[:MOST_METHODS]
    sample = dict(list(sample_images(results).items())[: max(room // (len(methods) * (len(shown) + 1)), 3)])
    if not sample or shown.empty:
        return []
    found = {trial: maps(results, trial, sample) for trial in shown["trial"]}
    predicted = results.query("SELECT trial, image, label, prediction, confidence FROM predictions WHERE protocol = $1",
                              [protocol]).set_index(["trial", "image"])  # fmt: skip
    facets = measures.loc[measures["facet"] != terms.ACCURACY].drop_duplicates("facet")
    scores = _scores(results, list(shown["trial"]), list(sample), protocol, facets)
    galleries = []
    for method in methods:
        cases = _cases(results, sample, shown, found, predicted, method, scores.get(plain(method), {}), facets)
        if any(picture for case in cases for picture in case.maps):
            seeds = {str(label): int(seed) for label, seed in zip(shown["objective_label"], shown["seed"], strict=True)}
            galleries.append(Gallery(plain(method), seeds, cases))
    return galleries


Scores = dict[str, dict[tuple[str, int], float]]  # facet -> (trial, image) -> score


def _scores(
    results: Results, trials: Sequence[str], images: Sequence[int], protocol: str, facets: pd.DataFrame
) -> dict[str, Scores]:
    """The sample's scores by method (without protocol), of the metric that stands for each facet."""
    rows = results.query(
        "SELECT trial, image, method, metric, value FROM scores JOIN cells USING (method, metric) "
        "WHERE protocol = $1 AND trial IN $2 AND image IN $3 AND plain_metric IN $4",
        [protocol, list(trials), list(images), list(facets["metric"])],
    ).dropna()
    of = dict(zip(facets["metric"], facets["facet"], strict=True))
    found: dict[str, Scores] = {}
    for row in terms.records(rows):
        scored = found.setdefault(plain(str(row["method"])), {}).setdefault(str(of[plain(str(row["metric"]))]), {})
        scored[str(row["trial"]), int(row["image"])] = float(row["value"])
    return found


def _cases(
    results: Results, sample: Mapping[int, tuple[int, np.ndarray]], shown: pd.DataFrame,
    found: Mapping[str, dict[tuple[int, str], np.ndarray]], predicted: pd.DataFrame, method: str, scores: Scores,
    facets: pd.DataFrame,
) -> list[Case]:  # fmt: skip
    classes = results.plan["dataset"]["classes"]
    places = {facet: _places(scores.get(facet, {}), direction == "lower")
              for facet, direction in zip(facets["facet"], facets["direction"], strict=True)}  # fmt: skip
    digits = {facet: terms.decimals(pd.Series(list(of.values()))) for facet, of in scores.items() if of}
    cases = []
    for image, (label, pixels) in sample.items():
        row: list[Picture | None] = []
        for trial, objective in zip(shown["trial"], shown["objective_label"], strict=True):
            attribution = found[trial].get((image, method))
            if attribution is None or (trial, image) not in predicted.index:
                row.append(None)
                continue
            named = results.records[trial].get("classes", classes)  # a given network may have outputs of its own
            own = {facet: terms.number(of[trial, image], np.nan, digits[facet]) if (trial, image) in of else "–"
                   for facet, of in scores.items()}  # fmt: skip
            row.append(_explained(pixels, attribution, predicted.loc[(trial, image)], named, objective, image, own))
        original = Picture(rgb(pixels), f"test image {image}, {classes[label]}", str(classes[label]))
        cases.append(Case(original, row, {facet: place[image] for facet, place in places.items() if image in place}))
    return cases


def _places(scores: Mapping[tuple[str, int], float], lower: bool) -> dict[int, tuple[int, str]]:
    """For the best, median and worst images their place and which of these they are, by the mean over networks; an
    image that is undefined for a network is no case."""
    rows = pd.DataFrame([(image, value) for (_, image), value in scores.items()], columns=["image", "value"])
    means = rows.groupby("image")["value"].agg(["mean", "count"])
    whole = means[means["count"] == means["count"].max()].sort_values("mean", ascending=lower, kind="stable")
    images = [int(image) for image in whole.index]
    (_, best), (_, median), (_, worst) = CASES
    if len(images) < best + median + worst:
        return {image: (place, f"{place + 1} of {len(images)}") for place, image in enumerate(images)}
    middle = (len(images) - median) // 2
    chosen = [*images[:best], *images[middle : middle + median], *images[-worst:]]
    kinds = [kind for kind, count in CASES for _ in range(count)]
    return {image: (place, kind) for place, (image, kind) in enumerate(zip(chosen, kinds, strict=True))}


def mosaic(gallery: Gallery, slug: str) -> Drawn:
    """The gallery as one figure for a paper: a row an objective, a column an image."""
    cases = gallery.cases[:_PER_FIGURE]
    blank = np.full_like(cases[0].image.pixels, 255)
    rows: list[list[Picture | None]] = [[case.image for case in cases]]
    rows += [[case.maps[row] for case in cases] for row in range(len(gallery.objectives))]
    tiles = [[_framed(picture.pixels if picture else blank) for picture in row] for row in rows]
    side = tiles[0][0].shape[0]
    figure = Figure(figsize=(1.5 + 0.8 * len(cases), 0.3 + 0.8 * len(rows)))
    axis = figure.subplots()
    axis.imshow(np.vstack([np.hstack(row) for row in tiles]), interpolation="nearest")
    axis.set_yticks(side * (np.arange(len(rows)) + 0.5), ["image", *gallery.objectives])
    axis.set_xticks(side * (np.arange(len(cases)) + 0.5), [case.image.caption for case in cases])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    title = f"Attribution maps: {gallery.method}"
    return save(figure, f"gallery-{gallery.method}-{slug}", title, f"{title} of {len(cases)} test images.")


def _explained(
    pixels: np.ndarray, attribution: np.ndarray, predicted: pd.Series, classes: Sequence[str], label: str, image: int,
    scores: Mapping[str, str],
) -> Picture:  # fmt: skip
    correct = predicted["prediction"] == predicted["label"]
    name = str(classes[int(predicted["prediction"])])
    caption = f"{name} · {100 * predicted['confidence']:.0f} %"
    nothing = "" if np.ptp(attribution) > 0 else ", the same everywhere"
    alt = f"map of test image {image} under {label}, predicted {name}{'' if correct else ' (wrong)'}{nothing}"
    return Picture(overlay(pixels, attribution), alt, caption, bool(correct), scores)


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
