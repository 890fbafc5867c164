"""Where the page's numbers come from: the grid, its trials, software, machines, time."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd

from scl_ray.report import terms
from scl_ray.report.terms import MEASURED
from scl_ray.results import Results


def grid(results: Results) -> dict[str, Any]:
    """What the sweep varies and measures."""
    trials = results.trials
    return {
        "objectives": list(trials["objective_label"].cat.categories),
        "backbones": list(trials["backbone"].cat.categories),
        "seeds": sorted(int(seed) for seed in trials["seed"].unique()),
        "methods": list(results.cells["plain_method"].cat.categories),
        "metrics": list(results.cells["plain_metric"].cat.categories),
        "trials": len(results.plan["trials"]),
    }


def trained(trials: pd.DataFrame) -> dict[str, Any]:
    """What training measured, a row a measure and a column an objective and backbone: mean ± spread over seeds.
    Measures that share what stands before a slash are one group."""
    known = list(trials.groupby(["objective_label", "backbone"], observed=True, sort=False))
    several = trials["backbone"].nunique() > 1
    networks = [f"{label} · {backbone}" if several else str(label) for (label, backbone), _ in known]
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(name for name in trials.columns if name.startswith(MEASURED)):
        *group, plain = name.removeprefix(MEASURED).split("/", 1)
        columns = [pd.to_numeric(own[name], errors="coerce").dropna() for _, own in known]
        digits = terms.decimals(pd.concat(columns))
        cells = [terms.number(values.mean(), values.std(), digits) for values in columns]
        groups.setdefault(group[0] if group else "", {})[plain] = cells
    seconds = [pd.to_numeric(own["training_seconds"]).mean() for _, own in known]
    if any(map(pd.notna, seconds)):
        groups.setdefault("", {})["training time"] = [duration(of) for of in seconds]
    return {"networks": networks, "groups": dict(sorted(groups.items()))}


def facts(results: Results) -> list[tuple[str, str]]:
    """Terms and what stands for them."""
    records = list(results.records.values())
    versions = {f"{name} {number}" for record in records for name, number in record.get("versions", {}).items()}
    dataset = results.plan["dataset"]
    definitions = sorted({number for _, _, number in results.plan["cells"]})
    drawn_by = ", ".join(f"{name} {version(name)}" for name in ("scl_ray", "numpy", "scipy", "pandas", "matplotlib"))
    return [
        ("Dataset", f"{dataset['name']}, fingerprint {dataset['fingerprint']}"),
        ("Software", ", ".join(sorted(versions)) or "not recorded"),
        *_origin(records),
        ("Cells", f"{len(results.cells)} pairs of method and metric, defined in version {', '.join(definitions)}"),
        ("This report", drawn_by),
    ]  # fmt: skip


def _origin(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Where the networks come from: their training, or the weights that were given."""
    given = [record["configuration"]["network"] for record in records if "network" in record["configuration"]]
    if given:
        return [("Weights", "; ".join(f"{one['label']}: {one['model']}, SHA-256 {one['weights']}" for one in given))]
    finished = sorted(record["finished"] for record in records if record.get("finished"))
    seconds = [record["seconds"] * record.get("workers", 1) for record in records if record.get("seconds")]
    return [
        ("Trained on", ", ".join(sorted({f"{r['host']} ({r['device']})" for r in records if r.get("host")}))),
        ("Trained between", f"{finished[0]} and {finished[-1]}" if finished else "not recorded"),
        ("Cost of training", f"{duration(sum(seconds))} of slots' time for {len(seconds)} networks"),
    ]


def trials(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a trial: its id and what became of it."""
    shown = ["trial", "objective_label", "backbone", "seed", "status", "epochs", "device", "host", "finished"]
    known = [name for name in shown if name in table]
    rows = []
    for row in terms.records(table):
        cells = {name: "" if pd.isna(row[name]) else str(row[name]) for name in known}
        rows.append({**cells, "time": duration(row["training_seconds"]) if "training_seconds" in row else ""})
    return rows


def configuration(results: Results) -> str:
    """The resolved configuration as YAML; empty where none is stored."""
    return (results.store.read("sweep.yaml") or b"").decode()


def duration(seconds: float) -> str:
    """``21 s``, ``3 min 40 s``, ``2 h 05 min``; a dash where it is not known."""
    if seconds is None or pd.isna(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
