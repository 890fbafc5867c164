"""The command for networks that were trained elsewhere: scores, running again, joining, labels, and every refusal."""

import hashlib
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import given_networks as given
import object_store
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Outcome
from torch import Tensor, nn

from scl_ray import calibration, cancelling, metrics, results
from scl_ray.attribution import explain
from scl_ray.store import open_store

METHODS = ("grad_cam", "saliency")
METRICS = ("complexity", "pixel_flipping_auc", "ssim_continuity[noise=0.1]")
NORMALISED = ["--mean", *map(str, given.MEAN), "--std", *map(str, given.STD)]

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a user works: ``given_module.py``, two trained networks, and the digits as image files."""
    folder = tmp_path_factory.mktemp("home")
    torch.set_num_threads(1)
    (folder / "given_module.py").write_text(given.SOURCE)
    sys.path.insert(0, str(folder))
    given.write_digits(folder / "digits")
    module = importlib.import_module("given_module")
    for seed, epochs in ((0, 8), (1, 1)):
        given.save(given.train(module.small(10), seed, epochs), folder / f"net{seed}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        # One database for all runs, since making one takes seconds.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("given_module")


@pytest.fixture
def evaluate(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs sweeps/evaluate.py in this process, on 30 of the digits where nothing else is said."""
    import evaluate

    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def command(*arguments: object, **options: object) -> Outcome:
        chosen = {"checkpoint": "net0.safetensors", "model": "given_module:small", "dataset": "image_folder:digits",
                  "image_size": given.SIZE, "images": 30, "methods": METHODS, "metrics": METRICS} | options  # fmt: skip
        line = [*map(str, arguments)] + ([] if "mean" in chosen else NORMALISED)
        for name, value in chosen.items():
            if value is not None:
                values = value if isinstance(value, (tuple, list)) else [value]
                line += [f"--{name.replace('_', '-')}", *map(str, values)]
        capfd.readouterr()
        try:
            code = evaluate.main(line)
        except SystemExit as stop:  # argparse's own refusals
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return command


@pytest.fixture(scope="module")
def out(home: Path) -> Path:
    """The results that the tests of one comparison build on, in their order."""
    return home / "runs"


class Calibrated(nn.Module):
    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) / self.temperature


def saved(home: Path, number: int = 0) -> nn.Module:
    from safetensors.torch import load_file

    network = importlib.import_module("given_module").small(10).eval()
    network.load_state_dict(load_file(home / f"net{number}.safetensors"))
    return network


def record_of(out: Path, label: str, name: str = "evaluation") -> dict[str, object]:
    found = [json.loads(path.read_text()) for path in (out / name / "trials").iterdir()]
    (record,) = [record for record in found if record["label"] == label]
    return record


def parts(out: Path) -> dict[str, int]:
    """Every file that an evaluation computes, with the time it was written."""
    kinds = ("trials", "checkpoints", "scores", "predictions", "curves", "samples")
    found = (path for kind in kinds for path in (out / "evaluation" / kind).glob("*/*"))
    return {str(path.relative_to(out / "evaluation")): path.stat().st_mtime_ns for path in found}


def scores(out: Path, trial: object) -> pd.DataFrame:
    return pq.read_table(out / "evaluation" / "scores" / str(trial)).to_pandas()


