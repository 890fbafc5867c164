"""The page's tables of measures: objectives beside one another, and what the protocol changes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scl_ray.report import statistics, terms

MOST_ROWS = 120  # of a table on the page; more are in the files
_ACROSS = 5  # with more objectives than fit side by side, the main table has a row an objective


def table(measures: pd.DataFrame, reference: str) -> dict[str, Any]:
    """Rows of measures, a cell an objective: ``{"objectives": […], "rows": [{"facet", …, "cells": […]}], …}``, the
    first of them, with how many there are."""
    objectives = list(dict.fromkeys(measures["objective_label"]))
    most = int(measures["seeds"].max()) if len(measures) else 0
    groups = list(measures.groupby(terms.MEASURE, sort=False))
    rows: list[dict[str, Any]] = []
    for (facet, metric, method), measure in groups[:MOST_ROWS]:
        digits = terms.decimals(measure["mean"])
        cells = {row["objective_label"]: _cell(row, digits, most) for row in terms.records(measure)}
        first = not rows or rows[-1]["facet"] != facet
        rows.append({
            "facet": facet, "metric": metric, "method": method, "first": first,
            "direction": measure["direction"].iloc[0], "arrow": terms.arrow(measure["direction"].iloc[0]),
            "cells": [cells.get(objective) for objective in objectives],
        })  # fmt: skip
    return {"objectives": objectives, "reference": reference, "rows": rows, "total": len(groups),
            "wide": len(objectives) > _ACROSS}  # fmt: skip


def for_paper(measures: pd.DataFrame) -> pd.DataFrame:
    """The same as strings: a row an objective, a column a measure, ``0.262 ± 0.010``, with ▲ or ▼ where Holm's test
    decides that it is better or worse than the reference."""
    marks = {"better": " ▲", "worse": " ▼"}
    columns: dict[str, dict[str, str]] = {}
    for (facet, _, _), measure in measures.groupby(terms.MEASURE, sort=False):
        digits = terms.decimals(measure["mean"])
        name = f"{facet} {terms.arrow(measure['direction'].iloc[0])}"
        columns[name] = {row["objective_label"]: terms.number(row["mean"], row["spread"], digits)
                         + marks.get(row["verdict"], "") for row in terms.records(measure)}  # fmt: skip
    order = list(dict.fromkeys(measures["objective_label"]))
    return pd.DataFrame(columns).reindex(order).rename_axis("objective").reset_index()


def _cell(row: Mapping[str, Any], digits: int, most: int) -> dict[str, Any]:
    compared = not np.isnan(row["difference"])
    finer = max(digits, terms.resolving(row["difference"], row["low"], row["high"], significant=2))
    return {
        "number": terms.number(row["mean"], row["spread"], digits),
        "seeds": int(row["seeds"]) if row["seeds"] < most else None,
        "difference": terms.signed(row["difference"], finer) if compared else "",
        "interval": terms.interval(row["low"], row["high"], finer),
        "p": "" if np.isnan(row["p_holm"]) else terms.p_value(row["p_holm"]), "verdict": row["verdict"],
        "undefined": int(row["undefined"]),
    }  # fmt: skip


def too_few_seeds(seeds: pd.DataFrame, reference: str) -> bool:
    """Whether no objective can be compared at all: fewer than three seeds of the reference or of every other one."""
    trained = seeds.groupby("objective_label")["seed"].nunique()
    others = trained.drop(reference, errors="ignore")
    return min(trained.get(reference, 0), others.max() if len(others) else 0) < statistics.FEWEST_SEEDS


def protocols(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table a backbone: rows of measures, cells ``corrected → published``."""
    blocks = []
    for backbone, of_backbone in table.groupby("backbone", sort=False):
        objectives = list(dict.fromkeys(of_backbone["objective_label"]))
        rows: list[dict[str, Any]] = []
        facets = set()
        for (facet, metric, method), measure in of_backbone.groupby(terms.MEASURE, sort=False):
            digits = terms.decimals(pd.concat([measure["mean_corrected"], measure["mean_published"]]))
            cells = {row["objective_label"]: _change(row, digits) for row in terms.records(measure)}
            rows.append({"facet": facet, "metric": metric, "method": method, "headline": facet not in facets,
                         "arrow": terms.arrow(measure["direction"].iloc[0]),
                         "cells": [cells.get(objective) for objective in objectives],
                         "same_order": bool(measure["same_order"].iloc[0]),
                         "verdicts": int((measure["verdict_corrected"] != measure["verdict_published"]).sum()),
                         })  # fmt: skip
            facets.add(facet)
        blocks.append({"backbone": backbone, "objectives": objectives, "rows": rows})
    return blocks


def _change(row: Mapping[str, Any], digits: int) -> dict[str, str]:
    sides = [terms.number(row[f"mean_{side}"], np.nan, digits) for side in ("corrected", "published")]
    return {"corrected": sides[0], "published": sides[1]}
