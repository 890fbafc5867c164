"""Curves with bands: how a score falls as pixels are flipped, and how a measure answers to an objective's parameter."""

import numpy as np
import pandas as pd

from scl_ray import specs
from scl_ray.report import terms
from scl_ray.report.figures.drawing import (
    Drawn,
    Looks,
    legend,
    legend_height,
    looks,
    measures_of,
    named,
    of_measure,
    panels,
    save,
)

MOST_PANELS = 8
# Their step after n is the share n of all pixels, the most important first; other metrics have steps of their own.
_FLIPPING = {"pixel_flipping_auc", "prediction_flip_auc"}


def at_steps(curves: pd.DataFrame, look: Looks, slug: str) -> Drawn:
    """A panel a metric and method: each objective's curve over the sample images, the mean of its seeds, with a band of
    one standard deviation over seeds.

    *curves*: objective_label, trial, method, metric (without protocol), step, value; up to eight panels are drawn,
    every metric in turn.
    """
    panel = curves[["metric", "method"]].drop_duplicates()
    turn = panel.groupby("metric", sort=False).cumcount()
    shown = panel.iloc[np.argsort(turn, kind="stable")[:MOST_PANELS]]
    of_pixels = all(_flips(metric) for metric in shown["metric"])
    figure, axes = panels(len(shown), 2.7, 2.2, 0.25 + legend_height(len(look)), sharex=of_pixels)
    by_network = curves.groupby(["metric", "method", "objective_label", "trial", "step"], sort=False)["value"].mean()
    over_seeds = by_network.groupby(level=[0, 1, 2, 4], sort=False).agg(["mean", "std"])
    for axis, (metric, method) in zip(axes, shown.itertuples(index=False), strict=True):
        lines = over_seeds.loc[(metric, method)]
        for label in lines.index.unique(level=0):
            colour, _ = look[str(label)]
            line = lines.loc[label].sort_index()
            step = line.index.to_numpy() + 1
            share = 100 * step / step.max() if of_pixels else step
            spread = line["std"].fillna(0)
            axis.fill_between(share, line["mean"] - spread, line["mean"] + spread, color=colour, alpha=0.2, linewidth=0)
            axis.plot(share, line["mean"], color=colour, label=label)
        axis.set_title(f"{terms.spelled(metric)}\n{method}")
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]) if (lines["mean"] < 0).any() else 0)
        axis.locator_params(nbins=4)
    legend(figure, axes)
    along = "share of the pixels flipped, the most important first, in %" if of_pixels else "step"
    figure.supxlabel(f"{along}; band: spread over seeds", fontsize=9)
    title = "How the score falls as pixels are flipped" if of_pixels else "What the metrics read at each step"
    first = tuple(shown.iloc[0])
    means = over_seeds.loc[first]["mean"].groupby(level=0, sort=False).mean()
    words = "; ".join(f"{label} {value:.3f}" for label, value in means.items())
    return save(figure, f"curves-{slug}", title, f"{title}, {' under '.join(first)}, mean of the curve: {words}.")


def _flips(metric: str) -> bool:
    name, parameters = specs.parse(metric)
    return name in _FLIPPING and "order" not in parameters


def dose_response(doses: pd.DataFrame, seeds: pd.DataFrame, reference: str, name: str, parameter: str) -> Drawn:
    """A panel a measure: its mean at each value of an objective's *parameter*, a line an objective and backbone, with
    the 95 % interval of each mean as a band; dashed: the mean of the *reference* on that backbone.

    *doses*: rows of `dose_response.tables` of one parameter and protocol, of the measures to be shown; *seeds*: those
    of `Tables`, of that protocol. Two seeds have no band: their interval would hide everything else.
    """
    measures = measures_of(doses)
    series = doses.groupby(["objective", "others", "backbone"], sort=False, observed=True)
    labels = {key: " · ".join(str(part) for part in key if str(part)) for key, _ in series}
    look = looks(list(labels.values()), [str(key[0]) for key in labels])
    figure, axes = panels(len(measures), 2.7, 2.25, 0.25 + legend_height(len(labels)))
    for axis, measure in zip(axes, measures, strict=True):
        for key, rows in of_measure(doses, measure).groupby(["objective", "others", "backbone"], sort=False):
            colour, marker = look[labels[key]]
            banded = rows["seeds"].min() > 2
            if banded:
                axis.fill_between(rows["dose"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
            axis.plot(rows["dose"], rows["mean"], marker=marker, markersize=5, color=colour, label=labels[key])
            own = of_measure(seeds, measure)
            base = own.loc[(own["objective_label"] == reference) & (own["backbone"] == key[2]), "mean"].mean()
            axis.axhline(base, color=colour, linewidth=0.9, linestyle=(0, (3, 3)))
        if (doses["dose"] > 0).all():
            at = sorted(doses["dose"].unique())
            axis.set_xscale("log")
            axis.set_xticks(at if len(at) <= 5 else [at[0], at[len(at) // 2], at[-1]])
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.minorticks_off()
        axis.set_title(named(measure))
        axis.locator_params(axis="y", nbins=4)
    legend(figure, axes)
    figure.supxlabel(f"{parameter}; band: 95 % interval of the mean over seeds; dashed: {reference}", fontsize=9)
    title = f"Attribution quality against {parameter} · {doses['protocol'].iloc[0]} protocol"
    words = " ".join(f"{measure['metric']}: " + ", ".join(
        f"{row['mean']:.3g} at {row['dose']:g}" for row in terms.records(of_measure(doses, measure))) + "."
        for measure in measures)  # fmt: skip
    return save(figure, name, title, f"{title}. {words}")