def test_scores_are_those_of_the_python_calls(home: Path, out: Path, evaluate: Run) -> None:
    done = evaluate(out=out)
    assert done.code == 0, done.error
    record = record_of(out, "net0")
    images, labels = given.read_images(home / "digits/test")
    network = saved(home)
    with torch.no_grad():
        logits = network(images)
    assert (logits.argmax(1) == labels).float().mean() > 0.8  # a network worth explaining
    # Calibrated on the validation images, which are a tenth of train/.
    temperature = record["metrics"]["temperature"]
    assert record["metrics"]["calibration_images"] == 30
    assert 0.2 < temperature < 3
    assert f"temperature {temperature:.3g}, fitted on 30 validation images" in done.out

    table = scores(out, record["trial"])
    ids = sorted(set(table["image"]))
    assert len(ids) == 30
    rows = pq.read_table(out / "evaluation/predictions" / record["trial"]).to_pandas().set_index("image").loc[ids]
    assert rows["label"].tolist() == labels[ids].tolist()
    assert rows["prediction"].tolist() == logits[ids].argmax(1).tolist()
    confidence = (logits[ids] / temperature).softmax(1).amax(1)
    assert torch.allclose(torch.tensor(rows["confidence"].to_numpy()), confidence, atol=1e-5)

    plan = json.loads((out / "evaluation/plan.json").read_text())
    seed = int.from_bytes(hashlib.sha256(plan["dataset"]["fingerprint"].encode()).digest()[:8], "big")
    about = {"mean": given.MEAN, "std": given.STD, "seed": seed, "image_ids": ids}
    model, targets = Calibrated(network, temperature).eval(), logits[ids].argmax(1)
    for method in METHODS:
        maps = explain(model, images[ids], targets, method, **about)
        for metric in METRICS:
            expected = metrics.score(metric, model, images[ids], targets, maps, method=method, **about)
            of_cell = table[(table["method"] == method) & (table["metric"] == metric)].set_index("image")["value"]
            assert torch.allclose(torch.tensor(of_cell.loc[ids].to_numpy()), expected, atol=2e-5, equal_nan=True), (
                method, metric)  # fmt: skip


def test_the_temperature_is_the_one_that_fits_best(home: Path, out: Path) -> None:
    # The validation images by hand: the first tenth of train/ in its stratified order.
    from scl_ray.datasets.splits import stratified_order

    images, labels = given.read_images(home / "digits/train")
    held_out = sorted(stratified_order(labels.numpy())[:30])
    with torch.no_grad():
        logits = saved(home)(images[held_out])
    fitted = calibration.fit_temperature(logits, labels[held_out])
    assert record_of(out, "net0")["metrics"]["temperature"] == pytest.approx(fitted, rel=1e-4)


def test_the_same_command_computes_nothing(out: Path, evaluate: Run) -> None:
    before = parts(out)
    report = (out / "evaluation/report/index.html").stat().st_mtime_ns
    done = evaluate(out=out)
    assert done.code == 0, done.error
    assert parts(out) == before
    assert (out / "evaluation/report/index.html").stat().st_mtime_ns == report
    assert "evaluated" not in done.out
    assert "accuracy" in done.out


def test_on_an_object_store_it_finds_the_same(out: Path, tmp_path: Path, evaluate: Run) -> None:
    with object_store.serving():
        bucket = object_store.new_bucket()
        done = evaluate(out=bucket)
        assert done.code == 0, done.error
        assert f"{bucket}/evaluation/report/index.html" in done.out
        assert "180 of 180 scores" in evaluate("--dry-run", out=bucket).out
        object_store.fetch(bucket, tmp_path)
    there, here = (results.open_results(str(folder), "evaluation") for folder in (tmp_path, out))
    for table in ("scored", "predictions"):
        rows = f"FROM {table} ORDER BY ALL"
        pd.testing.assert_frame_equal(there.query(rows), here.query(rows))
    pd.testing.assert_frame_equal(results.curves(there), results.curves(here))
    assert parts(tmp_path).keys() == parts(out).keys()
    assert reported(tmp_path) == reported(out)


def reported(out: Path) -> set[str]:
    report = out / "evaluation/report"
    return {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}


def test_a_dry_run_counts_and_writes_nothing(out: Path, evaluate: Run) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    done = evaluate("--dry-run", out=out, metrics=(*METRICS, "sparseness"))
    assert done.code == 0, done.error
    assert "1 networks (net0), 8 cells on 30 images" in done.out
    assert "180 of 240 scores" in done.out
    assert "estimate: about" in done.out
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


