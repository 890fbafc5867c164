"""The report's page: one self-contained HTML file that needs no network, in a light and a dark theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from scl_ray.report import statistics, terms
from scl_ray.report.figures import Drawn
from scl_ray.report.gallery import Gallery
from scl_ray.report.tables import Tables
from scl_ray.results import Results

_ACROSS = 5  # with more objectives than fit side by side, the main table has a row an objective
# What each facet asks of an attribution map.
QUESTIONS = {
    "faithfulness": "Do the pixels it marks carry the decision? They are removed, the most important first.",
    "continuity": "Does it stay the same when the image changes imperceptibly?",
    "contrastivity": "Does it differ from the map of another class?",
    "complexity": "Is it spread over many pixels, or does it name few?",
    "sparseness": "How unequal are the shares of the pixels?",
    "randomisation": "Does it depend on what the network has learned?",
    "coherence": "Does it lie on the object?",
    "axiomatic": "Does it keep the rules that an attribution should keep?",
}


@dataclass(frozen=True)
class View:
    """What one backbone under one protocol shows: figures and galleries, and how many images its tables rest on."""

    backbone: str
    protocol: str
    intervals: list[Drawn]
    accuracy: Drawn
    curves: list[Drawn]
    galleries: list[Gallery]

    @property
    def title(self) -> str:
        return f"{self.backbone} · {self.protocol} protocol"


def render(name: str, results: Results, made: Tables, views: list[View]) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scl_ray.report", "."),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    of_view = {(row.backbone, row.protocol): row for row in made.images.itertuples(index=False)}
    return environment.get_template("page.html.j2").render(
        name=name,
        plan=results.plan,
        given=results.plan.get("kind") == "comparison",
        grid=_grid(results),
        reference=made.reference,
        views=[{
            "view": view,
            "images": of_view.get((view.backbone, view.protocol)),
            "headline": _table(_of(view, terms.representative(made.measures)), made.reference),
            "everything": _table(_of(view, made.measures), made.reference),
            "few_seeds": _too_few(_of(view, made.seeds), made.reference),
            "finding": _finding(_of(view, terms.representative(made.measures))),
            "undefined": _of(view, made.undefined).to_dict("records"),
        } for view in views],
        questions={facet: QUESTIONS[facet] for facet in results.cells["facet"].cat.categories if facet in QUESTIONS},
        protocols=_protocols(made.protocols),
        failures=made.failures.to_dict("records"),
        not_cells=made.not_cells.to_dict("records"),
        trained=_trained(made.trials),
        provenance=_provenance(results),
    )  # fmt: skip


def _of(view: View, table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["backbone"] == view.backbone) & (table["protocol"] == view.protocol)]


def _table(measures: pd.DataFrame, reference: str) -> dict[str, Any]:
    """Rows of measures, a cell an objective: ``{"objectives": […], "rows": [{"facet", …, "cells": […]}], …}``."""
    objectives = list(dict.fromkeys(measures["objective_label"]))
    most = int(measures["seeds"].max()) if len(measures) else 0
    rows: list[dict[str, Any]] = []
    for (facet, metric, method), measure in measures.groupby(terms.MEASURE, sort=False):
        digits = terms.decimals(measure["mean"])
        cells = {row["objective_label"]: _cell(row, digits, most) for row in terms.records(measure)}
        first = not any(row["facet"] == facet for row in rows)
        rows.append({
            "facet": facet, "metric": metric, "method": method, "first": first,
            "direction": measure["direction"].iloc[0], "arrow": terms.arrow(measure["direction"].iloc[0]),
            "cells": [cells.get(objective) for objective in objectives],
        })  # fmt: skip
    return {"objectives": objectives, "reference": reference, "rows": rows, "wide": len(objectives) > _ACROSS}


def _cell(row: Mapping[str, Any], digits: int, most: int) -> dict[str, Any]:
    compared = not np.isnan(row["difference"])
    difference = f"{row['difference']:+.{digits}f}".replace("-", "−") if compared else ""
    interval = "" if np.isnan(row["low"]) else f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]".replace("-", "−")
    return {
        "number": terms.number(row["mean"], row["spread"], digits),
        "seeds": int(row["seeds"]) if row["seeds"] < most else None,
        "difference": difference, "interval": interval,
        "p": "" if np.isnan(row["p_holm"]) else _p_value(row["p_holm"]), "verdict": row["verdict"],
        "undefined": int(row["undefined"]),
    }  # fmt: skip


def _too_few(seeds: pd.DataFrame, reference: str) -> bool:
    """Whether no objective can be compared at all: fewer than three seeds of the reference or of every other one."""
    trained = seeds.groupby("objective_label")["seed"].nunique()
    others = trained.drop(reference, errors="ignore")
    return min(trained.get(reference, 0), others.max() if len(others) else 0) < statistics.FEWEST_SEEDS


def _finding(measures: pd.DataFrame) -> list[dict[str, Any]]:
    """A line for each objective with a verdict: the facets in which it is better and worse than the reference."""
    lines = []
    for label in dict.fromkeys(measures["objective_label"]):
        own = measures[measures["objective_label"] == label]
        facets = {verdict: list(own.loc[own["verdict"] == verdict, "facet"]) for verdict in ("better", "worse")}
        if any(facets.values()):
            lines.append({"objective": label, **facets})
    return lines


def _protocols(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table a backbone: rows of measures, cells ``corrected → published``."""
    blocks = []
    for backbone, of_backbone in table.groupby("backbone", sort=False):
        objectives = list(dict.fromkeys(of_backbone["objective_label"]))
        rows: list[dict[str, Any]] = []
        for (facet, metric, method), measure in of_backbone.groupby(terms.MEASURE, sort=False):
            digits = terms.decimals(pd.concat([measure["mean_corrected"], measure["mean_published"]]))
            cells = {row["objective_label"]: _change(row, digits) for row in terms.records(measure)}
            headline = not any(row["facet"] == facet for row in rows)
            rows.append({"facet": facet, "metric": metric, "method": method, "headline": headline,
                         "arrow": terms.arrow(measure["direction"].iloc[0]),
                         "cells": [cells.get(objective) for objective in objectives],
                         "same_order": bool(measure["same_order"].iloc[0]),
                         "verdicts": int((measure["verdict_corrected"] != measure["verdict_published"]).sum()),
                         })  # fmt: skip
        blocks.append({"backbone": backbone, "objectives": objectives, "rows": rows})
    return blocks


