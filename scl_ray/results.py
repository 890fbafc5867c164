"""Read a sweep's store: tidy tables of scores, predictions, curves and samples, through DuckDB.

Only what ``plan.json`` covers is read: its trials, its cells in their current versions, its images.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from scl_ray import coverage, specs
from scl_ray.config import Cell, InputError
from scl_ray.store import Store, open_store

Protocol = Literal["corrected", "published"]


@dataclass(frozen=True)
class Results:
    """One sweep, opened for reading.

    ``plan`` is plan.json; ``records`` the trials' records in the plan's order (a trial that has not begun has none);
    ``trials`` one row a trial: objective, objective_label, the objective's parameters, backbone, seed, dataset;
    ``cells`` one row a cell: method, metric, facet, direction, protocol and the two specs without their protocol.
    """

    store: Store
    plan: dict[str, Any]
    records: dict[str, dict[str, Any]]
    trials: pd.DataFrame
    cells: pd.DataFrame
    connection: duckdb.DuckDBPyConnection

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """SQL over ``trials``, ``cells``, ``predictions`` (by trial and protocol) and ``scored`` (`load`'s rows)."""
        return self.connection.execute(sql, list(parameters)).df()


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
    rows: list[tuple[object, ...]] = []
    for trial in plan["trials"]:
        record = records.get(trial)
        if record is None or record["status"] != "trained":
            rows.append((trial, record["label"] if record else trial, "training", None, None, None, None))
        else:
            lacks = coverage.unscored(store, plan, trial, record["readouts"])
            rows += [(trial, record["label"], "scores", *cell, first, last) for cell, first, last in lacks]
    table = pd.DataFrame(rows, columns=["trial", "label", "what", "method", "metric", "first", "last"])
    return table.astype({"first": "Int64", "last": "Int64"})


def trial_means(out: str | Results, name: str = "", *, images: Literal["own", "common"] = "own") -> pd.DataFrame:
    """The mean of every metric over the correctly classified images of each trial.

    *images* ``own``: those that the trial itself classifies correctly; ``common``: those that all trials of the same
    backbone and protocol do. Columns: trial, protocol, method, metric, facet, direction, mean (missing where no value
    is defined), images (with a defined value), undefined (images without one).
    """
    results = out if isinstance(out, Results) else open_results(out, name)
    wanted = {
        "own": "WHERE correct",
        "common": "JOIN trials USING (trial) JOIN common USING (backbone, protocol, image)",
    }
    return results.query(f"""
        SELECT trial, protocol, method, metric, facet, direction,
               favg(value) AS mean, count(value) AS images, count(*) - count(value) AS undefined
        FROM scored {wanted[images]}
        GROUP BY ALL ORDER BY trial, protocol, method, metric""")


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
    data = results.store.read("samples/images.parquet")
    if data is None:
        return {}
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
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
    tables = coverage.rows(results.store, results.plan, "curves", results.records, coverage.CURVES)
    if not tables:
        return pd.DataFrame(columns=list(coverage.CURVES))
    keys = ["trial", "image", "method", "metric", "step"]
    return pa.concat_tables(tables).to_pandas().drop_duplicates(keys).sort_values(keys, ignore_index=True)


def open_results(out: str, name: str) -> Results:
    """Open the sweep *name* below *out* (a folder or an fsspec URI). Raises InputError where there is none."""
    store, plan, records = _read(out, name)
    trials = _configurations(records, plan["trials"])
    cells = _cells(plan)
    connection = duckdb.connect()
    results = Results(store, plan, records, trials, cells, connection)
    for column, table in (("trial", trials), ("method", cells), ("metric", cells), ("protocol", cells)):
        names = ", ".join(map(_quoted, table[column].cat.categories))
        connection.execute(f"CREATE TYPE {column}_name AS ENUM ({names})")
    connection.register("trial_rows", trials)
    connection.register("cell_rows", cells)
    connection.execute(_views(results))
    return results


def plain(spec: str) -> str:
    """The spec without its protocol: ``eigen_cam[protocol=published]`` to ``eigen_cam``."""
    name, parameters = specs.parse(spec)
    return specs.canonical(name, {k: v for k, v in parameters.items() if k != "protocol"}, {})


def _read(out: str, name: str) -> tuple[Store, dict[str, Any], dict[str, dict[str, Any]]]:
    """The sweep's store, its plan and the records of its trials, in the plan's order."""
    store = open_store(out, name)
    plan = _json(store, "plan.json")
    if plan is None:
        raise InputError(
            f"{store.root}: holds no sweep (plan.json is missing); give --out and --name of a finished run"
        )
    found = {trial: _json(store, f"trials/{trial}.json") for trial in plan["trials"]}
    return store, plan, {trial: record for trial, record in found.items() if record is not None}


def _json(store: Store, path: str) -> dict[str, Any] | None:
    try:
        return store.read_json(path)
    except ValueError as error:
        raise InputError(f"{store.path(path)}: is not JSON ({error}); remove it and run the sweep again") from error


def _views(results: Results) -> str:
    """SQL for the tables and views that `Results.query` names."""
    return f"""
    CREATE TABLE trials AS SELECT * REPLACE (trial::trial_name AS trial) FROM trial_rows;
    CREATE TABLE cells AS SELECT * REPLACE
        (method::method_name AS method, metric::metric_name AS metric, protocol::protocol_name AS protocol)
        FROM cell_rows;
    CREATE VIEW scores AS {_scores(results)};
    CREATE TABLE predictions AS
        SELECT trial::trial_name AS trial, protocol::protocol_name AS protocol, image, label, prediction, confidence,
               prediction = label AS correct
        FROM ({_predictions(results)});
    CREATE VIEW scored AS
        SELECT s.trial, s.image, s.method, s.metric, facet, direction, protocol, value, label, prediction, confidence,
               correct
        FROM scores s JOIN cells USING (method, metric) JOIN predictions USING (trial, protocol, image);
    CREATE VIEW compared AS
        SELECT backbone, protocol, image, bool_and(correct) AS correct, any_value(trials) AS trials
        FROM predictions JOIN trials USING (trial)
        JOIN (SELECT backbone, protocol, count(DISTINCT trial) AS trials
              FROM predictions JOIN trials USING (trial) GROUP BY ALL) USING (backbone, protocol)
        GROUP BY ALL HAVING count(*) = any_value(trials);
    CREATE VIEW common AS SELECT backbone, protocol, image FROM compared WHERE correct;"""


def _scores(results: Results) -> str:
    """SQL that selects each row the plan covers, once."""
    store, plan = results.store, results.plan
    parts = coverage.parts(store, plan, "scores", results.records)
    groups = [(coverage.cells(store, plan, group[0]), group) for group in parts.values()]
    selects = []
    for number, (cells, group) in enumerate(groups):
        if cells:
            results.connection.register(f"scores_{number}", coverage.dataset(store, group, coverage.SCORES))
            pairs = ", ".join(f"({_quoted(method)}, {_quoted(metric)})" for method, metric in cells)
            selects.append(
                "SELECT trial::trial_name AS trial, image, method::method_name AS method, "
                f"metric::metric_name AS metric, value FROM scores_{number} WHERE (method, metric) IN ({pairs})"
            )
    if not selects:
        return ("SELECT NULL::trial_name AS trial, NULL::INT AS image, NULL::method_name AS method, "
                "NULL::metric_name AS metric, NULL::FLOAT AS value WHERE false")  # fmt: skip
    rows = " UNION ALL ".join(selects)
    if coverage.repeated(groups):
        return f"SELECT trial, image, method, metric, min(value) AS value FROM ({rows}) GROUP BY ALL"
    return rows


def _predictions(results: Results) -> str:
    """SQL that selects each trial's predictions by the read-out of each protocol, on the plan's images."""
    explained = [
        {"trial": trial, "protocol": protocol, "readout": record["readouts"][protocol]}
        for trial, record in results.records.items()
        for protocol in results.plan["protocols"]
        if protocol in record.get("readouts", {})
    ]
    columns = ["trial", "protocol", "readout"]
    results.connection.register("explained", pd.DataFrame(explained, columns=columns).astype("str"))
    parts = coverage.parts(results.store, results.plan, "predictions", results.records)
    beyond = coverage.images_beyond(results.store, results.plan, parts)
    results.connection.register("left_out", pd.DataFrame({"image": beyond}, dtype="int32"))
    selects = []
    for number, (readout, group) in enumerate(parts.items()):
        part_rows = coverage.dataset(results.store, group, coverage.PREDICTIONS)
        results.connection.register(f"predictions_{number}", part_rows)
        selects.append(
            f"SELECT * FROM predictions_{number} JOIN explained USING (trial) WHERE readout = {_quoted(readout)} "
            "AND image NOT IN (SELECT image FROM left_out)"
        )
    empty = ("SELECT ''::VARCHAR AS trial, '' AS protocol, 0::INT AS image, 0::INT AS label, 0::INT AS prediction, "
             "0::FLOAT AS confidence WHERE false")  # fmt: skip
    return " UNION ALL BY NAME ".join([*selects, empty])


def _configurations(records: Mapping[str, Mapping[str, Any]], trials: Sequence[str]) -> pd.DataFrame:
    """One row a trial, names as categories in the order of the configuration."""
    rows = []
    for trial, record in records.items():
        configuration = record["configuration"]
        objective = dict(configuration["objective"])
        row = {"trial": trial, "objective": objective.pop("name"), "objective_label": record["objective_label"],
               "backbone": configuration["backbone"], "seed": configuration["seed"],
               "dataset": configuration["dataset"]["name"]}  # fmt: skip
        parameters = objective.pop("parameters", {}) | {k: v for k, v in objective.items() if k not in _NOT_PARAMETERS}
        for key, value in parameters.items():
            scalar = value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value)
            row[f"objective_{key}" if key in _RESERVED else key] = scalar
        rows.append(row)
    fixed = ["trial", "objective", "objective_label", "backbone", "seed", "dataset"]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*fixed, *(key for row in rows for key in row)])))
    table["objective_label"] = _told_apart(table, records)
    for column in table.columns:
        if column == "trial":
            table[column] = pd.Categorical(table[column], categories=list(trials))
        elif column in fixed[1:4] or column == "dataset" or table[column].dtype.kind not in "biuf":
            known = [value for value in dict.fromkeys(table[column]) if not pd.isna(value)]
            table[column] = pd.Categorical(table[column], categories=known)
    return table


