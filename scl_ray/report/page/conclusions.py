"""What the page concludes, and whether it may be believed: verdicts, checks, doses, the published numbers."""

from typing import Any

import numpy as np
import pandas as pd

from scl_ray.report import sensitivity, terms

_MARKS = {"better": "▲", "worse": "▼", "not decided": "·"}


def verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """One view's sentences: the decided ones by objective, and the others."""
    # "p = 0.009" is not torn apart at the end of a line.
    lines = [{**row, "sentence": row["sentence"].replace("p = ", "p\u00a0=\u00a0").replace("p < ", "p\u00a0<\u00a0")}
             for row in terms.records(table)]  # fmt: skip
    decided = [line for line in lines if line["verdict"] != "not decided"]
    by_objective = {label: [line for line in decided if line["objective_label"] == label]
                    for label in dict.fromkeys(line["objective_label"] for line in decided)}  # fmt: skip
    return {"decided": by_objective, "undecided": [line for line in lines if line["verdict"] == "not decided"],
            "total": len(lines)}  # fmt: skip


def checks(table: pd.DataFrame) -> dict[str, Any]:
    """One view's conclusions under every check of `sensitivity.table`: a row a representative measure and objective, a
    column a check; rows that are decided under any check come first, the others are ``open``."""
    table = terms.representative(table)
    columns = list(dict.fromkeys(table["check"]))
    rows = []
    for (facet, metric, method, label), own in table.groupby([*terms.MEASURE, "objective_label"], sort=False):
        cells = {row["check"]: _check(row) for row in terms.records(own)}
        told = own["same"].dropna()
        rows.append({"facet": facet, "metric": metric, "method": method, "objective": label,
                     "cells": [cells.get(column) for column in columns], "stands": bool(told.all()),
                     "decided": bool((own["verdict"] != "not decided").any())})  # fmt: skip
    return {"checks": columns, "rows": [row for row in rows if row["decided"]],
            "open": [row for row in rows if not row["decided"]], "total": len(rows),
            "standing": sum(row["stands"] for row in rows), "any": len(columns) > 1}  # fmt: skip


def _check(row: dict[str, Any]) -> dict[str, Any]:
    if np.isnan(row["difference"]):
        return {"verdict": "untold", "text": "–", "note": row["note"], "changed": False}
    digits = terms.resolving(row["difference"], row["low"], row["high"])
    changed = row["check"] != sensitivity.AS_COMPARED and not pd.isna(row["same"]) and not row["same"]
    return {"verdict": row["verdict"], "mark": _MARKS[row["verdict"]], "changed": changed, "note": row["note"],
            "text": terms.signed(row["difference"], digits),
            "interval": terms.interval(row["low"], row["high"], digits)}  # fmt: skip


def changes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Verdicts that two sweeps reach, rows of `SideBySide.verdicts`, as text; those that differ come first."""
    rows = []
    for row in terms.records(table.sort_values("same", kind="stable")):
        sides = []
        for suffix in ("", "_other"):
            difference = row[f"difference{suffix}"]
            digits = terms.resolving(difference, row[f"low{suffix}"], row[f"high{suffix}"])
            sides.append({"text": "–" if np.isnan(difference) else terms.signed(difference, digits),
                          "interval": terms.interval(row[f"low{suffix}"], row[f"high{suffix}"], digits),
                          "verdict": row[f"verdict{suffix}"]})  # fmt: skip
        rows.append({**row, "arrow": terms.arrow(row["direction"]), "sides": sides})
    return rows


def slopes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The slopes of the representative measures as text."""
    rows = []
    for row in terms.records(terms.representative(table)):
        digits = terms.resolving(row["slope"], row["low"], row["high"])
        rows.append({
            **row, "arrow": terms.arrow(row["direction"]), "mark": _MARKS[row["verdict"]],
            "series": " · ".join(filter(None, (row["objective"], row["others"], row["backbone"], row["protocol"]))),
            "text": terms.signed(row["slope"], digits), "interval": terms.interval(row["low"], row["high"], digits),
            "p_text": "" if np.isnan(row["p_holm"]) else terms.p_value(row["p_holm"]).removeprefix("= "),
            "bent": bool(row["p_straight"] < 0.05),
        })  # fmt: skip
    return rows


def reproduction(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The published numbers beside ours as text."""
    rows = []
    for row in terms.records(table):
        digits = max(terms.decimals(pd.Series([row["published"], row["mean"]])), 3)
        rows.append({
            **row, "arrow": terms.arrow(row["direction"]),
            "theirs": terms.number(row["published"], row["published_spread"], digits),
            "their_interval": terms.interval(row["published_low"], row["published_high"], digits),
            "ours": terms.number(row["mean"], np.nan, digits),
            "interval": terms.interval(row["low"], row["high"], digits),
            "agreement": "cannot be told" if pd.isna(row["agrees"]) else "agrees" if row["agrees"] else "differs",
            "direction_kept": "" if pd.isna(row["same_direction"]) else "yes" if row["same_direction"]
            else "not decided" if row["difference_low"] <= 0 <= row["difference_high"] else "no",
        })  # fmt: skip
    return rows
