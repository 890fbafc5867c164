"""A trial, a shard or an image that is bad is named; all else is finished, and what failed alone is tried again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_imagenet_s50
from clusters import cluster
from undisturbed import assert_same

from scl_ray import config, datasets
from scl_ray.datasets.files import ImageFiles


def failed(out: str) -> dict[str, str]:
    """What the summary names: trial's label to reason."""
    lines = [line.removeprefix("failed  ") for line in out.splitlines() if line.startswith("failed  ")]
    return {line.split(" (")[0]: line.split("): ", 1)[1] for line in lines}


def written(root: Path, trials: set[str]) -> dict[Path, int]:
    """When each file of *trials* was."""
    kept = [path for path in root.rglob("*") if path.is_file() and trials & {path.stem, path.parent.name}]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_trials_that_cannot_be_trained_are_named_and_the_others_are_as_ever(
    start: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    """One diverges, one has an objective and four a backbone of the user's own that raise."""
    good = {path.stem for path in (undisturbed / "faults/trials").iterdir()}
    diverging = "{name: cross_entropy, label_smoothing: 0.1, training: {learning_rate: 1.0e+30}}"
    command = (
        "--out", tmp_path / "runs", "--set", f'grid.objective=[cross_entropy, "gate:loss", {diverging}, "bad:loss"]',
        "--set", 'grid.backbone=[resnet8, "bad:backbone"]',
    )  # fmt: skip
    done = start(*command, BAD=str(tmp_path)).wait()
    assert done.code == 1, done.out + done.error
    reasons = failed(done.out)
    nan, raising = "cross_entropy label_smoothing=0.1 · resnet8 · seed 0", "bad:loss · resnet8 · seed 0"
    unbuilt = {label for label in reasons if "bad:backbone" in label}
    assert reasons.keys() == {nan, raising} | unbuilt
    assert "the loss is not finite in epoch 1" in reasons[nan]
    assert reasons[raising].endswith("NoMargin: no margin of at least 0.1")
    assert "attempt" not in done.out  # what went wrong by itself would again
    assert len(unbuilt) == 4
    assert all("bad:backbone raised LookupError: no width is known for 16" in reasons[label] for label in unbuilt)
    root = tmp_path / "runs/faults"
    records = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    assert {record["label"] for record in records if record["status"] == "failed"} == reasons.keys()
    assert_same(tmp_path / "runs", undisturbed, trials=good)

    before = written(root, good)
    (tmp_path / "mended").touch()
    done = start(*command, BAD=str(tmp_path)).wait()
    assert done.code == 1, done.out + done.error
    assert failed(done.out).keys() == {nan} | unbuilt
    assert "6 trials to run" in done.out
    assert "2 already done" in done.out
    assert written(root, good) == before
    (trained,) = (json.loads(path.read_text()) for path in (root / "trials").iterdir() if path.stem not in good
                  and json.loads(path.read_text())["label"] == raising)  # fmt: skip
    assert trained["status"] == "trained"
    assert list((root / "scores" / trained["trial"]).glob("*.parquet"))


def test_a_metric_that_raises_costs_its_shards_alone(start: Callable, tmp_path: Path) -> None:
    # The last shard has few images.
    command = (
        "--out", tmp_path / "runs", "--set", "grid.objective=cross_entropy", "--set", "training.epochs=1",
        "--set", "evaluation.images=144", "--set", "evaluation.methods=grad_cam",
        "--set", 'evaluation.metrics="bad:metric"',
    )  # fmt: skip
    done = start(*command, BAD=str(tmp_path)).wait()
    assert done.code == 1, done.out + done.error
    ((label, reason),) = failed(done.out).items()
    assert label == "cross_entropy · resnet8 · seed 0"
    assert "images 128-143" in reason
    assert "ArithmeticError: too few images" in reason
    root = tmp_path / "runs/faults"
    (trial,) = (path.stem for path in (root / "trials").iterdir())
    before = written(root, {trial})
    assert sum("scores" in path.parts for path in before) == 2

    (tmp_path / "mended").touch()
    done = start(*command, BAD=str(tmp_path)).wait()
    assert done.code == 0, done.out + done.error
    after = written(root, {trial})
    assert before.items() <= after.items()
    assert [path.name[-21:] for path in after.keys() - before.keys() if "scores" in path.parts] == [
        "000128-000143.parquet"
    ]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images that stay in their files: enough for two shards."""
    monkeypatch.setattr(small_imagenet_s50, "TEST", 24)
    small_imagenet_s50.write(tmp_path / "photographs")
    return tmp_path / "photographs"


def test_an_image_that_breaks_is_named_and_costs_what_needs_it(
    gate, start: Callable, photographs: Path, tmp_path: Path
) -> None:
    """All images were readable when the sweep began. Then one breaks in training, and one of a later shard."""
    settings = ("--set", f"dataset={{name: imagenet_s50, root: {photographs}, image_size: 32}}",
                "--set", "evaluation.images=96")  # fmt: skip
    whole = start("--out", tmp_path / "whole", *settings).wait()
    assert whole.code == 0, whole.out + whole.error

    dataset = datasets.load(config.DatasetConfig(name="imagenet_s50", root=str(photographs), image_size=32))
    assert isinstance(dataset.train_images, ImageFiles)
    assert isinstance(dataset.test_images, ImageFiles)
    # Of the training images, the first of each class are compared with in evaluation.
    last = [
        photographs / dataset.train_images.names[-1],
        photographs / dataset.test_images.names[dataset.evaluation_order[-1]],
    ]
    contents = {path: path.read_bytes() for path in last}

    gate.close("training", after=1)  # of one step an epoch
    gate.close("shard")
    command = ("--out", tmp_path / "runs", *settings)
    with cluster(num_cpus=2) as address:
        running = start(*command, "--address", address)
        gate.wait("training")
        gate.wait("shard")  # on the one slot that is left
        for path, content in contents.items():
            path.write_bytes(content[: len(content) // 2])
        gate.open("training")
        gate.open("shard")
        done = running.wait()
    assert done.code == 1, done.out + done.error
    reasons = failed(done.out)
    assert reasons.keys() == {"cross_entropy · resnet8 · seed 0", "gate:loss · resnet8 · seed 0"}
    for path, label in zip(contents, sorted(reasons, reverse=True), strict=True):
        assert f"{path}: cannot be read as an image" in reasons[label]

    for path, content in contents.items():
        path.write_bytes(content)
    done = start(*command).wait()
    assert done.code == 0, done.out + done.error
    assert_same(tmp_path / "runs", tmp_path / "whole")
