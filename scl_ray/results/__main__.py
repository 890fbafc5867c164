"""``python -m scl_ray.results "SELECT …" --out runs --name demo``: SQL over a sweep's tables, from its store alone."""

import argparse
import os
import sys
from collections.abc import Sequence

import duckdb
import pandas as pd

from scl_ray import storage
from scl_ray.config import InputError
from scl_ray.results import Results, open_results

ROWS = 40  # of a longer table the first and last are printed


def main(command_line: Sequence[str] | None = None) -> int:
    """Print what the SQL selects. Exit codes: 0 done, 1 the storage is away, 2 bad input, such as SQL that is none."""
    parser = argparse.ArgumentParser(
        prog="python -m scl_ray.results",
        description="SQL (DuckDB's) over a sweep's tables: trials, measures, scores, predictions, scored, cells.",
    )
    parser.add_argument("sql", help="for example: SELECT metric, avg(value) FROM scores GROUP BY metric")
    parser.add_argument("--out", default="runs", help="folder or fsspec URI that holds the sweep (default: runs)")
    parser.add_argument("--name", default="demo", help="the sweep's name (default: demo)")
    parser.add_argument("--csv", action="store_true", help=f"every row as CSV; else at most {ROWS} in a table")
    arguments = parser.parse_args(command_line)
    try:
        _print(_selected(open_results(arguments.out, arguments.name), arguments.sql), arguments.csv)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"failed: {storage.told(error)}", file=sys.stderr)
        return 1
    return 0


def _selected(results: Results, sql: str) -> pd.DataFrame:
    """The rows. Raises InputError for bad SQL."""
    if not sql.strip():
        raise InputError("SQL: is empty; give a statement such as 'FROM trials'")
    try:
        return results.query(sql)
    except duckdb.Error as error:
        # The rest of the message points into the text of the query, line by line.
        raise InputError(f"SQL: {str(error).strip().splitlines()[0]}") from error


def _print(rows: pd.DataFrame, as_csv: bool) -> None:
    if as_csv:
        rows.to_csv(sys.stdout, index=False, lineterminator="\n")
    elif rows.empty:
        print(f"no rows of {', '.join(rows.columns)}")
    else:
        print(rows.to_string(index=False, na_rep="", max_rows=ROWS, show_dimensions=len(rows) > ROWS))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
