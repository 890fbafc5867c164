"""Files that certify themselves, and files of a newer version."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import small

from scl_ray import report, results, sealing
from scl_ray.report.__main__ import main as report_main
from scl_ray.results.__main__ import main as results_main
from scl_ray.store import SCHEMA

TABLE = pa.table({"image": pa.array(range(100), pa.int32()), "value": pa.array([0.5] * 100, pa.float32())})


def test_a_sealed_table_is_read_by_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(sealing.to_parquet(TABLE, {"schema": 2, "trial": "t1"}))
    assert pq.read_table(path).equals(TABLE)
    with path.open("rb") as file:
        assert sealing.problem(file) is None
        about = sealing.footer(file)
    assert about is not None
    assert about["trial"] == "t1"
    assert len(about["checksum"]) == 64


def test_a_column_that_looks_like_a_seal_is_none() -> None:
    """What a user's own module is called comes before the footer's own words."""
    rows = TABLE.append_column("method", pa.array(['"checksum": "' + "0" * 64 + '"'] * 100).dictionary_encode())
    whole = sealing.to_parquet(rows, {"schema": 2})
    assert sealing.problem(io.BytesIO(whole)) is None
    assert sealing.problem(io.BytesIO(whole.replace(b"image", b"imbge")))


def test_the_same_table_gives_the_same_bytes() -> None:
    assert sealing.to_parquet(TABLE, {"schema": 2}) == sealing.to_parquet(TABLE, {"schema": 2})


def test_what_a_newer_version_wrote_is_refused_by_every_command(
    tmp_path: Path, run: object, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/plan.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    place = ["--out", str(tmp_path), "--name", "demo"]
    said = f"demo/plan.json: was written by a newer scl_ray (schema {SCHEMA + 1}, this one reads up to {SCHEMA})"
    for arguments in ([], ["--dry-run"]):
        done = run(*small(), *place, *arguments)
        assert done.code == 2
        assert said in done.error
        assert "upgrade scl_ray" in done.error
    for command in (report_main, lambda arguments: results_main(["FROM trials", *arguments])):
        capfd.readouterr()
        assert command(place) == 2
        assert said in capfd.readouterr().err
    for reader in (results.load, report.build):
        with pytest.raises(ValueError, match="upgrade scl_ray"):
            reader(str(tmp_path), "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir() if not path.name.startswith(".")] == ["plan.json"]
