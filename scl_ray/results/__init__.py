"""Read a sweep's store: tidy tables of scores, predictions, curves and samples, through DuckDB.

Only what ``plan.json`` covers is read: its trials, its cells in their current versions, its images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from scl_ray import coverage
from scl_ray.config import InputError
from scl_ray.results import means, tables
from scl_ray.results.tables import plain
from scl_ray.store import Store, open_store

__all__ = [
    "Results", "accuracies", "common_images", "curves", "load", "maps", "missing", "open_results", "plain",
    "sample_images", "trial_means",
]  # fmt: skip

Protocol = Literal["corrected", "published"]
Images = Literal["own", "common"]


@dataclass(frozen=True)
class Results:
    """One sweep, opened for reading.

    ``name`` is the sweep's; ``plan`` is plan.json; ``records`` the trials' records in the plan's order (a trial that
    has not begun has none); ``trials`` one row a trial: objective, objective_label, the objective's parameters,
    backbone, seed, dataset; ``cells`` one row a cell: method, metric, facet, direction, protocol and the two specs
    without their protocol.
    """

    name: str
    store: Store
    plan: dict[str, Any]
    records: dict[str, dict[str, Any]]
    trials: pd.DataFrame
    cells: pd.DataFrame
    _means: dict[Images, pd.DataFrame] = field(default_factory=dict, repr=False)

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The tables that `query` names, made when they are first asked for."""
        with coverage.damage_named(self.store, self.plan):
            return tables.connect(self.store, self.plan, self.records, self.trials, self.cells)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """SQL over the sweep's tables, each with the column ``trial``:

        ``trials``: a row a trial, its configuration. ``measures``: measure, value: what its record holds of the
        network itself, such as ``accuracy/knn``. ``scores``: image, method, metric, value. ``predictions``: protocol,
        image, label, prediction, confidence, correct. ``scored``: both of these and the cell's facet and direction.
        And ``cells``, a row a method and metric.
        """
        connection = self.connection
        with coverage.damage_named(self.store, self.plan):
            return connection.execute(sql, list(parameters)).df()

    def means(self, *images: Images) -> list[pd.DataFrame]:
        """`trial_means` over each of these kinds of *images*; those that were not asked for before are of one reading
        of every score."""
        unknown = [kind for kind in dict.fromkeys(images) if kind not in self._means]
        if unknown:
            selections = [self.query("FROM common") if kind == "common" else None for kind in unknown]
            self._means.update(zip(unknown, means.of_trials(self, selections), strict=True))
        return [self._means[kind].copy() for kind in images]


def load(out: str, name: str, *, protocol: Protocol | None = None) -> pd.DataFrame:
    """Every score of the sweep *name* below *out*, one row per trial, image, method and metric.

    Columns: the trial and its configuration (objective, objective_label, the objective's parameters, backbone, seed,
    dataset), image, method, metric, facet, direction (the better one: ``lower`` or ``higher``), protocol, value
    (missing where undefined), label, prediction, confidence, correct. Names are categories in the order of the
    configuration. An image whose prediction is not stored yet has no row. *protocol* keeps the rows of one protocol.

    Raises InputError where no sweep of that name is.
    """
    return open_results(out, name).query(
        "SELECT t.*, s.* EXCLUDE (trial) FROM scored s JOIN trials t USING (trial) "
        f"{'WHERE protocol = $1' if protocol else ''} ORDER BY trial, method, metric, image",
        [protocol] if protocol else [],
    )


def missing(out: str | Results, name: str = "") -> pd.DataFrame:
    """What the sweep still lacks: one row per trial, cell and range of ranks; none when the sweep is complete.

    Columns: trial, label (the trial itself where it has no record), what: ``training`` where the trial is not trained,
    else ``scores``: rows that `load` does not give; method, metric, first and last: the cell and the inclusive ranks
    in the order of the evaluation (missing for training). Only plan.json, the records and the parts' names and footers
    are read. Raises InputError where no sweep of that name is.
    """
    store, plan, records = (out.store, out.plan, out.records) if isinstance(out, Results) else _read(out, name)
    scores, predictions = (store.parts_by_trial(kind, plan["trials"]) for kind in ("scores", "predictions"))
    rows: list[tuple[object, ...]] = []
    for trial in plan["trials"]:
        record = records.get(trial)
        if record is None or record["status"] != "trained":
            rows.append((trial, record["label"] if record else trial, "training", None, None, None, None))
        else:
            lacks = coverage.unscored(store, plan, scores[trial], predictions[trial], record["readouts"])
            rows += [(trial, record["label"], "scores", *cell, first, last) for cell, first, last in lacks]
    table = pd.DataFrame(rows, columns=["trial", "label", "what", "method", "metric", "first", "last"])
    return table.astype({"first": "Int64", "last": "Int64"})


