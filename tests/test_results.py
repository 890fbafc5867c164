"""The tidy tables, against a store whose every number is known."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from report import known_sweep as known

from scl_ray import coverage, results
from scl_ray.config import Cell, InputError
from scl_ray.parts import Versioned
from scl_ray.report.tables import make
from scl_ray.report.writing import csv
from scl_ray.results.__main__ import main


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    known.write(out)
    return str(out)


def test_one_row_per_trial_image_method_and_metric(sweep):
    table = results.load(sweep, "demo")
    cells = known.cells(("corrected",))
    assert len(table) == 12 * known.IMAGES * len(cells)
    assert not table.duplicated(["trial", "image", "method", "metric"]).any()
    trial = known.trial_id("supcon τ=0.5", "resnet8", 1)
    row = table[(table["trial"] == trial) & (table["metric"] == "complexity") & (table["method"] == "grad_cam")].iloc[0]
    assert (row["objective"], row["temperature"], row["backbone"], row["seed"]) == ("supcon", 0.5, "resnet8", 1)
    assert np.isnan(row["margin"])
    assert (row["dataset"], row["facet"], row["direction"]) == ("digits", "complexity", "lower")
    assert row["correct"] == (row["label"] == row["prediction"])


def test_names_are_categories_in_the_order_of_the_configuration(sweep):
    table = results.load(sweep, "demo")
    assert list(table["objective_label"].cat.categories) == list(known.OBJECTIVES)
    assert list(table["method"].cat.categories) == list(known.METHODS)
    assert table["value"].dtype == np.float32
    assert table["image"].dtype == np.int32


def test_undefined_values_are_missing(sweep):
    table = results.load(sweep, "demo")
    undefined = table[table["value"].isna()]
    assert len(undefined) == 6  # two supcon objectives, three seeds
    assert set(undefined["metric"]) == {"complexity"}
    assert set(undefined["method"]) == {"eigen_cam"}


def test_trial_means_leave_out_what_the_trial_misclassifies(sweep):
    table = results.load(sweep, "demo")
    means = results.trial_means(sweep, "demo").set_index(["trial", "method", "metric"])
    trial = known.trial_id("supcon τ=0.07", "resnet8", 0)
    of = table[(table["trial"] == trial) & (table["metric"] == "complexity") & (table["method"] == "eigen_cam")]
    expected = of.loc[of["correct"], "value"]
    found = means.loc[(trial, "eigen_cam", "complexity")]
    assert found["mean"] == pytest.approx(expected.astype(float).mean())
    assert (found["images"], found["undefined"]) == (expected.count(), 1)
    assert found["images"] + 1 == known.IMAGES - len(known.wrong_ranks("supcon τ=0.07", 0))


def test_common_means_are_the_truth(sweep):
    means = results.trial_means(sweep, "demo", images="common").set_index(["trial", "method", "metric"])
    common = known.common_ranks([(label, seed) for label in known.OBJECTIVES for seed in known.SEEDS])
    for number, label in enumerate(known.OBJECTIVES):
        for metric, truths in known.TRUTH.items():
            found = means.loc[(known.trial_id(label, "resnet8", 2), "grad_cam", metric)]
            truth = truths[number] + known.seed_offset(metric, 2, known.SEEDS)
            assert found["mean"] == pytest.approx(truth, abs=1e-6)
            assert found["images"] == len(common)


def test_means_over_both_kinds_of_images_are_of_one_reading(sweep, monkeypatch):
    opened, read = results.open_results(sweep, "demo"), []
    take = coverage.scores
    monkeypatch.setattr(coverage, "scores", lambda store, part, of: read.append(part.path) or take(store, part, of))
    own, common = opened.means("own", "common")
    assert sorted(read) == sorted(map(str, Path(sweep, "demo/scores").glob("*/*.parquet")))
    # Who changes what he was given changes nothing of what others are given.
    own["mean"] = 0.0
    pd.testing.assert_frame_equal(results.trial_means(opened), results.trial_means(sweep, "demo"))
    pd.testing.assert_frame_equal(common, results.trial_means(sweep, "demo", images="common"))
    assert read.count(read[0]) == 3  # the two of the last lines, of a sweep that was opened anew each time


def test_protocols_meet_their_own_read_out(tmp_path):
    known.write(tmp_path, seeds=(0,), protocols=("corrected", "published"))
    table = results.load(str(tmp_path), "demo")
    published = results.load(str(tmp_path), "demo", protocol="published")
    assert set(table["protocol"]) == {"corrected", "published"}
    assert len(published) * 2 == len(table)
    assert published["metric"].astype(str).str.contains("protocol=published").all()
    means = results.trial_means(str(tmp_path), "demo", images="common").set_index(["trial", "method", "metric"])["mean"]
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    change = means[trial, "grad_cam[protocol=published]", "complexity[protocol=published]"]
    assert change - means[trial, "grad_cam", "complexity"] == pytest.approx(known.PUBLISHED_OFFSET, abs=1e-5)


def test_only_what_the_plan_covers_is_read(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    before = results.load(str(tmp_path), "demo")
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    image = int(before["image"].iloc[0])
    cell = Cell("grad_cam", "complexity")
    for foreign in (Versioned(cell, "0"), Versioned(Cell("grad_cam", "sparseness[protocol=published]"), "1")):
        known.write_scores(store, trial, 0, 19, [foreign], [(image, *foreign.cell, 123.0)])
    other = "f" * 12  # a trial of an earlier configuration
    known.write_scores(store, other, 0, 19, [Versioned(cell, "1")], [(image, *cell, 123.0)])
    after = results.load(str(tmp_path), "demo")
    assert after.equals(before)


def test_a_cell_held_twice_counts_once(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    before = results.load(str(tmp_path), "demo")
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    cell = Cell("grad_cam", "complexity")
    same = before[(before["trial"] == trial) & (before["method"] == cell.method) & (before["metric"] == cell.metric)]
    rows = [(int(image), *cell, float(value)) for image, value in zip(same["image"], same["value"], strict=True)]
    known.write_scores(store, trial, 0, known.IMAGES - 1, [Versioned(cell, "1")], rows)
    assert results.load(str(tmp_path), "demo").equals(before)


def test_parts_cut_unlike_count_once(tmp_path):
    store = known.write(tmp_path, seeds=(0, 1), protocols=("corrected", "published"))

    def found() -> list[pd.DataFrame]:
        opened = results.open_results(str(tmp_path), "demo")
        return [results.load(str(tmp_path), "demo"), results.accuracies(opened), results.common_images(opened),
                results.trial_means(opened), results.trial_means(opened, images="common")]  # fmt: skip

    before = found()
    # Parts of 32 images beside those of 20, of two trials that share a read-out, and of one with another.
    for label, seed in (("cross_entropy", 0), ("supcon τ=0.07", 0), ("supcon τ=0.07", 1)):
        trial = known.trial_id(label, "resnet8", seed)
        for kind in ("predictions", "scores"):
            held: dict[str, list] = {}
            for part in store.parts(kind, trial):
                held.setdefault(part.holds, []).append(part)
            for holds, parts in held.items():
                rows = pa.concat_tables([store.read_table(part.path) for part in parts]).drop_columns("trial")
                images = list(dict.fromkeys(rows["image"].to_pylist()))  # in the order of their ranks
                for first, last in ((0, 31), (32, known.IMAGES - 1)):
                    of = rows.filter(pc.field("image").isin(images[first : last + 1]))
                    cells = store.cells(parts[0]) if kind == "scores" else ()
                    store.write_part(kind, trial, holds, first, last, of, cells)
    for table, truth in zip(found(), before, strict=True):
        pd.testing.assert_frame_equal(table, truth)


def test_images_past_the_plan_are_left_out(tmp_path):
    known.write(tmp_path / "all", seeds=(0,))
    known.write(tmp_path / "fewer", seeds=(0,), images=30)  # inside the part of ranks 20 to 39
    everything = results.load(str(tmp_path / "all"), "demo")
    fewer = results.load(str(tmp_path / "fewer"), "demo")
    assert fewer.groupby(["trial", "method", "metric"], observed=True).size().eq(30).all()
    assert set(fewer["image"]) < set(everything["image"])
    scores = results.open_results(str(tmp_path / "fewer"), "demo").query("SELECT DISTINCT image FROM scores")
    assert set(scores["image"]) == set(fewer["image"])


def test_curves_of_images_past_the_plan_are_left_out(tmp_path):
    known.write(tmp_path, seeds=(0,), images=known.SAMPLE - 6)
    opened = results.open_results(str(tmp_path), "demo")
    wanted = list(results.sample_images(opened))[:-6]
    assert set(results.curves(opened)["image"]) == set(wanted)


def lacking(out) -> list[tuple]:
    """What is missing: (trial, what, first, last, how many cells) for each range of ranks."""
    table = results.missing(str(out), "demo")
    keys = ["trial", "what", "first", "last"]
    return [(*key, len(rows)) for key, rows in table.groupby(keys, sort=False, dropna=False)]


def test_nothing_is_missing_of_a_complete_sweep(sweep):
    table = results.missing(sweep, "demo")
    assert table.empty
    assert list(table.columns) == ["trial", "label", "what", "method", "metric", "first", "last"]


def test_a_removed_part_is_missing_with_its_ranks(tmp_path):
    store = known.write(tmp_path, seeds=(0,), images=30)
    trial = known.trial_id("supcon τ=0.07", "resnet8", 0)
    _, second, third = store.parts("scores", trial)
    store.fs.rm_file(third.path)  # past the plan's images
    assert lacking(tmp_path) == []
    store.fs.rm_file(second.path)
    cells = known.cells(("corrected",))
    assert lacking(tmp_path) == [(trial, "scores", 20, 29, len(cells))]
    table = results.missing(str(tmp_path), "demo")
    assert list(zip(table["method"], table["metric"], strict=True)) == cells
    assert set(table["label"]) == {"supcon τ=0.07 · resnet8 · seed 0"}
    # One cell is measured again, and one in a version that the plan does not want.
    image = int(results.load(str(tmp_path), "demo")["image"].iloc[0])
    known.write_scores(store, trial, 20, 29, [Versioned(cells[0], "1")], [(image, *cells[0], 0.5)])
    known.write_scores(store, trial, 20, 29, [Versioned(cells[1], "0")], [(image, *cells[1], 0.5)])
    assert lacking(tmp_path) == [(trial, "scores", 20, 29, len(cells) - 1)]


def test_what_is_missing_and_what_is_loaded_are_all_that_is_wanted(tmp_path):
    store = known.write(tmp_path, seeds=(0,), protocols=("corrected", "published"))
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    # A score counts with its prediction: the published read-out's are lost where the corrected scores are not.
    for kind, holds, first in (("predictions", "own_layer_published", 0), ("scores", None, 20)):
        for part in store.parts(kind, trial):
            if part.first == first and holds in (part.holds, None):
                store.fs.rm_file(part.path)
    cells = len(known.cells(("corrected",)))
    assert sorted(lacking(tmp_path)) == [
        (trial, "scores", 0, 39, cells), (trial, "scores", 20, 39, cells),
    ]  # fmt: skip
    table = results.missing(str(tmp_path), "demo")
    published = table["metric"].str.contains("protocol=published")
    assert set(table.loc[published, "first"]) == {0}
    wanted = len(known.OBJECTIVES) * 2 * cells * known.IMAGES
    assert len(results.load(str(tmp_path), "demo")) == wanted - (table["last"] - table["first"] + 1).sum()


def test_untrained_and_failed_trials_miss_their_training(tmp_path):
    store = known.write(tmp_path, seeds=(0,), failed=(("triplet margin=0.3", 0),))
    untrained = known.trial_id("cross_entropy", "resnet8", 0)
    store.remove(f"trials/{untrained}.json")
    table = results.missing(str(tmp_path), "demo")
    assert list(table["trial"]) == [untrained, known.trial_id("triplet margin=0.3", "resnet8", 0)]
    assert list(table["label"]) == [untrained, "triplet margin=0.3 · resnet8 · seed 0"]
    assert set(table["what"]) == {"training"}
    assert table[["method", "metric", "first", "last"]].isna().all(axis=None)


def test_objectives_that_differ_in_their_recipe_alone_are_told_apart(tmp_path):
    store = known.write(tmp_path, seeds=(0, 1))
    trial = known.trial_id("cross_entropy", "resnet8", 1)
    record = store.record(trial)
    record["configuration"]["training"]["epochs"] = 40
    record["configuration"]["seed"] = 0
    store.write_record(trial, {k: v for k, v in record.items() if k not in ("schema", "trial")})
    labels = results.load(str(tmp_path), "demo")["objective_label"].cat.categories
    assert {"cross_entropy epochs=20", "cross_entropy epochs=40", "supcon τ=0.07"} <= set(labels)


def test_a_parameter_named_like_a_column_is_told_apart_from_it(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    record = store.record(trial)
    record["configuration"]["objective"] = {"name": "mine:loss", "parameters": {"device": 7, "status": "new", "k": 3}}
    store.write_record(trial, {k: v for k, v in record.items() if k not in ("schema", "trial")})
    opened = results.open_results(str(tmp_path), "demo")
    row = opened.trials.set_index("trial").loc[trial]
    assert (row["objective_device"], row["objective_status"], row["k"]) == (7, "new", 3)
    reported = pd.read_csv(io.BytesIO(csv(make(opened).trials))).set_index("trial").loc[trial]
    assert (reported["device"], reported["status"], reported["objective_device"]) == ("cpu", "trained", 7)


def test_a_damaged_part_is_named_by_what_reads_it(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    part = store.parts("scores", known.trial_id("cross_entropy", "resnet8", 0))[1]
    data = bytearray(store.fs.cat_file(part.path))
    data[len(data) // 4] ^= 0xFF
    store.fs.pipe_file(part.path, bytes(data))
    with pytest.raises(InputError, match=f"{part.path}.*run the sweep again"):
        results.trial_means(str(tmp_path), "demo")


def test_curves_maps_and_sample_images(sweep):
    opened = results.open_results(sweep, "demo")
    images = results.sample_images(opened)
    assert len(images) == known.SAMPLE
    label, pixels = next(iter(images.values()))
    assert (pixels.shape, pixels.dtype, 0 <= label <= 9) == ((1, 32, 32), np.uint8, True)
    trial = next(iter(opened.records))
    first = list(images)[:3]
    maps = results.maps(opened, trial, first)
    assert set(maps) == {(image, method) for image in first for method in known.METHODS}
    assert maps[first[0], "grad_cam"].shape == (32, 32)
    curves = results.curves(opened)
    assert len(curves) == 12 * known.SAMPLE * len(known.METHODS) * 32
    assert set(curves["metric"]) == {"pixel_flipping_auc"}


def test_another_filesystem_gives_the_same_table(tmp_path, sweep):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(sweep, "/results", recursive=True)
    try:
        assert results.load("memory://results", "demo").equals(results.load(sweep, "demo"))
    finally:
        memory.rm("/results", recursive=True)


def test_a_sweep_where_nothing_is_trained_yet_is_empty(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    for folder in ("trials", "scores", "predictions", "curves", "samples"):
        store.remove(folder)
    assert results.load(str(tmp_path), "demo").empty
    assert results.trial_means(str(tmp_path), "demo").empty


def test_no_sweep_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"plan\.json is missing"):
        results.load(str(tmp_path), "nothing")
    with pytest.raises(InputError, match=r"plan\.json is missing"):
        results.missing(str(tmp_path), "nothing")


def test_a_plan_that_is_not_json_is_one_sentence(tmp_path):
    known.write(tmp_path, seeds=(0,)).write("plan.json", b"{")
    with pytest.raises(InputError, match=r"demo/plan\.json: is not JSON"):
        results.load(str(tmp_path), "demo")


def test_measures_of_the_networks_are_a_table(sweep):
    rows = results.open_results(sweep, "demo").query("FROM measures WHERE measure = 'accuracy/linear_probe'")
    found = dict(zip(rows["trial"], rows["value"], strict=True))
    assert len(found) == 9  # not of cross-entropy's three
    assert found[known.trial_id("supcon τ=0.07", "resnet8", 2)] == pytest.approx(0.96 - 0.01 + 0.002 * 2)


def sql(capsys, out: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of the command."""
    code = main([*arguments, "--out", out])
    return code, *capsys.readouterr()


