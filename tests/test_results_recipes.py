"""The README's recipes: what reads Parquet reads a sweep's scores without this package, and finds the same means."""

import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from report import known_sweep as known

from scl_ray import results

RECIPES = {
    library: recipe
    for recipe in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for library in ("duckdb", "polars", "pandas")
    if f"import {library}" in recipe
}

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
    found = run(RECIPES[library])
    wanted = results.load("runs", "demo").groupby(KEYS, observed=True)["value"].mean().reset_index()
    both = [table.astype(dict.fromkeys(KEYS, str)).set_index(KEYS)["value"].sort_index() for table in (found, wanted)]
    # Means of float32, which each library adds up in an order of its own.
    pd.testing.assert_series_equal(*both, check_dtype=False, rtol=1e-5)
