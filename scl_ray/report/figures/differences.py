"""How far the objectives lie from the reference: a forest plot of what stands for the facets, a map of everything."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scl_ray.report import terms
from scl_ray.report.figures.drawing import (
    BETTER,
    DIVERGING,
    HOLLOW,
    NEUTRAL,
    WORSE,
    Drawn,
    measures_of,
    named,
    of_measure,
    panels,
    rows_of,
    save,
)

_COLOURS = {"better": BETTER, "worse": WORSE, "not decided": NEUTRAL}
_MARKED = 400  # a panel of more cells has no room for marks


def forest(compared: pd.DataFrame, name: str, against: str) -> Drawn:
    """A panel a measure, a row an objective: the difference from what is named *against* with its 95 % interval.

    *compared*: rows of `comparisons.table`, one view's, of the measures to be shown. What Holm's test decides is filled
    and coloured, what it does not is hollow and grey; the better side of zero is shaded.
    """
    measures, objectives = measures_of(compared), list(dict.fromkeys(compared["objective_label"]))
    figure, axes = panels(len(measures), 2.7, 0.95 + 0.27 * len(objectives), 0.25, sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        _differences(axis, of_measure(compared, measure), objectives, measure["direction"])
        axis.set_title(named(measure))
    figure.supxlabel(f"difference from {against} with its 95 % interval; shaded: the better side", fontsize=9)
    words = " ".join(_sentence(row) for row in terms.records(compared))
    title = f"Differences from {against}"
    return save(figure, name, title, f"{title}. {words}")


def _differences(axis: Axes, rows: pd.DataFrame, objectives: list[str], direction: str) -> None:
    rows_of(axis, objectives)
    axis.axvline(0, color=NEUTRAL, linewidth=0.9)
    ends = [0.0]
    for row in terms.records(rows):
        place, colour = objectives.index(row["objective_label"]), _COLOURS[row["verdict"]]
        decided = row["verdict"] != "not decided"
        if not np.isnan(row["low"]):
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.2 if decided else 1.2)
        axis.plot(row["difference"], place, "s" if decided else "o", color=colour, markersize=6.5,
                  markerfacecolor=colour if decided else HOLLOW, markeredgewidth=1.3)  # fmt: skip
        # Two seeds tell so little that their interval would leave no room for any other: it runs off the panel.
        few = min(row["seeds"], row["reference_seeds"]) < 3
        ends += [row["difference"]] if few or np.isnan(row["low"]) else [row["low"], row["high"]]
    ends = [end for end in ends if np.isfinite(end)]
    room = 0.12 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - room, max(ends) + room
    axis.axvspan(*((low, 0) if direction == "lower" else (0, high)), color=BETTER, alpha=0.07, linewidth=0)
    axis.set_xlim(low, high)
    axis.locator_params(axis="x", nbins=4)


def _sentence(row: dict) -> str:
    if np.isnan(row["difference"]):
        return f"{row['objective_label']}, {row['metric']}: undefined."
    digits = terms.resolving(row["difference"], row["low"], row["high"])
    interval = terms.interval(row["low"], row["high"], digits)
    return (f"{row['objective_label']}, {row['metric']}: {terms.signed(row['difference'], digits)} {interval}"
            f", {row['verdict']}.")  # fmt: skip


def overview(compared: pd.DataFrame, name: str, reference: str) -> Drawn | None:
    """A panel an objective, a row a metric, a column a method: the probability that on an image the objective's network
    scores better than the *reference*'s, blue above a half; a triangle where Holm's test decides.

    *compared*: rows of `comparisons.table`, one view's. None where no probability can be told.
    """
    rows = compared[compared["facet"] != terms.ACCURACY]
    if not rows["superiority"].notna().any():
        return None
    objectives = list(dict.fromkeys(rows["objective_label"]))
    metrics, methods = list(dict.fromkeys(rows["metric"])), list(dict.fromkeys(rows["method"]))
    width, height = 0.24 * len(methods), 0.24 * len(metrics)
    longest = 0.065 * max(map(len, methods))
    figure, axes = panels(
        len(objectives), max(width, 1.3) + 0.35, height + longest + 0.5, 0.5, sharex=True, sharey=True
    )
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(len(terms.spelled(metric)) for metric in metrics) + 0.9)
    for axis, objective in zip(axes, objectives, strict=True):
        own = rows[rows["objective_label"] == objective]
        place = (own["metric"].map(metrics.index).to_numpy(int), own["method"].map(methods.index).to_numpy(int))
        cells = np.full((len(metrics), len(methods)), np.nan)
        cells[place] = own["superiority"]
        image = axis.imshow(cells, cmap=DIVERGING, vmin=0, vmax=1, interpolation="none", aspect="auto")
        if cells.size <= _MARKED:
            for verdict, marker in (("better", "^"), ("worse", "v")):
                decided = (own["verdict"] == verdict).to_numpy()
                axis.plot(place[1][decided], place[0][decided], marker, color="white", markersize=4.5,
                          markeredgecolor="#1c2127", markeredgewidth=0.8, linestyle="none")  # fmt: skip
        axis.set_title(objective)
        axis.set_yticks(range(len(metrics)), [terms.spelled(metric) for metric in metrics])
        axis.set_xticks(range(len(methods)), methods, rotation=90)
        axis.grid(False)
        axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 1.6 / height), aspect=12, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["never", "half", "always"])
    bar.set_label("better on an image")
    bar.outline.set_visible(False)
    decided = rows["verdict"].value_counts()
    words = ", ".join(f"{decided.get(verdict, 0)} {verdict}" for verdict in _COLOURS)
    title = f"All metrics and methods against {reference}"
    return save(figure, name, title, f"{title}: of {len(rows)} comparisons {words}.")
