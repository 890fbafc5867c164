"""What lies behind the means: every network, and every image."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scl_ray.report import terms
from scl_ray.report.figures.drawing import (
    NEUTRAL,
    Drawn,
    Looks,
    in_words,
    measures_of,
    named,
    of_measure,
    panels,
    rows_of,
    save,
)

MOST_PANELS = 4
QUANTILES = np.linspace(0, 1, 401)  # that stand for all images in a violin: more look the same


def networks(measures: pd.DataFrame, seeds: pd.DataFrame, look: Looks, reference: str, slug: str) -> list[Drawn]:
    """One figure a facet: a panel a measure, a row an objective: every seed's mean, and mean ± standard deviation.

    *measures* and *seeds*: one view's rows of `Tables`. Every metric under its first method comes first, then the other
    methods, up to four panels.
    """
    drawn = []
    scores = measures[measures["facet"] != terms.ACCURACY]
    for facet, rows in scores.groupby("facet", sort=False):
        known = measures_of(rows)
        turn = pd.DataFrame(known).groupby("metric", sort=False).cumcount()
        shown = [known[place] for place in np.argsort(turn, kind="stable")[:MOST_PANELS]]
        objectives = list(dict.fromkeys(rows["objective_label"]))
        figure, axes = panels(len(shown), 2.5, 0.85 + 0.27 * len(objectives), sharey=True)
        for axis, measure in zip(axes, shown, strict=True):
            _networks(axis, of_measure(rows, measure), of_measure(seeds, measure), objectives, look, reference)
            axis.set_title(
                f"{terms.spelled(measure['metric'])} {terms.arrow(measure['direction'])}\n{measure['method']}"
            )
        some = f"; {len(shown)} of {len(known)} measures" if len(shown) < len(known) else ""
        title = f"{str(facet).capitalize()}: every network{some}"
        told = pd.concat([of_measure(rows, measure) for measure in shown])
        drawn.append(save(figure, f"networks-{facet}-{slug}", title, f"{title}. {in_words(told)}"))
    return drawn


def _networks(
    axis: Axes, panel: pd.DataFrame, points: pd.DataFrame, objectives: list[str], look: Looks, reference: str
) -> None:
    rows_of(axis, objectives)
    base = panel.loc[panel["objective_label"] == reference, "mean"]
    if len(base) and not np.isnan(base.iloc[0]):
        axis.axvline(base.iloc[0], color=NEUTRAL, linewidth=0.9, linestyle=(0, (3, 3)))
    # Three collections a panel, not three lines a row: a page of many panels is drawn in seconds.
    points, panel = points.dropna(subset=["mean"]), panel.dropna(subset=["mean"])
    if panel.empty:  # the measure is defined for no network
        return
    place = {label: number for number, label in enumerate(objectives)}
    spread = panel.dropna(subset=["spread"])
    colours = {label: colour for label, (colour, _) in look.items()}
    axis.scatter(points["mean"], points["objective_label"].map(place) + 0.27, s=10, facecolors="none", linewidths=0.9,
                 edgecolors=list(points["objective_label"].map(colours)))  # fmt: skip
    if len(spread):
        axis.hlines(spread["objective_label"].map(place), spread["mean"] - spread["spread"],
                    spread["mean"] + spread["spread"], colors=list(spread["objective_label"].map(colours)),
                    linewidth=2)  # fmt: skip
    axis.scatter(panel["mean"], panel["objective_label"].map(place), s=30,
                 c=list(panel["objective_label"].map(colours)))  # fmt: skip
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.1)


def violins(scores: pd.DataFrame, measures: pd.DataFrame, seeds: pd.DataFrame, look: Looks, slug: str) -> Drawn | None:
    """A panel a measure, a row an objective: the distribution over common images, all seeds together, and on it the
    mean of every seed.

    *scores*: objective_label, metric, method (without protocol), images (how many scores), quantiles (at `QUANTILES`);
    *measures* and *seeds*: one view's rows of `Tables`, of the measures to be shown. None where there is no score.
    """
    shown = [measure for measure in measures_of(measures) if len(of_measure(scores, measure))]
    if not shown:
        return None
    objectives = list(dict.fromkeys(measures["objective_label"]))
    figure, axes = panels(len(shown), 2.7, 0.85 + 0.36 * len(objectives), 0.25, sharey=True)
    for axis, measure in zip(axes, shown, strict=True):
        rows_of(axis, objectives)
        values, points = of_measure(scores, measure), of_measure(seeds, measure)
        for place, label in enumerate(objectives):
            colour, _ = look[label]
            for row in terms.records(values[values["objective_label"] == label]):
                _violin(axis, np.asarray(row["quantiles"], float), int(row["images"]), place, colour)
            each = points.loc[points["objective_label"] == label, "mean"]
            axis.plot(each, [place] * len(each), "|", color="#1c2127", markersize=9, markeredgewidth=1.2)
        axis.set_title(named(measure))
        axis.locator_params(axis="x", nbins=4)
    figure.supxlabel("area: images of all seeds; stroke: the mean of one network", fontsize=9)
    title = "How the scores of images spread"
    return save(figure, f"distributions-{slug}", title, f"{title}. {_quartiles(scores, shown)}")


def _violin(axis: Axes, quantiles: np.ndarray, count: int, place: int, colour: str) -> None:
    from scipy.stats import gaussian_kde

    low, high = quantiles[0], quantiles[-1]
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all may be zero
        axis.plot(low, place, "D", color=colour, alpha=0.5)
        return
    at = np.linspace(low, high, 60)
    # Scott's rule, by the number of scores that there are and no more than are drawn.
    density = gaussian_kde(quantiles, bw_method=min(count, len(quantiles)) ** -0.2)(at)
    half = 0.42 * density / density.max()
    axis.fill_between(at, place - half, place + half, color=colour, alpha=0.4, linewidth=0.6)


def _quartiles(scores: pd.DataFrame, shown: list[dict[str, str]]) -> str:
    sentences = []
    for measure in shown:
        rows = of_measure(scores, measure)
        quartiles = np.stack(list(rows["quantiles"]))[:, [len(QUANTILES) // 4, 3 * len(QUANTILES) // 4]]
        digits = terms.decimals(pd.Series(quartiles.ravel()))
        told = ", ".join(f"{label} {terms.written(low, digits)} to {terms.written(high, digits)}"
                         for label, (low, high) in zip(rows["objective_label"], quartiles, strict=True))  # fmt: skip
        sentences.append(f"{measure['metric']} under {measure['method']}, middle half of the images: {told}.")
    return " ".join(sentences)