def test_another_network_and_metric_join_and_only_they_are_computed(home: Path, out: Path, evaluate: Run) -> None:
    before = parts(out)
    first = record_of(out, "net0")["trial"]
    done = evaluate(checkpoint="net1.safetensors", label="other", metrics=(*METRICS, "sparseness"), out=out)
    assert done.code == 0, done.error
    second = record_of(out, "other")["trial"]
    fresh = {path for path, written in parts(out).items() if before.get(path) != written}
    of_first = {path for path in fresh if first in path and path.startswith("scores/")}
    assert {path for path in fresh if first in path} - of_first == {
        path for path in fresh if first in path and path.startswith("samples/")
    }
    for path in of_first:
        assert set(pq.read_table(out / "evaluation" / path)["metric"].to_pylist()) == {"sparseness"}
    assert len(scores(out, second)) == len(scores(out, first)) == 30 * 2 * 4
    page = (out / "evaluation/report/index.html").read_text()
    assert "net0, other" in page
    assert "trained elsewhere" in page
    assert "Objectives" not in page
    table = results.load(str(out), "evaluation")
    assert list(table["objective_label"].cat.categories) == ["net0", "other"]
    assert results.missing(str(out), "evaluation").empty


def test_test_images_alone_outputs_of_other_classes_and_a_named_layer(
    home: Path, tmp_path: Path, evaluate: Run
) -> None:
    # A network of 13 classes; the digits are its outputs 12 to 3.
    bare = saved(home).state_dict()
    order = [12 - digit for digit in range(10)]
    weight, bias = torch.zeros(13, 32), torch.full((13,), -50.0)
    weight[order], bias[order] = bare["8.weight"], bare["8.bias"]
    torch.save({**bare, "8.weight": weight, "8.bias": bias}, tmp_path / "thirteen.pth")
    names = {f"digit {digit}": number for digit, number in enumerate(order)} | {"nothing": 0}
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(names))
    options = {"checkpoint": tmp_path / "thirteen.pth", "dataset": "image_folder:digits/test", "out": tmp_path / "runs",
               "methods": "grad_cam", "metrics": "complexity", "layer": "2"}  # fmt: skip

    refused = evaluate(**options)
    assert refused.code == 2
    assert "13 outputs and the dataset 10 classes" in refused.error
    prototype = {**options, "methods": "grad_cam[target=prototype]", "labels": tmp_path / "labels.yaml"}
    assert "10 of the 13 that the network knows" in evaluate(**prototype).error
    done = evaluate(**options, labels=tmp_path / "labels.yaml")
    assert done.code == 0, done.error
    assert "not calibrated: image_folder has no validation images" in done.out

    record = record_of(tmp_path / "runs", "thirteen")
    assert record["metrics"] == {"temperature": 1.0, "calibration_images": 0}
    assert record["classes"][0] == "nothing"
    assert record["classes"][3:] == [f"digit {digit}" for digit in reversed(range(10))]
    images, labels = given.read_images(home / "digits/test")
    folder = tmp_path / "runs/evaluation/predictions" / record["trial"]
    rows = pq.read_table(folder).to_pandas().set_index("image")
    with torch.no_grad():
        digits = saved(home)(images).argmax(1)
    assert rows["label"].tolist() == [12 - int(labels[image]) for image in rows.index]
    assert rows["prediction"].tolist() == [12 - int(digits[image]) for image in rows.index]

    ids = list(rows.index)
    found = scores(tmp_path / "runs", record["trial"]).set_index("image")["value"].loc[ids]
    model, chosen = saved(home), images[ids]
    for layer, is_explained in ((2, True), (4, False)):
        maps = explain(model, chosen, digits[ids], "grad_cam", layer=model[layer])
        expected = metrics.score("complexity", model, chosen, digits[ids], maps)
        assert torch.allclose(torch.tensor(found.to_numpy()), expected, atol=1e-4) == is_explained
    assert "digit 7 ·" in (tmp_path / "runs/evaluation/report/index.html").read_text()


def test_a_network_whose_scores_are_not_finite_is_refused(home: Path, tmp_path: Path, evaluate: Run) -> None:
    network = saved(home)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    refused = evaluate("--dry-run", checkpoint=given.save(network, tmp_path / "diverged.safetensors"), out=tmp_path)
    assert refused.code == 2
    assert "gives scores that are not finite" in refused.error


def test_images_to_compare_with_are_those_that_are_not_evaluated(tmp_path: Path, evaluate: Run) -> None:
    options = {"dataset": "image_folder:digits/test", "methods": "grad_cam[target=prototype]", "metrics": "complexity",
               "out": tmp_path}  # fmt: skip
    refused = evaluate(**options, images=31)
    assert refused.code == 2
    assert "evaluate at most 30, by --images" in refused.error
    assert evaluate("--dry-run", **options, images=30).code == 0