def test_sql_prints_what_the_table_holds(sweep, capsys):
    query = """SELECT objective_label, avg(value) AS mean FROM scored JOIN trials USING (trial)
               WHERE correct AND metric = 'sparseness' GROUP BY ALL ORDER BY ALL"""
    code, printed, _ = sql(capsys, sweep, query, "--csv")
    table = results.load(sweep, "demo")
    table = table[table["correct"] & (table["metric"] == "sparseness")]
    expected = table.astype({"value": float}).groupby("objective_label", observed=True)["value"].mean()
    found = pd.read_csv(io.StringIO(printed)).set_index("objective_label")["mean"]
    assert code == 0
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)  # sums of float64 in another order
    _, printed, _ = sql(capsys, sweep, query)
    assert [line.split()[-1][:6] for line in printed.splitlines()[1:]] == [f"{mean:.6f}"[:6] for mean in expected]


def test_a_long_table_is_cut_and_its_csv_is_not(sweep, capsys):
    rows = 12 * known.IMAGES * len(known.cells(("corrected",)))
    _, printed, _ = sql(capsys, sweep, "FROM scores")
    assert len(printed.splitlines()) < 50
    assert f"[{rows} rows x 5 columns]" in printed
    _, printed, _ = sql(capsys, sweep, "FROM scores", "--csv")
    assert len(printed.splitlines()) == 1 + rows
    assert sql(capsys, sweep, "FROM scores WHERE value > 100")[1] == "no rows of trial, image, method, metric, value\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["SELEC 1"], 'SQL: Parser Error: syntax error at or near "SELEC"'),
        (["SELECT nothing FROM scores"], 'SQL: Binder Error: Referenced column "nothing" not found'),
        (["FROM scoers"], "SQL: Catalog Error: Table with name scoers does not exist"),
        ([" "], "SQL: is empty"),
        (["FROM scores", "--name", "other"], "plan.json is missing"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(sweep, capsys, arguments, reason):
    code, printed, error = sql(capsys, sweep, *arguments)
    assert (code, printed) == (2, "")
    assert error.startswith("refused: ")
    assert reason in error
    assert error.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(sweep):
    command = [sys.executable, "-m", "scl_ray.results", "FROM scores s, range(20)", "--csv", "--out", sweep]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("trial,image,method,metric,value")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0
