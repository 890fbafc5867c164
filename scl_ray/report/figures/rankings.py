"""Which attribution methods a metric prefers: Demšar's diagrams of mean ranks."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scl_ray.report import terms
from scl_ray.report.figures.drawing import NEUTRAL, Drawn, save

_PER_LABEL = 0.17  # inches between the labels of a diagram
_PER_LETTER = 0.066  # inches of a label's letter, at most
_SPAN = 2.2  # inches from the best possible rank to the worst
_WIDTH = 10.8  # inches of a figure that fills the page


def ranks(table: pd.DataFrame, slug: str) -> Drawn | None:
    """A diagram a metric: the mean ranks of the attribution methods over networks, the best on the left; a bar joins
    methods that lie closer than the critical difference, which is drawn above.

    *table*: one view's rows of `agreement.of_methods`; each facet's first metric is shown. None where there are none.

    Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, figure 1.
    """
    rows = table[table["metric"].isin(table.drop_duplicates("facet")["metric"])]
    if rows.empty:
        return None
    metrics = list(dict.fromkeys(rows["metric"]))
    most = int(rows["methods"].max())
    label = _PER_LETTER * (max(map(len, rows["method"])) + 8)
    columns = 2 if 2 * (2 * label + _SPAN) <= _WIDTH else 1
    width = max(_WIDTH / columns, 2 * label + _SPAN)
    height = 0.85 + _PER_LABEL * (-(-most // 2) + 2)
    figure = Figure(figsize=(width * columns, height * -(-len(metrics) // columns)))
    grid = figure.subplots(-(-len(metrics) // columns), columns, squeeze=False).ravel()
    for axis in grid[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(grid, metrics, strict=False):
        _ranks(axis, rows[rows["metric"] == metric].sort_values("rank", kind="stable"), label / (width - 2 * label))
    title = "Which attribution method does a metric prefer?"
    words = " ".join(f"{metric}: " + ", ".join(f"{row['method']} {row['rank']:.1f}" for row in terms.records(
        rows[rows["metric"] == metric].sort_values("rank", kind="stable"))) + "." for metric in metrics)  # fmt: skip
    return save(figure, f"methods-{slug}", title, f"{title} Mean ranks, 1 is best. {words}")


def _ranks(axis: Axes, rows: pd.DataFrame, beside: float) -> None:
    """One diagram; on the vertical axis labels lie one apart. *beside*: the room for labels on either side, in spans
    from the best possible rank to the worst."""
    first = rows.iloc[0]
    count, critical = len(rows), float(first["critical_difference"])
    joined = _groups(rows["rank"].to_numpy(float), critical)
    depth = 1.2 + 0.5 * len(joined) + -(-count // 2)
    axis.set_xlim(1 - beside * (count - 1), count + beside * (count - 1))
    axis.set_ylim(depth, -2.2)
    axis.axis("off")
    axis.plot([1, count], [0, 0], color="#1c2127", linewidth=1)
    for rank in range(1, count + 1):
        axis.plot([rank, rank], [0, -0.25], color="#1c2127", linewidth=1)
        axis.text(rank, -0.35, str(rank), ha="center", va="bottom", fontsize=7)
    width = min(critical, count - 1)
    axis.plot([1, 1 + width], [-1.55, -1.55], color=NEUTRAL, linewidth=2.5, solid_capstyle="butt")
    beyond = " (more than there are ranks)" if critical > count - 1 else ""
    axis.text(1 + width + 0.03 * count, -1.55, f"critical difference {critical:.2f}{beyond}", va="center", fontsize=7)
    for place, (low, high) in enumerate(joined):
        axis.plot([low - 0.02, high + 0.02], [0.45 + 0.4 * place] * 2, color=NEUTRAL, linewidth=3.5,
                  solid_capstyle="round")  # fmt: skip
    for place, row in enumerate(terms.records(rows)):
        left = place < -(-count // 2)
        level = 0.9 + 0.5 * len(joined) + (place if left else count - 1 - place)
        end = 1 - 0.04 * count if left else count + 0.04 * count
        axis.plot([row["rank"], row["rank"], end], [0, level, level], color="#1c2127", linewidth=0.7)
        axis.text(end + (-0.02 if left else 0.02) * count, level, f"{row['method']} ({row['rank']:.1f})",
                  ha="right" if left else "left", va="center", fontsize=8)  # fmt: skip
    p = "" if np.isnan(first["p"]) else f" · all alike: p {terms.p_value(first['p'])}"
    axis.set_title(f"{first['facet']}: {terms.spelled(first['metric'])} · {int(first['trials'])} networks{p}", pad=2)


def _groups(ranked: np.ndarray, critical: float) -> list[tuple[float, float]]:
    """The longest runs of ascending mean ranks that lie within the critical difference, of at least two methods."""
    runs: list[tuple[float, float]] = []
    furthest = -1
    for first, low in enumerate(ranked):
        last = int(np.searchsorted(ranked, low + critical, side="right")) - 1
        if last > first and last > furthest:
            runs.append((float(low), float(ranked[last])))
            furthest = last
    return runs
