"""Two sweeps side by side: what both measured, how far they lie apart, and which verdicts change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scl_ray.config import InputError
from scl_ray.report import comparisons, latex, tables, terms
from scl_ray.report.figures import differences
from scl_ray.report.figures.drawing import Drawn, style
from scl_ray.report.page import conclusions, provenance, template
from scl_ray.report.tables import Tables
from scl_ray.report.terms import MEASURE, VIEW
from scl_ray.results import Results, open_results

_KEYS = [*VIEW, *MEASURE, "objective"]


@dataclass(frozen=True)
class SideBySide:
    """*differences*: one row a measure and objective that both sweeps have: the first sweep's mean over seeds less the
    second's, with Welch's interval and test (Holm over the view). *verdicts*: one row a comparison with the reference
    that both have, each sweep's difference and verdict, and whether they are the same. *images*: how many images the
    means are over, by view; empty where the sweeps have no images in common, and each has its own."""

    differences: pd.DataFrame
    verdicts: pd.DataFrame
    images: pd.DataFrame


def build(out: str, name: str, other: str) -> str:
    """Write ``report/compare/<other>/`` of sweep *name*: a page with its tables and figures. Returns where the page
    is: a path, or a URI as *out* is one.

    Raises InputError where either sweep is missing, where they are the same, and where they have nothing in common.
    """
    if name == other:
        raise InputError(f"--compare {other}: is the sweep itself; name another one below {out}")
    pair = open_results(out, name), open_results(out, other)
    made = tables.make(pair[0]), tables.make(pair[1])
    found = compare(pair, made)
    if found.differences.empty:
        raise InputError(f"--compare {other}: has no objective, backbone and measure in common with {name}")
    with style():
        figures = [_forest(view, rows, other)
                   for view, rows in terms.representative(found.differences).groupby(VIEW, sort=False)]  # fmt: skip
    files: dict[str, bytes] = {}
    for table, rows in (("differences", found.differences), ("verdicts", found.verdicts)):
        text: str = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files |= {f"tables/{table}.csv": text.encode(), f"tables/{table}.tex": latex.table(rows).encode()}
    for figure in figures:
        files |= {f"figures/{figure.name}.svg": figure.svg.encode(), f"figures/{figure.name}.png": figure.png}
    files["index.html"] = _page((name, other), pair, made, found, figures).encode()
    store = pair[0].store
    for path, content in files.items():
        store.write(f"report/compare/{other}/{path}", content)
    return store.uri(store.path("report/compare", other, "index.html"))


def compare(pair: tuple[Results, Results], made: tuple[Tables, Tables]) -> SideBySide:
    """What two sweeps found of the same objectives and measures.

    Sweeps of one dataset are compared on the images that all networks of both classify correctly; *pair* keeps these as
    its common ones.
    """
    shared = _share_images(pair)
    means = [tables.seed_means(results).rename(columns={"objective_label": "objective"}) for results in pair]
    both = means[0].merge(means[1][_KEYS].drop_duplicates())[_KEYS].drop_duplicates()
    stacked = pd.concat([of.merge(both).assign(objective_label=side) for of, side in zip(means, "ab", strict=True)])
    found = comparisons.compare(stacked, _KEYS, "b", VIEW).drop(columns="objective_label")
    over = [of.groupby(_KEYS, sort=False)["mean"].mean().rename(side).reset_index()
            for of, side in zip(means, ("mean", "other_mean"), strict=True)]  # fmt: skip
    found = found.merge(over[0], "left").merge(over[1], "left").rename(
        columns={"objective": "objective_label", "reference_seeds": "other_seeds"})  # fmt: skip
    columns = [*VIEW, *MEASURE, "direction", "objective_label", "mean", "other_mean", "seeds", "other_seeds",
               "difference", "low", "high", "p", "p_holm", "verdict"]  # fmt: skip
    return SideBySide(found[columns], _verdicts(made), shared)


def _share_images(pair: tuple[Results, Results]) -> pd.DataFrame:
    """Make the images that both sweeps have in common those of each; how many they are, by view."""
    if not _same_dataset(pair):
        return pd.DataFrame(columns=[*VIEW, "images"])
    own = [results.query("SELECT backbone::VARCHAR AS backbone, protocol::VARCHAR AS protocol, image FROM common")
           for results in pair]  # fmt: skip
    shared = own[0].merge(own[1])
    for results in pair:
        results.connection.register("shared_rows", shared)
        results.connection.execute("CREATE TEMP TABLE shared AS SELECT * FROM shared_rows")
        results.connection.execute("""
            CREATE OR REPLACE VIEW common AS SELECT of.backbone, of.protocol, of.image FROM compared of JOIN shared
            ON of.backbone::VARCHAR = shared.backbone AND of.protocol::VARCHAR = shared.protocol
            AND of.image = shared.image""")
    return shared.groupby(VIEW, sort=False, as_index=False).agg(images=("image", "count"))


def _same_dataset(pair: tuple[Results, Results]) -> bool:
    return len({results.plan["dataset"]["fingerprint"] for results in pair}) == 1


def _verdicts(made: tuple[Tables, Tables]) -> pd.DataFrame:
    keys = [*VIEW, *MEASURE, "direction", "objective_label"]
    sides = [of.comparisons[[*keys, "reference", "difference", "low", "high", "verdict"]] for of in made]
    table = sides[0].merge(sides[1], on=[*keys, "reference"], suffixes=("", "_other"))
    return table.assign(same=table["verdict"] == table["verdict_other"])


def _forest(view: Any, rows: pd.DataFrame, other: str) -> Drawn:
    slug = "-".join(map(str, view))
    told = rows.rename(columns={"other_seeds": "reference_seeds"})
    return differences.forest(told, f"differences-{slug}", other)


def _page(
    names: tuple[str, str], pair: tuple[Results, Results], made: tuple[Tables, Tables], found: SideBySide,
    figures: Sequence[Drawn],
) -> str:  # fmt: skip
    counts = dict(found.images.groupby(VIEW)["images"].first())
    standing = terms.representative(found.differences).groupby(VIEW, sort=False)
    views = [{"title": f"{backbone} · {protocol} protocol", "figure": figure,
              "images": counts.get((backbone, protocol)), "rows": [_row(row) for row in terms.records(rows)]}
             for ((backbone, protocol), rows), figure in zip(standing, figures, strict=True)]  # fmt: skip
    return template("compare").render(
        names=names,
        facts=_facts(pair, made),
        views=views,
        shared=len(set(pair[0].plan["trials"]) & set(pair[1].plan["trials"])),
        same_dataset=_same_dataset(pair),
        compared=len(found.differences),
        changes=conclusions.changes(terms.representative(found.verdicts)),
        verdicts=len(found.verdicts),
        changed=int((~found.verdicts["same"]).sum()),
    )  # fmt: skip


def _facts(pair: tuple[Results, Results], made: tuple[Tables, Tables]) -> list[tuple[str, list[str], bool]]:
    """Term, what stands for it in either sweep, and whether these differ."""
    facts: dict[str, list[str]] = {}
    for results, tables_of in zip(pair, made, strict=True):
        grid = provenance.grid(results)
        rows = {
            "Dataset": f"{results.plan['dataset']['name']}, {results.plan['images']} images evaluated",
            "Networks": str(grid["trials"]),
            "Objectives": ", ".join(grid["objectives"]), "Backbones": ", ".join(grid["backbones"]),
            "Seeds": ", ".join(map(str, grid["seeds"])), "Protocols": ", ".join(results.plan["protocols"]),
            "Methods": ", ".join(grid["methods"]), "Metrics": ", ".join(grid["metrics"]),
            "Reference": tables_of.reference,
            "Not trained or not fully scored": str(len(tables_of.failures)),
            **{term: text for term, text in provenance.facts(results) if term in ("Software", "Trained on")},
        }  # fmt: skip
        for term, text in rows.items():
            facts.setdefault(term, []).append(text)
    return [(term, texts, len(set(texts)) > 1) for term, texts in facts.items() if len(texts) == len(pair)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    digits = terms.decimals(pd.Series([row["mean"], row["other_mean"]]))
    finer = max(digits, terms.resolving(row["difference"], row["low"], row["high"], significant=2))
    return {
        **row, "arrow": terms.arrow(row["direction"]),
        "sides": [terms.number(row["mean"], np.nan, digits), terms.number(row["other_mean"], np.nan, digits)],
        "text": "–" if pd.isna(row["difference"]) else terms.signed(row["difference"], finer),
        "interval": terms.interval(row["low"], row["high"], finer),
    }  # fmt: skip