def test_grey_networks_see_one_channel(tmp_path: Path, evaluate: Run) -> None:
    build = importlib.import_module("given_module").grey
    path = given.save(build(), tmp_path / "grey.safetensors")
    options = {"checkpoint": path, "model": "given_module:grey", "mean": 0.3, "std": 0.4, "out": tmp_path / "runs",
               "methods": "grad_cam", "metrics": "complexity", "dataset": "digits"}  # fmt: skip
    done = evaluate("--dry-run", **options)
    assert done.code == 0, done.error
    assert "1 networks (grey), 1 cells on 30 images" in done.out


def test_a_network_that_fails_is_named(home: Path, tmp_path: Path, evaluate: Run) -> None:
    network = importlib.import_module("given_module").OutOfOrder()
    given.save(network, tmp_path / "broken.safetensors")
    done = evaluate(checkpoint=tmp_path / "broken.safetensors", model="given_module:OutOfOrder", dataset="digits",
                    methods="grad_cam", metrics="complexity", images=8, out=tmp_path)  # fmt: skip
    assert done.code == 1
    assert "failed  broken" in done.out
    assert "this network is out of order" in done.out
    assert "Traceback" not in done.error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mean": None, "std": None}, "--mean and --std: cannot be known"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "three values each"),
        ({"mean": 0.5, "std": 0}, "above 0"),
        ({"mean": 0.3, "std": 0.4, "dataset": "digits"}, "given_module:small: takes no images of 1x16x16"),
        ({"image_size": None}, "--image-size: cannot be known for image_folder"),
        ({"image_size": 3}, "--image-size: should be greater"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58, 57, 57)}, "divide values for pixels of 0 to 255 by 255"),
        ({"std": ("nan", "nan", "nan")}, "are of pixels in [0, 1]"),
        ({"dataset": "image_folder:nowhere"}, "nowhere: is no folder; set ROOT in --dataset NAME:ROOT to a folder"),
        ({"dataset": "cifar10:nowhere"}, "nowhere; set ROOT in --dataset NAME:ROOT to the folder that holds it\n"),
        ({"dataset": "given_module:small:ROOT"}, "dataset given_module:small: raised TypeError"),
        ({"dataset": "image_folder"}, "give image_folder:PATH"),
        ({"dataset": "cifar11:/data"}, "--dataset: there is no dataset 'cifar11'"),
        ({"checkpoint": "none.safetensors"}, "no such file"),
        ({"checkpoint": ("net0.safetensors", "net0.safetensors")}, "the same weights"),
        ({"checkpoint": ("net0.safetensors", "net1.safetensors"), "label": ("a", "b", "c")}, "3 labels for 2"),
        ({"label": ""}, "--label.0: should have at least 1 character"),
        ({"model": "torch.nn:Module"}, "0.bias of the file is not in the network"),
        ({"model": "given_module:large"}, "--model given_module:large: cannot be imported"),
        ({"model": "given_module:grey"}, "0.weight is (16, 3, 3, 3) in the file and (16, 1, 3, 3) in the network"),
        ({"layer": "conv9"}, "--layer conv9: the network has no such module"),
        ({"layer": "8", "methods": "grad_cam"}, "not all of them suit"),
        ({"labels": "none.txt"}, "--labels none.txt: cannot be read"),
        ({"methods": "grad_cma"}, "did you mean 'grad_cam'?"),
        ({"metrics": "complexity[x=1]"}, "--metrics"),
        ({"metrics": "pointing_game"}, "--methods, --metrics: no method goes with any metric"),
        ({"methods": "gradient_shap", "dataset": "image_folder:digits/test", "images": 60}, "at most 30, by --images"),
        ({"images": 61}, "--images: 61 is more than the 60 test images"),
        ({"images": 0}, "--images"),
        ({"name": "a/b"}, "--name: must be made of letters"),
        ({"name": "x" * 101}, "--name: should have at most 100 characters"),
        ({"out": "nosuch://bucket"}, "--out nosuch://bucket"),
        ({"methods": None}, "--methods"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    options: dict[str, object], expected: str, home: Path, tmp_path: Path, evaluate: Run
) -> None:
    done = evaluate(**{"out": tmp_path / "runs", **options})
    assert done.code == 2, done.out
    assert expected in done.error
    assert "Traceback" not in done.error
    assert len(done.error.strip().splitlines()) == 1 or "usage:" in done.error
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_damaged_network_is_named_and_comes_back_from_its_file(
    home: Path, tmp_path: Path, evaluate: Run
) -> None:  # fmt: skip
    small = {"out": tmp_path, "methods": "saliency", "metrics": "complexity"}
    assert evaluate(**small).code == 0
    (weights,) = tmp_path.glob("evaluation/checkpoints/*/weights.safetensors")
    (part,) = tmp_path.glob("evaluation/scores/*/*.parquet")
    whole, written = weights.read_bytes(), part.stat().st_mtime_ns
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    # It is noticed by whoever needs it, here for another metric, and holds nobody up.
    small["metrics"] = ("complexity", "sparseness")
    done = evaluate(checkpoint="net1.safetensors", **small)
    assert done.code == 0, done.error
    named = f"damaged: checkpoints/{weights.parent.name}/checkpoint.json (the checksum of weights.safetensors differs)"
    assert f"{named}; it comes back when its file is given" in done.out
    assert set(results.load(str(tmp_path), "evaluation")["objective_label"]) == {"net1"}
    done = evaluate(**small)
    assert done.code == 0, done.error
    assert weights.read_bytes() == whole
    assert part.stat().st_mtime_ns == written
    assert set(results.load(str(tmp_path), "evaluation")["objective_label"]) == {"net0", "net1"}
    weights.unlink()
    done = evaluate("--dry-run", checkpoint="net1.safetensors", **small | {"metrics": METRICS})
    assert done.code == 2
    assert f"checkpoints/{weights.parent.name}: one of its two files is missing; run the sweep again" in done.error


