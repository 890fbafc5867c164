"""Two sweeps of known truth side by side."""

from pathlib import Path

import numpy as np
import object_store
import pandas as pd
import pytest
import s3fs
from report import known_sweep as known
from scipy import stats

from scl_ray.report.__main__ import main

HARDER = {metric: [truth + 0.2 for truth in truths] for metric, truths in known.TRUTH.items()}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The sweep ``first``; ``second``, in which every score is 0.2 higher; ``few``, with two seeds."""
    out = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "METHODS", ("grad_cam",))  # few suffice
        known.write(out, "first")
        known.write(out, "few", seeds=(0, 1))
        patch.setattr(known, "TRUTH", HARDER)
        known.write(out, "second")
    return out


def compared(out: Path, other: str) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    assert main(["--out", str(out), "--name", "first", "--compare", other]) == 0
    folder = out / "first/report/compare" / other
    tables = [pd.read_csv(folder / f"tables/{name}.csv", keep_default_na=False, na_values=[""])
              for name in ("differences", "verdicts")]  # fmt: skip
    return (folder / "index.html").read_text(), *tables


def row(table: pd.DataFrame, label: str, metric: str) -> pd.Series:
    found = table[(table["objective_label"] == label) & (table["metric"] == metric)]
    return found[found["method"] == "grad_cam"].iloc[0]


def test_the_difference_of_two_sweeps_is_the_known_one(out, capsys):
    page, differences, verdicts = compared(out, "second")
    assert "Comparison: " in capsys.readouterr().out
    found = row(differences, "supcon τ=0.07", "pixel_flipping_auc")
    assert (found["mean"], found["other_mean"]) == pytest.approx((0.262, 0.462), abs=1e-5)
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 * 0.01**2 / 3)  # three seeds a side with a spread of 0.01
    assert (found["low"], found["high"]) == pytest.approx((-0.2 - half, -0.2 + half), rel=1e-3)
    assert found["verdict"] == "better"  # a lower area is better
    assert row(differences, "cross_entropy", "sparseness")["verdict"] == "worse"
    assert set(differences["objective_label"]) == set(known.OBJECTIVES)
    assert verdicts["same"].all()  # both find the same of their own reference
    assert "<b>0 of 24 verdicts change</b>" in page
    common = len(known.common_ranks([(label, seed) for label in known.OBJECTIVES for seed in known.SEEDS]))
    assert f"Over the {common} images that all networks of both sweeps classify correctly" in page
    folder = out / "first/report/compare/second"
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".svg", ".png"}
    assert "\\toprule" in (folder / "tables/differences.tex").read_text()


def test_verdicts_change_with_the_seeds_and_come_first(out):
    page, differences, verdicts = compared(out, "few")
    found = row(verdicts, "supcon τ=0.07", "pixel_flipping_auc")
    assert (found["verdict"], found["verdict_other"], found["same"]) == ("better", "not decided", False)
    assert set(differences["verdict"]) == {"not decided"}
    assert page.index(">changes<") < page.index(">same<")
    assert "8 networks are in both sweeps" in page


@pytest.mark.parametrize(("other", "reason"), [("first", "is the sweep itself"), ("none", "plan.json is missing")])
def test_what_cannot_be_compared_is_one_sentence(out, capsys, other, reason):
    assert main(["--out", str(out), "--name", "first", "--compare", other]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.strip().splitlines()) == 1


def test_sweeps_of_other_datasets_keep_their_own_images(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "METHODS", ("grad_cam",))
    known.write(tmp_path, "first", seeds=(0,))
    store = known.write(tmp_path, "other", seeds=(0,))
    plan = store.read_json("plan.json")
    plan["dataset"]["fingerprint"] = "another"
    store.write_json("plan.json", plan)
    page, differences, _ = compared(tmp_path, "other")
    assert "The datasets differ" in page
    assert differences["difference"].abs().max() == pytest.approx(0, abs=1e-6)


def test_on_an_object_store_it_is_the_same_page(out, tmp_path, capsys):
    asked = ["--name", "few", "--compare", "second"]
    with object_store.serving():
        bucket = object_store.new_bucket()
        for name in asked[1::2]:
            s3fs.S3FileSystem().put(f"{out / name}/", f"{bucket}/{name}/", recursive=True)
        assert main(["--out", bucket, *asked]) == 0
        assert capsys.readouterr().out == f"Comparison: {bucket}/few/report/compare/second/index.html\n"
        object_store.fetch(f"{bucket}/few/report/compare/second", tmp_path)
    assert main(["--out", str(out), *asked]) == 0
    made = files(tmp_path)
    assert made == files(out / "few/report/compare/second")
    assert {"index.html", "tables/differences.csv", "tables/verdicts.csv"} < made.keys()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
