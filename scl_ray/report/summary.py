"""The small table that a sweep prints at its end: objective x facet."""

import pandas as pd
from rich.table import Table
from rich.text import Text

from scl_ray.report import statistics, tables, terms
from scl_ray.results import Results, open_results

_ACROSS = 4  # this many objectives fit side by side in a terminal of 80 columns


def summary_table(out: str | Results, name: str = "") -> Table:
    """Accuracy and one measure per facet (its first metric, under the first method), mean ± spread over seeds, for
    every objective; an arrow marks the better direction. Readable as plain text too. Of the sweep *name* below *out*,
    or of one that is open.

    Raises InputError where there is no sweep *name* below *out*.
    """
    results = out if isinstance(out, Results) else open_results(out, name)
    means = tables.seed_means(results)
    keys = [*terms.VIEW, *terms.MEASURE, "direction", "objective_label"]
    measures = terms.representative(statistics.over_seeds(means, keys))
    seeds = means["seed"].nunique()
    shown = measures.loc[measures["facet"] != terms.ACCURACY, ["metric", "method"]].drop_duplicates()
    by_method = shown.groupby("method", sort=False)["metric"]
    explained = "; ".join(f"{method}: {', '.join(metrics)}" for method, metrics in by_method)
    over = f" ± spread over {seeds} seeds" if seeds > 1 else ", one seed"
    table = Table(
        title=Text(f"{results.name}: mean{over}", "table.title"),
        caption=Text(explained, "table.caption"), box=None, show_header=False, title_justify="left",
        caption_justify="left", pad_edge=False,
    )  # fmt: skip
    objectives = list(dict.fromkeys(measures["objective_label"]))
    table.add_column(no_wrap=True)
    for _ in objectives[:_ACROSS]:
        table.add_column(justify="right", overflow="fold")
    for view, of_view in _views(measures):
        for start in range(0, len(objectives), _ACROSS):
            _add_block(table, view, of_view, objectives[start : start + _ACROSS])
    return table


def _add_block(table: Table, view: str, measures: pd.DataFrame, objectives: list[str]) -> None:
    """Rows of facets for as many objectives as stand side by side."""
    if table.row_count:
        table.add_row()
    table.add_row(Text(view, style="bold"), *(Text(label, style="bold") for label in objectives))
    for (facet, direction), row in measures.groupby(["facet", "direction"], sort=False):
        table.add_row(Text(f"{facet} {terms.arrow(str(direction))}"), *_cells(row, objectives))


def _views(measures: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The views with a heading each, or one without a heading."""
    views = list(measures.groupby(terms.VIEW, sort=False))
    return [(" · ".join(map(str, view)) if len(views) > 1 else "", rows) for view, rows in views]


def _cells(measure: pd.DataFrame, objectives: list[str]) -> list[Text]:
    digits = terms.decimals(measure["mean"])
    found = {row["objective_label"]: terms.number(row["mean"], row["spread"], digits)
             for row in terms.records(measure)}  # fmt: skip
    return [Text(found.get(objective, "–")) for objective in objectives]
