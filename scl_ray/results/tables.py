"""What DuckDB is given of a sweep: one table a kind of fact, of what the plan covers."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pandas as pd

from scl_ray import coverage, specs
from scl_ray.config import Cell
from scl_ray.store import Store

Records = Mapping[str, Mapping[str, Any]]

_NOT_PARAMETERS = ("training", "views")
_RESERVED = {"trial", "objective", "objective_label", "backbone", "seed", "dataset", "image", "method", "metric",
             "facet", "direction", "protocol", "value", "label", "prediction", "confidence", "correct",
             "status", "epochs", "training_seconds", "device", "host", "finished"}  # fmt: skip


def connect(
    store: Store, plan: Mapping[str, Any], records: Records, trials: pd.DataFrame, cells: pd.DataFrame
) -> duckdb.DuckDBPyConnection:
    """A database in memory, whose tables `scl_ray.results.Results.query` names."""
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")  # which it would draw into whatever is printed
    for column, table in (("trial", trials), ("method", cells), ("metric", cells), ("protocol", cells)):
        names = ", ".join(map(_quoted, table[column].cat.categories))
        connection.execute(f"CREATE TYPE {column}_name AS ENUM ({names})")
    connection.register("trial_rows", trials)
    connection.register("cell_rows", cells)
    connection.register("measure_rows", _measures(records))
    connection.execute(
        _views(_scores(connection, store, plan, records), _predictions(connection, store, plan, records))
    )
    return connection


def of_trials(records: Records, trials: Sequence[str]) -> pd.DataFrame:
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


def of_cells(plan: Mapping[str, Any]) -> pd.DataFrame:
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


def plain(spec: str) -> str:
    """The spec without its protocol: ``eigen_cam[protocol=published]`` to ``eigen_cam``."""
    name, parameters = specs.parse(spec)
    return specs.canonical(name, {k: v for k, v in parameters.items() if k != "protocol"}, {})


def _views(scores: str, predictions: str) -> str:
    """SQL for the tables and views, from what selects the rows of two of them."""
    return f"""
    CREATE TABLE trials AS SELECT * REPLACE (trial::trial_name AS trial) FROM trial_rows;
    CREATE TABLE cells AS SELECT * REPLACE
        (method::method_name AS method, metric::metric_name AS metric, protocol::protocol_name AS protocol)
        FROM cell_rows;
    CREATE TABLE measures AS SELECT trial::trial_name AS trial, measure, value FROM measure_rows;
    CREATE TABLE predictions AS
        SELECT trial::trial_name AS trial, protocol::protocol_name AS protocol, image, label, prediction, confidence,
               prediction = label AS correct
        FROM ({predictions});
    CREATE VIEW scores AS {scores};
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


def _scores(
    connection: duckdb.DuckDBPyConnection, store: Store, plan: Mapping[str, Any], records: Records
) -> str:  # fmt: skip
    """SQL that selects each row the plan covers, once."""
    parts = coverage.parts(store, plan, "scores", records)
    groups = [(coverage.cells(store, plan, group[0]), group) for group in parts.values()]
    selects = []
    for number, (cells, group) in enumerate(groups):
        if cells:
            connection.register(f"scores_{number}", coverage.dataset(store, group, coverage.SCORES))
            pairs = ", ".join(f"({_quoted(method)}, {_quoted(metric)})" for method, metric in cells)
            selects.append(
                "SELECT trial::trial_name AS trial, image, method::method_name AS method, "
                f"metric::metric_name AS metric, value FROM scores_{number} WHERE (method, metric) IN ({pairs})"
            )
    if not selects:
        return ("SELECT NULL::trial_name AS trial, NULL::INT AS image, NULL::method_name AS method, "
                "NULL::metric_name AS metric, NULL::FLOAT AS value WHERE false")  # fmt: skip
    rows = " UNION ALL ".join(selects)
    if any(part.last >= plan["images"] for group in parts.values() for part in group):
        rows = f"SELECT * FROM ({rows}) WHERE image IN (SELECT image FROM predictions)"  # which end where the plan does
    if coverage.repeated(groups):
        return f"SELECT trial, image, method, metric, min(value) AS value FROM ({rows}) GROUP BY ALL"
    return rows


def _predictions(
    connection: duckdb.DuckDBPyConnection, store: Store, plan: Mapping[str, Any], records: Records
) -> str:  # fmt: skip
    """SQL that selects each trial's predictions by the read-out of each protocol, on the plan's images, each once."""
    explained = [
        {"trial": trial, "protocol": protocol, "readout": record["readouts"][protocol]}
        for trial, record in records.items()
        for protocol in plan["protocols"]
        if protocol in record.get("readouts", {})
    ]
    columns = ["trial", "protocol", "readout"]
    connection.register("explained", pd.DataFrame(explained, columns=columns).astype("str"))
    parts = coverage.parts(store, plan, "predictions", records)
    beyond = coverage.images_beyond(store, plan, parts)
    connection.register("left_out", pd.DataFrame({"image": beyond}, dtype="int32"))
    selects = []
    for number, (readout, group) in enumerate(parts.items()):
        part_rows = coverage.dataset(store, group, coverage.PREDICTIONS)
        connection.register(f"predictions_{number}", part_rows)
        selects.append(
            f"SELECT * FROM predictions_{number} JOIN explained USING (trial) WHERE readout = {_quoted(readout)} "
            "AND image NOT IN (SELECT image FROM left_out)"
        )
    empty = ("SELECT ''::VARCHAR AS trial, '' AS protocol, 0::INT AS image, 0::INT AS label, 0::INT AS prediction, "
             "0::FLOAT AS confidence WHERE false")  # fmt: skip
    rows = " UNION ALL BY NAME ".join([*selects, empty])
    if coverage.repeated(([readout], group) for readout, group in parts.items()):
        return ("SELECT trial, protocol, image, min(label) AS label, min(prediction) AS prediction, "
                f"min(confidence) AS confidence FROM ({rows}) GROUP BY ALL")  # fmt: skip
    return rows


def _measures(records: Records) -> pd.DataFrame:
    """One row a trial and number of its record."""
    rows = [(trial, measure, value) for trial, record in records.items()
            for measure, value in record.get("metrics", {}).items()]  # fmt: skip
    table = pd.DataFrame(rows, columns=["trial", "measure", "value"])
    return table.astype({"trial": "str", "measure": "str", "value": "float64"})


def _told_apart(table: pd.DataFrame, records: Records) -> list[str]:
    """Objective labels; where two recipes share one, the training settings that differ are added to it."""
    recipes = [records[trial]["configuration"].get("training", {}) for trial in table["trial"]]
    sharing: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for label, recipe in zip(table["objective_label"], recipes, strict=True):
        sharing[label].append(recipe)
    differing = {label: _differing(alike) for label, alike in sharing.items()}
    return [
        " ".join([label, *(f"{key}={recipe[key]}" for key in differing[label] if key in recipe)])
        for label, recipe in zip(table["objective_label"], recipes, strict=True)
    ]


def _differing(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all *recipes*."""
    keys = set().union(*recipes)
    return sorted(key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