def trial_means(out: str | Results, name: str = "", *, images: Images = "own") -> pd.DataFrame:
    """The mean of every metric over the correctly classified images of each trial.

    *images* ``own``: those that the trial itself classifies correctly; ``common``: those that all trials of the same
    backbone and protocol do. Columns: trial, protocol, method, metric, facet, direction, mean (missing where no value
    is defined), images (with a defined value), undefined (images without one).
    """
    results = out if isinstance(out, Results) else open_results(out, name)
    (found,) = results.means(images)
    return found


def accuracies(results: Results) -> pd.DataFrame:
    """Per trial and protocol: ``accuracy`` in [0, 1] of the read-out that is explained, on how many ``images``."""
    return results.query("""
        SELECT trial, protocol, favg(correct::INT) AS accuracy, count(*) AS images
        FROM predictions GROUP BY ALL ORDER BY trial, protocol""")


def common_images(results: Results) -> pd.DataFrame:
    """Per backbone and protocol: how many images all ``trials`` classify correctly (``common``), of how many that all
    of them have evaluated (``evaluated``)."""
    return results.query("""
        SELECT backbone, protocol, any_value(trials) AS trials, count(*) AS evaluated,
               count(*) FILTER (correct) AS common
        FROM compared GROUP BY ALL ORDER BY ALL""")


def sample_images(results: Results) -> dict[int, tuple[int, np.ndarray]]:
    """The sample: image index -> (label, pixels (C,H,W) uint8), in the order of the evaluation."""
    try:
        rows = results.store.read_table(results.store.path("samples/images.parquet")).to_pylist()
    except FileNotFoundError:
        return {}
    return {
        row["image"]: (
            row["label"],
            np.array(row["pixels"], np.uint8).reshape(row["channels"], row["height"], row["width"]),
        )
        for row in rows
    }


def maps(results: Results, trial: str, images: Iterable[int]) -> dict[tuple[int, str], np.ndarray]:
    """The attribution maps of one trial: (image, method) -> (H,W) float32, nan where float16 could not hold it."""
    found: dict[tuple[int, str], np.ndarray] = {}
    for table in coverage.rows(
        results.store, results.plan, "samples", [trial], coverage.MAPS, ds.field("image").isin(list(images))
    ):
        for row in table.to_pylist():
            pixels = np.array(row["map"], np.float32).reshape(row["height"], row["width"])
            found[row["image"], row["method"]] = pixels
    return found


def curves(results: Results) -> pd.DataFrame:
    """The curve metrics on the sample images: trial, image, method, metric, step, value."""
    images = results.query("SELECT DISTINCT image FROM predictions")["image"]  # parts may hold more than the plan wants
    parts = coverage.rows(
        results.store, results.plan, "curves", results.records, coverage.CURVES, ds.field("image").isin(images.tolist())
    )
    if not parts:
        return pd.DataFrame(columns=list(coverage.CURVES))
    keys = ["trial", "image", "method", "metric", "step"]
    return pa.concat_tables(parts).to_pandas().drop_duplicates(keys).sort_values(keys, ignore_index=True)


def open_results(out: str, name: str) -> Results:
    """Open the sweep *name* below *out* (a folder or an fsspec URI). Raises InputError where there is none."""
    store, plan, records = _read(out, name)
    trials, cells = tables.of_trials(records, plan["trials"]), tables.of_cells(plan)
    return Results(name, store, plan, records, trials, cells)


def _read(out: str, name: str) -> tuple[Store, dict[str, Any], dict[str, dict[str, Any]]]:
    """The sweep's store, its plan and the records of its trials, in the plan's order."""
    store = open_store(out, name)
    plan = store.read_json("plan.json")
    if plan is None:
        raise InputError(
            f"{store.name}: holds no sweep (plan.json is missing); give --out and --name of a finished run"
        )
    return store, plan, store.records(plan["trials"])
