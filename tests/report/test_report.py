"""The whole report: page, tables, figures and the summary, from a store of known truth."""

import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report import known_sweep as known
from rich.console import Console

from scl_ray import results
from scl_ray.config import Cell
from scl_ray.parts import Versioned
from scl_ray.report import build, gallery, summary_table
from scl_ray.report.__main__ import main


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    known.write(out, protocols=("corrected", "published"), failed=(("triplet margin=0.3", 2),))
    build(str(out), "demo")
    return out


@pytest.fixture(scope="module")
def page(out) -> str:
    return (out / "demo/report/index.html").read_text()


VOID = {"meta", "link", "img", "input", "br", "wbr", "path", "use"}


class Elements(HTMLParser):
    """Every element with its attributes; void and SVG elements close themselves."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_network(out, page):
    elements = Elements(page)
    assert elements.open == []
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "iframe", "object"})
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                own = attributes[name].startswith(("#", "data:"))
                # The other files of the report lie beside the page.
                assert own or (out / "demo/report" / attributes[name]).is_file(), (tag, attributes[name])
    assert not re.search(r"url\((?!#)", page)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in elements.found if tag == "a" and a["href"].startswith("#")} <= set(ids)


def test_every_picture_says_what_it_shows(page):
    elements = Elements(page).found
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) == 2 * len(known.METHODS) * known.SAMPLE * (1 + len(known.OBJECTIVES))
    assert all(attributes["alt"] for attributes in images)
    drawings = [attributes for tag, attributes in elements if tag == "svg"]
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 40 for attributes in drawings)
    assert any("cross_entropy 0.371 ± 0.010" in attributes["aria-label"] for attributes in drawings)


def test_the_page_says_what_was_found_and_what_is_missing(page):
    text = re.sub(r"\s+", " ", re.sub(r"<(svg|style).*?</\1>|<[^>]+>", "", page, flags=re.DOTALL))
    assert "0.262 ± 0.010" in text
    verdict = ("▲ better supcon τ=0.07 is more faithful than cross_entropy: pixel-flipping AUC of grad_cam "
               "−0.109 [−0.132, −0.086], 3 seeds, Holm p = 0.0")  # fmt: skip
    assert verdict in text
    assert "▼ worse supcon τ=0.07 is less contrastive than cross_entropy" in text
    assert "of the facet&#39;s 6 measures 6 better" in text
    assert "more seeds of each would be needed" in text
    assert "the loss is not finite (nan) in epoch 3" in text
    assert "Eigen-CAM has no class to contrast" in text
    assert "What the protocol changes" in text
    common = len(known.common_ranks([(label, seed) for label in known.OBJECTIVES for seed in known.SEEDS
                                     if (label, seed) != ("triplet margin=0.3", 2)]))  # fmt: skip
    assert f"{common} images that all 11 compared networks classify correctly" in text
    assert f"3 of {3 * common}" in text  # undefined values
    assert "fingerprint 0123456789ab" in text


def test_tables_and_figures_lie_beside_the_page(out):
    report = out / "demo/report"
    names = {path.stem for path in (report / "tables").iterdir()}
    assert names == {"trials", "seeds", "measures", "comparisons", "verdicts", "sensitivity", "doses", "slopes",
                     "agreement", "properties", "methods", "reproduction", "images", "undefined", "protocols",
                     "failures", "not_cells", "facets-resnet8-corrected", "facets-resnet8-published"}  # fmt: skip
    assert {path.stem for path in (report / "tables").glob("*.tex")} == names
    assert {path.stem for path in (report / "tables").glob("*.csv")} == names
    measures = pd.read_csv(report / "tables/measures.csv", keep_default_na=False)
    row = measures[(measures["protocol"] == "corrected") & (measures["objective_label"] == "supcon τ=0.07")
                   & (measures["metric"] == "complexity") & (measures["method"] == "grad_cam")].iloc[0]  # fmt: skip
    assert float(row["mean"]) == pytest.approx(6.39)
    figures = {path.name for path in (report / "figures").iterdir()}
    assert {name for name in figures if name.endswith(".svg")} == {
        name.replace(".png", ".svg") for name in figures if name.endswith(".png")
    }
    kinds = ["differences", "overview", "distributions", "networks-faithfulness", "curves", "accuracy", "agreement",
             "methods", "properties", "gallery-eigen_cam"]  # fmt: skip
    assert {f"{kind}-resnet8-{protocol}.png" for kind in kinds for protocol in ("corrected", "published")} <= figures
    assert {"dose-temperature-corrected.svg", "dose-temperature-published.svg"} <= figures
    assert Image.open(report / "figures/accuracy-resnet8-corrected.png").size[0] > 800


def test_two_seeds_the_same_bytes_and_no_leftovers(tmp_path, capsys):
    out = tmp_path / "[runs]"  # neither a pattern nor markup
    store = known.write(out, seeds=(0, 1), failed=(("triplet margin=0.3", 1),))
    trial = known.trial_id("triplet margin=0.3", "resnet8", 1)
    record = {k: v for k, v in store.record(trial).items() if k not in ("schema", "trial")}
    store.write_record(trial, record | {"error": "<b>&</b>"})
    report = out / "demo/report"
    (report / "tables").mkdir(parents=True)
    (report / "tables/of_an_earlier_report.csv").write_text("a\n")
    paths = build(str(out), "demo")
    first = {path.relative_to(report): path.read_bytes() for path in report.rglob("*.*")}
    written = [paths.index, *paths.tables, *paths.figures]
    assert sorted(Path(path).relative_to(report) for path in written) == sorted(first)
    page = (report / "index.html").read_text()
    assert "Not decided." in page
    assert '<span class="mark better">' not in page
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page

    assert main(["--out", str(out), "--name", "demo"]) == 0
    assert {path.relative_to(report): path.read_bytes() for path in report.rglob("*.*")} == first
    said = capsys.readouterr().out
    assert "faithfulness ↓" in said
    assert f"Report: {report / 'index.html'}" in said


def test_nothing_trained_still_gives_a_page(tmp_path):
    failed = [(label, 0) for label in known.OBJECTIVES]
    known.write(tmp_path, seeds=(0,), failed=tuple(failed))
    page = Path(build(str(tmp_path), "demo").index).read_text()
    assert "4 of 4 trials are" in re.sub(r"\s+", " ", page)


def test_no_image_that_all_classify_correctly_is_said(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    trial = known.trial_id("supcon τ=0.5", "resnet8", 0)
    for part in store.parts("predictions", trial):
        table = store.read_table(part.path).drop_columns("trial")
        wrong = table.set_column(table.column_names.index("prediction"), "prediction",
                                 [(table["label"].to_numpy() + 1).astype(np.int32) % 10])  # fmt: skip
        store.write_part("predictions", trial, part.holds, part.first, part.last, wrong)
    page = Path(build(str(tmp_path), "demo").index).read_text()
    assert "No image is classified correctly by all compared networks" in page


def test_the_summary_shows_the_means_in_80_columns(out):
    text = io.StringIO()
    Console(file=text, width=80).print(summary_table(str(out), "demo"))
    lines = text.getvalue().splitlines()
    faithfulness = next(line for line in lines if line.startswith("faithfulness ↓"))
    assert re.findall(r"0\.\d+ ± 0\.\d+", faithfulness)[:3] == ["0.371 ± 0.010", "0.262 ± 0.010", "0.305 ± 0.010"]
    assert any(line.startswith("resnet8 · published") for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_summary_goes_on_below_when_the_objectives_are_many(tmp_path):
    store = known.write(tmp_path, seeds=(0, 1))
    trial = known.trial_id("supcon τ=0.5", "resnet8", 1)
    record = store.record(trial)
    record["objective_label"] = "supcon τ=0.9"
    store.write_record(trial, {k: v for k, v in record.items() if k not in ("schema", "trial")})
    text = io.StringIO()
    Console(file=text, width=80).print(summary_table(str(tmp_path), "demo"))
    rows = [line for line in text.getvalue().splitlines() if line.startswith("complexity ↓")]
    assert len(rows) == 2
    assert "6.39 ± 0.01" in rows[0]


def test_brackets_of_specs_are_no_markup(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    plan = store.read_json("plan.json")
    plan["cells"] = [cell for cell in plan["cells"] if cell[1] != "ssim_continuity"]
    store.write_json("plan.json", plan)
    text = io.StringIO()
    Console(file=text, width=400).print(summary_table(str(tmp_path), "demo"))
    assert "ssim_continuity[noise=0.1]" in text.getvalue()


def test_overlay_shows_the_sign_and_survives_a_zero_map():
    image = np.zeros((1, 8, 8), np.uint8)
    signed = np.zeros((8, 8), np.float32)
    signed[0, 0], signed[7, 7] = -1, 1
    against, for_it = gallery.overlay(image, signed)[0, 0], gallery.overlay(image, signed)[7, 7]
    assert against[0] > against[2]  # orange
    assert for_it[2] > for_it[1]  # purple
    assert np.ptp(gallery.overlay(image, np.zeros((8, 8), np.float32)), axis=(0, 1)).max() == 0
    assert gallery.overlay(np.zeros((3, 8, 8), np.uint8), signed).shape == (8, 8, 3)
    beyond = np.where(signed > 0, np.nan, signed)
    assert (gallery.overlay(image, beyond) == gallery.overlay(image, signed)).all()


def test_no_such_sweep_is_one_sentence(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--name", "nothing"]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "plan.json is missing" in said


@pytest.mark.parametrize(
    ("name", "broken", "reason"), [("demo", "plan.json", "is not JSON"), ("\0", None, "null byte")]
)
def test_bad_input_is_one_sentence(tmp_path, capsys, name, broken, reason):
    store = known.write(tmp_path, seeds=(0,))
    if broken:
        store.write(broken, b"{")
    assert main(["--out", str(tmp_path), "--name", name]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert reason in said


def test_a_copied_store_is_reported_without_the_users_module_torch_ray_and_mlflow(tmp_path):
    store = known.write(tmp_path / "there", seeds=(0,))
    cell = Cell("grad_cam", "modules_of_another_machine:edges[width=3]")
    plan = store.read_json("plan.json")
    plan["cells"].append([*cell, "1"])
    plan["metrics"][cell.metric] = {"facet": "user", "direction": "higher"}
    store.write_json("plan.json", plan)
    images = results.load(str(tmp_path / "there"), "demo")["image"].unique()
    for trial in plan["trials"]:
        rows = [(int(image), *cell, 0.625) for image in images]
        known.write_scores(store, trial, 0, known.IMAGES - 1, [Versioned(cell, "1")], rows)
    shutil.move(tmp_path / "there", tmp_path / "here")
    code = """if True:
        import sys
        from scl_ray import report, results
        report.build(sys.argv[1], "demo"), report.summary_table(sys.argv[1], "demo"), results.load(sys.argv[1], "demo")
        assert results.missing(sys.argv[1], "demo").empty
        print([module for module in ("torch", "ray", "mlflow") if module in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "here")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    measures = pd.read_csv(tmp_path / "here/demo/report/tables/measures.csv")
    row = measures[measures["metric"] == cell.metric].iloc[0]
    assert (row["mean"], row["direction"]) == (0.625, "higher")
