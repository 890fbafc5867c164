"""The report's figures: one per metric, accuracy beside quality, and the flipping curves of the sample images.

A figure grows with what it shows: a row per objective, a panel per method.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from scl_ray import specs
from scl_ray.report import terms

# Okabe & Ito's colours (jfly.uni-koeln.de/color), which people of every colour vision tell apart, without yellow and
# black, which vanish on a light or a dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*"
THEME = {"#1c2127": "var(--ink)", "#8b929b": "var(--axis)", "#dde1e6": "var(--grid)"}  # greys of style.mplstyle


@dataclass(frozen=True)
class Drawn:
    """A figure as it is stored: *name* without suffix, what it shows in words, an SVG and a PNG."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes

    @property
    def themed(self) -> str:
        """The SVG for the page: in the page's colours, and with ids that no other figure has."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{self.name}-", body)
        body = re.sub("|".join(THEME), lambda match: THEME[match[0]], body)
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


Looks = dict[str, tuple[str, str]]  # objective label -> colour, marker


def looks(objectives: Sequence[str], names: Sequence[str]) -> Looks:
    """Colour and marker of every objective: a hue for each objective's name, paler for each further parameter value."""
    hues = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}
    found: Looks = {}
    for number, (label, name) in enumerate(zip(objectives, names, strict=True)):
        siblings = [other for other, of in zip(objectives, names, strict=True) if of == name]
        paler = 0.45 * siblings.index(label) / max(len(siblings) - 1, 1)
        red, green, blue = ((1 - paler) * part + paler for part in to_rgb(hues[name]))
        colour = to_hex((red, green, blue))
        found[label] = (colour, MARKERS[number % len(MARKERS)])
    return found


def intervals(measures: pd.DataFrame, seeds: pd.DataFrame, look: Looks, reference: str, slug: str) -> list[Drawn]:
    """One figure a metric (its parameters below one another), a panel a method, a row an objective: every seed's mean,
    and the mean ± standard deviation over seeds."""
    drawn = []
    scores = measures[measures["facet"] != terms.ACCURACY]
    for metric, of_metric in scores.groupby(scores["metric"].map(lambda spec: specs.parse(spec)[0]), sort=False):
        objectives = list(dict.fromkeys(of_metric["objective_label"]))
        panels = of_metric[["metric", "method"]].drop_duplicates()
        places = _places(panels)
        rows, columns = _size(places)
        figure = Figure(figsize=(1.4 + 2.3 * columns, rows * (0.75 + 0.27 * len(objectives))))
        axes = _axes(figure, places, sharex=False)
        for axis, (variant, method) in zip(axes, panels.itertuples(index=False), strict=True):
            panel = of_metric[(of_metric["metric"] == variant) & (of_metric["method"] == method)]
            points = seeds[(seeds["metric"] == variant) & (seeds["method"] == method)]
            _interval_panel(axis, panel, points, objectives, look, reference)
            parameters = variant.removeprefix(str(metric)).strip("[]")
            axis.set_title("\n".join(filter(None, (method, parameters))))
        direction, facet = of_metric["direction"].iloc[0], of_metric["facet"].iloc[0]
        title = f"{facet}: {metric} {terms.arrow(direction)} {direction} is better"
        drawn.append(save(figure, f"{metric}-{slug}", title, f"{title}. {_in_words(of_metric)}"))
    return drawn


