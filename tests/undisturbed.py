"""Compares a sweep that was disturbed with one that was not: row for row and record for record."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from safetensors.numpy import load_file

KEYS = {
    "scores": ["trial", "image", "method", "metric"],
    "predictions": ["trial", "image", "readout"],
    "curves": ["trial", "image", "method", "metric", "step"],
    "samples": ["trial", "image", "method"],
}
# Metrics that rank pixels may take another order where two values are equal but for rounding.
RANKING = ("pixel_flipping_auc",)
SAME = 1e-5  # what DESIGN.md allows shard size, order, retry and number of workers to change
TIMES = {"seconds", "images_per_second", "finished", "host", "node"}


def assert_same(out: Path, undisturbed: Path, name: str = "faults", trials: set[str] | None = None) -> None:
    """Every score, prediction, curve and map, every network and every trial's record below *out* is the one below
    *undisturbed*: none is missing, none there twice, none different. *trials*: only these are compared."""
    ours, theirs = out / name, undisturbed / name
    for kind, keys in KEYS.items():
        found, wanted = _rows(ours, kind, trials), _rows(theirs, kind, trials)
        assert not found.duplicated(keys).any(), f"{kind}: rows that are there twice"
        both = wanted.merge(found, on=keys, how="outer", suffixes=("", "_found"), indicator="side")
        assert (both["side"] == "both").all(), f"{kind}: {both['side'].value_counts().to_dict()}"
        assert len(wanted), f"{kind}: nothing is compared"
        _assert_equal(kind, both)
    found, wanted = _records(ours, trials), _records(theirs, trials)
    assert found.keys() == wanted.keys()
    for trial, record in wanted.items():
        assert found[trial] == record, f"the records of {trial} differ"
        weights = [load_file(root / f"checkpoints/{trial}/weights.safetensors") for root in (ours, theirs)]
        assert weights[0].keys() == weights[1].keys()
        assert all((weights[0][key] == weights[1][key]).all() for key in weights[0]), f"the networks of {trial} differ"
    assert not list(ours.rglob("resume.pt"))
    assert not list(ours.rglob(".*.partial"))


def _assert_equal(kind: str, both: pd.DataFrame) -> None:
    if kind == "samples":
        assert all((ours == theirs).all() for ours, theirs in zip(both["map"], both["map_found"], strict=True))
        return
    if kind == "predictions":
        assert (both["label"] == both["label_found"]).all()
        assert (both["prediction"] == both["prediction_found"]).all()
        assert ((both["confidence"] - both["confidence_found"]).abs() <= SAME).all()
        return
    assert (both["value"].isna() == both["value_found"].isna()).all(), f"{kind}: undefined in one of them alone"
    differs = (both["value"] - both["value_found"]).abs() > SAME
    for metric, rows in differs.groupby(both["metric"]):
        allowed = 0.01 if str(metric).startswith(RANKING) else 0.0
        assert rows.mean() <= allowed, f"{kind}: {rows.sum()} of {len(rows)} values of {metric} differ"


def _rows(root: Path, kind: str, trials: set[str] | None) -> pd.DataFrame:
    tables = []
    for path in sorted((root / kind).glob("*/*.parquet")):
        if trials is None or path.parent.name in trials:
            table = pq.ParquetFile(path).read().to_pandas()
            table["readout"] = path.name.split("-")[0] if kind == "predictions" else ""
            tables.append(table.astype({column: str for column in ("method", "metric") if column in table}))
    return pd.concat(tables, ignore_index=True)


def _records(root: Path, trials: set[str] | None) -> dict[str, Any]:
    records = {path.stem: json.loads(path.read_text()) for path in (root / "trials").glob("*.json")}
    return {trial: _timeless(record) for trial, record in records.items() if trials is None or trial in trials}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