def _change(row: Mapping[str, Any], digits: int) -> dict[str, str]:
    sides = [terms.number(row[f"mean_{side}"], np.nan, digits) for side in ("corrected", "published")]
    return {"corrected": sides[0], "published": sides[1]}


def _trained(trials: pd.DataFrame) -> dict[str, Any]:
    """What training measured, by objective and backbone: mean ± spread over seeds."""
    measured = [name for name in trials.columns if name.startswith(terms.MEASURED)]
    rows = []
    for (label, backbone), group in trials.groupby(["objective_label", "backbone"], observed=True, sort=False):
        cells = []
        for name in measured:
            values = pd.to_numeric(group[name]).dropna()
            cells.append(terms.number(values.mean(), values.std(), 3) if len(values) else "–")
        seconds = pd.to_numeric(group["training_seconds"]).mean()
        rows.append({"objective": label, "backbone": backbone, "cells": cells, "seconds": f"{seconds:.0f} s"})
    return {"names": [name.removeprefix(terms.MEASURED) for name in measured], "rows": rows}


def _grid(results: Results) -> dict[str, Any]:
    trials = results.trials
    return {
        "objectives": list(trials["objective_label"].cat.categories),
        "backbones": list(trials["backbone"].cat.categories),
        "seeds": sorted(int(seed) for seed in trials["seed"].unique()),
        "methods": list(results.cells["plain_method"].cat.categories),
        "metrics": list(results.cells["plain_metric"].cat.categories),
        "trials": len(results.plan["trials"]),
    }


def _provenance(results: Results) -> list[tuple[str, str]]:
    records = list(results.records.values())
    versions = {f"{name} {version}" for record in records for name, version in record.get("versions", {}).items()}
    dataset = results.plan["dataset"]
    definitions = sorted({version for _, _, version in results.plan["cells"]})
    return [
        ("Dataset", f"{dataset['name']}, fingerprint {dataset['fingerprint']}"),
        ("Software", ", ".join(sorted(versions)) or "not recorded"),
        *_origin(records),
        ("Cells", f"{len(results.cells)} pairs of method and metric, defined in version {', '.join(definitions)}"),
    ]  # fmt: skip


def _origin(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Where the networks come from: their training, or the weights that were given."""
    given = [record["configuration"]["network"] for record in records if "network" in record["configuration"]]
    if given:
        return [("Weights", "; ".join(f"{one['label']}: {one['model']}, SHA-256 {one['weights']}" for one in given))]
    finished = sorted(record["finished"] for record in records if record.get("finished"))
    return [
        ("Trained on", ", ".join(sorted({f"{r['host']} ({r['device']})" for r in records if r.get("host")}))),
        ("Trained between", f"{finished[0]} and {finished[-1]}" if finished else "not recorded"),
    ]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
