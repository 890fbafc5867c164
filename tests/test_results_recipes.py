"""The README's recipes: what reads Parquet reads a sweep's scores without this package, and finds the same means."""

from pathlib import Path

import pandas as pd
import pytest
from report import known_sweep as known

from scl_ray import results

DUCKDB = """
import duckdb

means = duckdb.sql(\"\"\"
    SELECT objective_label, method, metric, avg(value) AS value
    FROM 'runs/demo/scores/**/*.parquet'
    JOIN read_json('runs/demo/trials/*.json', columns = {trial: 'VARCHAR', objective_label: 'VARCHAR'}) USING (trial)
    GROUP BY ALL
\"\"\")
"""

POLARS = """
from pathlib import Path
import polars as pl

records = Path("runs/demo/trials").glob("*.json")
trials = pl.concat([pl.read_json(record).select("trial", "objective_label") for record in records])
scores = pl.scan_parquet("runs/demo/scores/**/*.parquet").join(trials.lazy(), on="trial")
means = scores.group_by("objective_label", "method", "metric").agg(pl.col("value").mean()).collect()
"""

PANDAS = """
import json
from pathlib import Path
import pandas as pd

records = [json.loads(record.read_text()) for record in Path("runs/demo/trials").glob("*.json")]
trials = pd.DataFrame(records)[["trial", "objective_label"]]
scores = pd.read_parquet("runs/demo/scores").merge(trials, on="trial")
means = scores.groupby(["objective_label", "method", "metric"], observed=True)["value"].mean()
"""

KEYS = ["objective_label", "method", "metric"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    known.write(folder / "runs")
    return folder


def run(recipe: str) -> pd.DataFrame:
    names: dict[str, object] = {}
    exec(recipe, names)
    means = names["means"]
    if isinstance(means, pd.Series):
        return means.reset_index()
    table = means.df() if hasattr(means, "df") else pd.DataFrame(means.to_dicts())  # type: ignore[attr-defined]
    assert isinstance(table, pd.DataFrame)
    return table


@pytest.mark.parametrize("library", ["duckdb", "polars", "pandas"])
def test_every_reader_finds_the_same_means(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(folder)
    found = run({"duckdb": DUCKDB, "polars": POLARS, "pandas": PANDAS}[library])
    wanted = results.load("runs", "demo").groupby(KEYS, observed=True)["value"].mean().reset_index()
    both = [table.astype(dict.fromkeys(KEYS, str)).set_index(KEYS)["value"].sort_index() for table in (found, wanted)]
    # Means of float32, which each library adds up in an order of its own.
    pd.testing.assert_series_equal(*both, check_dtype=False, rtol=1e-5)
