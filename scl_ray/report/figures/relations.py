"""What goes with what: accuracy with quality, metrics with each other, quality with a network's other properties."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scl_ray.report import terms
from scl_ray.report.figures.drawing import (
    DIVERGING,
    NEUTRAL,
    Drawn,
    Looks,
    in_words,
    legend,
    legend_height,
    measures_of,
    named,
    of_measure,
    panels,
    save,
)

_WRITTEN = 14  # a heat map of more rows has no room for numbers


def accuracy(measures: pd.DataFrame, seeds: pd.DataFrame, look: Looks, slug: str) -> Drawn | None:
    """Accuracy against each facet's representative measure: a small point a trial, a large one an objective."""
    shown = terms.representative(measures)
    chosen = measures_of(shown[shown["facet"] != terms.ACCURACY])
    if not chosen:
        return None
    known = seeds.loc[seeds["facet"] == terms.ACCURACY, ["trial", "mean"]].rename(columns={"mean": "accuracy"})
    figure, axes = panels(len(chosen), 2.7, 2.3, 0.25 + legend_height(len(look)))
    for axis, measure in zip(axes, chosen, strict=True):
        points = of_measure(seeds, measure).merge(known)
        for label, own in points.groupby("objective_label", sort=False):
            colour, marker = look[str(label)]
            x, y = 100 * own["accuracy"], own["mean"]
            axis.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.55, linestyle="none", markeredgewidth=0)
            axis.plot(x.mean(), y.mean(), marker, color=colour, markersize=8, markeredgecolor=NEUTRAL,
                      markeredgewidth=0.7, label=label)  # fmt: skip
        axis.set_title(named(measure))
        axis.margins(0.12)
        axis.locator_params(nbins=4)
    legend(figure, axes)
    figure.supxlabel("accuracy in %", fontsize=9)
    title = "Accuracy beside attribution quality"
    return save(figure, f"accuracy-{slug}", title, f"{title}. {in_words(shown)}")


def agreement(table: pd.DataFrame, slug: str) -> Drawn | None:
    """Rank correlations of metrics with each other under the first method: over a network's images, and over networks.

    *table*: one view's rows of `agreement.of_metrics`. None below two metrics.
    """
    if table.empty:
        return None
    method = table["method"].iloc[0]
    rows = table[table["method"] == method]
    metrics = list(dict.fromkeys([*rows["metric"], *rows["other_metric"]]))
    sides = {"over the images of a network": "over_images", "over networks": "over_trials"}
    sides = {told: column for told, column in sides.items() if rows[column].notna().any()}
    if not sides:
        return None
    labels = [terms.spelled(metric) for metric in metrics]
    side = max(0.34 * len(metrics), 1.4)
    figure, axes = panels(len(sides), side, side + 0.065 * max(map(len, labels)) + 0.3, sharey=True)
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(map(len, labels)) + 0.7)
    image = None
    for axis, (told, column) in zip(axes, sides.items(), strict=True):
        cells = np.full((len(metrics), len(metrics)), np.nan)
        one, other = rows["metric"].map(metrics.index), rows["other_metric"].map(metrics.index)
        cells[one, other] = cells[other, one] = rows[column]
        np.fill_diagonal(cells, 1.0)
        image = _heat(axis, cells, labels, labels)
        axis.set_title(told)
    _bar(figure, image, axes)
    title = f"Do the metrics agree? Rank correlation under {method}"
    column = next(iter(sides.values()))
    words = "; ".join(f"{row['metric']} and {row['other_metric']} {terms.written(row[column], 2)}"
                      for row in terms.records(rows[rows[column].notna()]))  # fmt: skip
    return save(figure, f"agreement-{slug}", title, f"{title}: {words}.")


def properties(table: pd.DataFrame, slug: str) -> Drawn | None:
    """Rank correlations of the facets' representative measures with other properties of a network, over networks.

    *table*: one view's rows of `agreement.with_properties`. None where there are none.
    """
    rows = terms.representative(table)
    rows = rows[rows["over_trials"].notna()]
    if rows.empty:
        return None
    facets, known = list(dict.fromkeys(rows["facet"])), list(dict.fromkeys(rows["property"]))
    cells = np.full((len(known), len(facets)), np.nan)
    cells[rows["property"].map(known.index), rows["facet"].map(facets.index)] = rows["over_trials"]
    figure, (axis,) = panels(1, 0.5 * len(facets) + 3.4, 0.27 * len(known) + 1.3)
    image = _heat(axis, cells, known, facets)
    axis.set_aspect("auto")
    _bar(figure, image, [axis])
    title = "What goes with better explanations? Rank correlation over networks"
    words = "; ".join(f"{row['facet']} with {row['property']} {terms.written(row['over_trials'], 2)}"
                      for row in terms.records(rows))  # fmt: skip
    return save(figure, f"properties-{slug}", title, f"{title}: {words}.")


def _heat(axis: Axes, cells: np.ndarray, rows: list[str], columns: list[str]) -> object:
    image = axis.imshow(cells, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="none")
    if len(rows) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value) and not (rows is columns and row == column):
                text = f"{value:.1f}".replace("-", "−").replace("−0.0", "0.0")
                colour = "white" if abs(value) > 0.6 else "#111111"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def _bar(figure: object, image: object, axes: list[Axes]) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=14, pad=0.02)  # type: ignore[attr-defined]
    bar.set_ticks([-1, 0, 1], labels=["−1", "0", "1"])
    bar.outline.set_visible(False)