_NOT_PARAMETERS = ("training", "views")
_RESERVED = {"trial", "objective", "objective_label", "backbone", "seed", "dataset", "image", "method", "metric",
             "facet", "direction", "protocol", "value", "label", "prediction", "confidence", "correct"}  # fmt: skip


def _told_apart(table: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Objective labels; where two recipes share one, the training settings that differ are added to it."""
    recipes = {trial: record["configuration"].get("training", {}) for trial, record in records.items()}
    labels = []
    for trial, label in zip(table["trial"], table["objective_label"], strict=True):
        same = [recipes[other] for other in table.loc[table["objective_label"] == label, "trial"]]
        differing = sorted(key for key in recipes[trial] if any(r.get(key) != recipes[trial][key] for r in same))
        labels.append(" ".join([label, *(f"{key}={recipes[trial][key]}" for key in differing)]))
    return labels


def _cells(plan: Mapping[str, Any]) -> pd.DataFrame:
    """One row a cell of the plan."""
    rows = []
    for method, metric, _ in plan["cells"]:
        # The plan says how to read a metric, so no module of the user's is needed here.
        reading, protocol = plan["metrics"][metric], coverage.protocol_of(Cell(method, metric))
        rows.append((method, metric, reading["facet"], reading["direction"], protocol, plain(method), plain(metric)))
    names = ["method", "metric", "facet", "direction", "protocol", "plain_method", "plain_metric"]
    table = pd.DataFrame(rows, columns=names)
    for name in names:
        known = ["corrected", "published"] if name == "protocol" else list(dict.fromkeys(table[name]))
        table[name] = pd.Categorical(table[name], categories=known)
    return table


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
