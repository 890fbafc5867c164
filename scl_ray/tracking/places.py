"""Where a sweep's artifacts lie, also when the folder of its database was copied or moved with them."""

import contextlib
import sqlite3

from scl_ray.tracking import connection

FOLDER = "mlartifacts"

_COLUMNS = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}


def location(uri: str, name: str) -> str | None:
    """The URI of the artifacts of the sweep *name*, beside MLflow's SQLite file; None where MLflow itself decides."""
    path = connection.sqlite_path(uri)
    return None if path is None else (path.parent / FOLDER / name).as_uri()


def follow(uri: str, name: str) -> None:
    """Correct the places of artifacts in MLflow's SQLite file where its folder has been copied or moved.

    MLflow writes them down as absolute, so a copy would read, and write, where the original is or was.
    """
    path, here = connection.sqlite_path(uri), location(uri, name)
    if path is None or here is None or not (path.parent / FOLDER / name).is_dir():
        return
    sql = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ? AND artifact_location LIKE ?"
    for experiment, old in connection.query(path, sql, name, f"%/{FOLDER}/{name}"):
        if old == here:
            continue
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            for table, column in _COLUMNS.items():
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE experiment_id = ? AND ({column} = ? OR substr({column}, 1, ?) = ?)",
                    (here, len(old) + 1, experiment, old, len(old) + 1, f"{old}/"),
                )