def accuracy_beside_quality(measures: pd.DataFrame, seeds: pd.DataFrame, look: Looks, slug: str) -> Drawn:
    """Accuracy against each facet's representative measure: a small point a trial, a large one an objective."""
    shown = terms.representative(measures)
    chosen = shown.loc[shown["facet"] != terms.ACCURACY, [*terms.MEASURE, "direction"]].drop_duplicates()
    accuracy = seeds.loc[seeds["facet"] == terms.ACCURACY, ["trial", "mean"]].rename(columns={"mean": "accuracy"})
    columns = min(3, max(1, len(chosen)))
    rows = -(-max(1, len(chosen)) // columns)
    figure = Figure(figsize=(2.75 * columns, 2.3 * rows + 0.22 * _legend_rows(look)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, measure in zip(axes, terms.records(chosen), strict=False):
        facet, metric, method = (measure[key] for key in terms.MEASURE)
        points = seeds[(seeds["metric"] == metric) & (seeds["method"] == method)].merge(accuracy)
        for label, of_objective in points.groupby("objective_label", sort=False):
            colour, marker = look[str(label)]
            x, y = 100 * of_objective["accuracy"], of_objective["mean"]
            axis.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.55, linestyle="none", markeredgewidth=0)
            axis.plot(x.mean(), y.mean(), marker, color=colour, markersize=8, markeredgecolor="#8b929b",
                      markeredgewidth=0.7, label=label)  # fmt: skip
        axis.set_title(f"{facet} {terms.arrow(measure['direction'])}\n{metric} · {method}")
        axis.margins(0.12)
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    figure.supxlabel("accuracy in %", fontsize=9)
    if len(chosen):
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9, markerscale=0.8)
    title = "Accuracy beside attribution quality"
    return save(figure, f"accuracy-{slug}", title, f"{title}. {_in_words(shown)}")


def flipping_curves(curves: pd.DataFrame, look: Looks, slug: str) -> Drawn:
    """A panel a method: the curve of each objective, averaged over the sample images and seeds (thin: each seed).

    *curves*: objective_label, trial, method, metric (without protocol), step, value.
    """
    panels = curves[["metric", "method"]].drop_duplicates()
    places = _places(panels)
    rows, columns = _size(places)
    figure = Figure(figsize=(2.6 * max(columns, 2), 2.3 * rows + 0.22 * _legend_rows(look)))
    axes = _axes(figure, places, sharex=True)
    for axis, (metric, method) in zip(axes, panels.itertuples(index=False), strict=True):
        _curve_panel(axis, curves[(curves["metric"] == metric) & (curves["method"] == method)], look)
        axis.set_title(f"{metric}\n{method}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9)
    figure.supxlabel("share of the pixels flipped, the most important first, in %", fontsize=9)
    title = "How the score falls as pixels are flipped"
    averages = curves.groupby(["metric", "method", "objective_label"], sort=False)["value"].mean()
    words = "; ".join(f"{label} {value:.3f}" for label, value in averages.loc[tuple(panels.iloc[0])].items())
    return save(
        figure, f"curves-{slug}", title, f"{title}, {' under '.join(panels.iloc[0])}, mean of the curve: {words}."
    )


def curves_of_images(curves: pd.DataFrame, pixels: dict[int, np.ndarray], look: Looks, slug: str) -> Drawn:
    """The same for single images: each with its picture above, one line an objective (mean over seeds).

    *curves*: as `flipping_curves`, of one method and metric, with image. *pixels*: image -> (H,W) or (H,W,3) uint8.
    """
    columns = min(len(pixels), 8)
    figure = Figure(figsize=(1.25 * columns, 2.5))
    axes = figure.subplots(2, columns, squeeze=False, sharey="row", height_ratios=(1, 1.1))
    for (image, picture), (above, below) in zip(pixels.items(), axes.T, strict=False):
        above.imshow(picture, cmap="gray", vmin=0, vmax=255)
        above.set_axis_off()
        above.set_title(f"image {image}", fontsize=8)
        _curve_panel(below, curves[curves["image"] == image], look, thin=False)
    metric, method = curves["metric"].iloc[0], curves["method"].iloc[0]
    title = f"The same on single images: {metric} under {method}"
    return save(figure, f"curves-images-{slug}", title, f"{title}, images {', '.join(map(str, pixels))}.")


def _interval_panel(
    axis: Axes, panel: pd.DataFrame, points: pd.DataFrame, objectives: list[str], look: Looks, reference: str
) -> None:
    rows = {label: row for row, label in enumerate(objectives)}
    base = panel.loc[panel["objective_label"] == reference, "mean"]
    if len(base) and not np.isnan(base.iloc[0]):
        axis.axvline(base.iloc[0], color="#8b929b", linewidth=0.9, linestyle=(0, (3, 3)))
    for measure in terms.records(panel):
        colour, marker = look[measure["objective_label"]]
        row = rows[measure["objective_label"]]
        each = points.loc[points["objective_label"] == measure["objective_label"], "mean"]
        axis.plot(each, [row + 0.27] * len(each), "o", color=colour, markersize=3.2, markerfacecolor="none",
                  markeredgewidth=0.9)  # fmt: skip
        spread = None if np.isnan(measure["spread"]) else measure["spread"]
        axis.errorbar(measure["mean"], row, xerr=spread, fmt=marker,
                      color=colour, markersize=5.5, elinewidth=2, capsize=0)  # fmt: skip
    axis.set_yticks(range(len(objectives)), objectives)
    axis.set_ylim(len(objectives) - 0.4, -0.5)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.1)


def _curve_panel(axis: Axes, panel: pd.DataFrame, look: Looks, thin: bool = True) -> None:
    # The unperturbed image is no step: the first value is that after one step's pixels.
    steps = panel["step"].max() + 1
    for label, of_objective in panel.groupby("objective_label", sort=False):
        colour, _ = look[str(label)]
        if thin:
            for _, of_trial in of_objective.groupby("trial", sort=False):
                curve = of_trial.groupby("step")["value"].mean()
                axis.plot(100 * (curve.index + 1) / steps, curve, color=colour, linewidth=0.6, alpha=0.6)
        curve = of_objective.groupby("step")["value"].mean()
        axis.plot(100 * (curve.index + 1) / steps, curve, color=colour, label=label)
    axis.set_ylim(bottom=0)
    axis.locator_params(nbins=4)


def save(figure: Figure, name: str, title: str, alt: str) -> Drawn:
    """The figure as SVG and PNG, the same bytes for the same content."""
    name = re.sub(r"[^\w.-]+", "_", name)
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # the layout is found; finding it again doubles the time
    figure.savefig(png, format="png", facecolor="white", metadata={"Software": None})
    return Drawn(name, title, alt, svg.getvalue(), png.getvalue())


@contextmanager
def style() -> Iterator[None]:
    """The report's style, while its ``with`` block lasts: every figure is made inside one."""
    with as_file(files("scl_ray.report") / "style.mplstyle") as path, matplotlib.style.context(path):
        yield


def _places(panels: pd.DataFrame) -> list[tuple[int, int]]:
    """Row and column of each panel: a metric's parameters below one another, its methods side by side, at most four."""
    sizes = panels.groupby("metric", sort=False).size()
    columns = -(-sizes.max() // -(-sizes.max() // 4))
    places, row = [], 0
    for size in sizes:
        places += [(row + number // columns, number % columns) for number in range(size)]
        row += -(-size // columns)
    return places


def _axes(figure: Figure, places: list[tuple[int, int]], sharex: bool) -> list[Axes]:
    """One axis at each place."""
    rows, columns = _size(places)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=True)
    for place, axis in np.ndenumerate(grid):
        if place not in places:
            axis.remove()
    return [grid[place] for place in places]


def _size(places: list[tuple[int, int]]) -> tuple[int, int]:
    return max(row for row, _ in places) + 1, max(column for _, column in places) + 1


def _legend_rows(look: Looks) -> int:
    return -(-len(look) // 4)


def _in_words(measures: pd.DataFrame) -> str:
    """The means, for those who cannot see the figure."""
    sentences = []
    for (metric, method), of_measure in measures.groupby(["metric", "method"], sort=False):
        digits = terms.decimals(of_measure["mean"])
        values = ", ".join(f"{row['objective_label']} {terms.number(row['mean'], row['spread'], digits)}"
                           for row in terms.records(of_measure))  # fmt: skip
        sentences.append(f"{metric}{f' under {method}' if method else ''}: {values}.")
    return " ".join(sentences)