def test_it_can_be_cancelled_and_continues(tmp_path: Path, evaluate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "LOOK_EVERY", 0.05)
    asked = {
        "out": tmp_path,
        "checkpoint": ["net0.safetensors", "net1.safetensors"],
        "methods": ["occlusion", "saliency"],
    }
    root, said = tmp_path / "evaluation", []

    def cancel() -> None:
        while not list(root.glob("scores/*/*.parquet")):
            time.sleep(0.05)
        said.append(cancelling.cancel(open_store(str(tmp_path), "evaluation")))

    somebody = threading.Thread(target=cancel, daemon=True)
    somebody.start()
    stopped = evaluate(**asked)
    assert stopped.code == 130, stopped
    somebody.join()
    assert "cancelled by process" in stopped.error
    assert "stopped process" in said[0]
    # It may have been about to put the second network beside the first, which is begun again then.
    kept = {path: when for path, when in parts(tmp_path).items() if not path.startswith("checkpoints/")}
    assert kept
    assert evaluate(**asked).code == 0
    assert {path: parts(tmp_path)[path] for path in kept} == kept
    for trial in (root / "scores").iterdir():
        assert len(scores(tmp_path, trial.name)) == 30 * 2 * len(METRICS)


def test_networks_keep_their_names_and_sweeps_their_folders(home: Path, out: Path, evaluate: Run) -> None:
    taken = evaluate(label="renamed", out=out)
    assert taken.code == 2
    assert "there as 'net0' already" in taken.error
    (home / "elsewhere").mkdir()
    given.save(importlib.import_module("given_module").small(10), home / "elsewhere/net0.safetensors")
    namesake = evaluate(checkpoint="elsewhere/net0.safetensors", out=out)
    assert namesake.code == 2
    assert "other weights are there as 'net0' already; give a --label" in namesake.error
    plan = out / "evaluation/plan.json"
    before = plan.read_text()
    others = evaluate(out=out, dataset="image_folder:digits/test")
    assert others.code == 2
    assert "--dataset: 'net0', which lies under the same --name, was evaluated on other images" in others.error
    assert plan.read_text() == before
    plan.write_text(json.dumps(json.loads(before) | {"kind": "sweep"}))
    mixed = evaluate(out=out)
    assert mixed.code == 2
    assert "holds a sweep" in mixed.error
    plan.write_text(before)
