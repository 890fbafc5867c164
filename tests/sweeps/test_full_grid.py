"""The command: run, run again, extend, dry run, and every refusal."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, Outcome, small

from scl_ray import lock
from scl_ray.store import open_store

Run = Callable[..., Outcome]


def parts(out: Path) -> dict[str, int]:
    """Every file that a sweep computes, with the time it was written."""
    kinds = ("trials", "checkpoints", "scores", "predictions", "curves", "samples")
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for k in kinds for p in (out / "demo" / k).rglob("*.*")}


def new_since(before: dict[str, int], out: Path) -> set[str]:
    return {path for path, written in parts(out).items() if before.get(path) != written}


def test_the_layout_is_as_promised(finished_sweep: Path) -> None:
    root = finished_sweep / "demo"
    plan = json.loads((root / "plan.json").read_text())
    assert len(plan["trials"]) == 4
    for trial in plan["trials"]:
        record = json.loads((root / "trials" / f"{trial}.json").read_text())
        assert record["status"] == "trained"
        assert [row["epoch"] for row in record["epochs"]] == [1, 2]
        # What resuming needed is gone, and the checkpoint is whole.
        assert {p.name for p in (root / "checkpoints" / trial).iterdir()} == {"weights.safetensors", "checkpoint.json"}
        scores = pq.read_table(root / "scores" / trial)
        assert scores.column_names == ["trial", "image", "method", "metric", "value"]
        # 3 methods x 4 metrics, but Eigen-CAM has no class to contrast; both protocols; 80 images.
        assert scores.num_rows == (3 * 4 - 1) * 2 * 80
        assert (
            len(set(zip(*(scores[c].to_pylist() for c in ("image", "method", "metric")), strict=True)))
            == scores.num_rows
        )
        readouts = {p.name.split("-")[0] for p in (root / "predictions" / trial).iterdir()}
        assert readouts == set(record["readouts"].values())
    assert (root / "report/index.html").stat().st_size > 10_000
    assert not (root / ".tune").exists()
    assert yaml.safe_load((root / "sweep.yaml").read_text())["name"] == "demo"
    assert (finished_sweep / "mlflow.db").exists()
    assert not [path for path in finished_sweep.rglob("*") if "=" in path.name]


def test_its_log_tells_each_event_with_its_trial(finished_sweep: Path) -> None:
    (path, *_) = sorted((finished_sweep / "demo/logs").iterdir())
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in told[:2]] == ["run started", "plan"]
    assert (told[-1]["event"], told[-1]["code"]) == ("run ended", 0)
    for trial in json.loads((finished_sweep / "demo/plan.json").read_text())["trials"]:
        of = [line for line in told if line.get("trial") == trial]
        assert [line["event"] for line in of[:4]] == ["training started", "epoch", "epoch", "trained"]
        assert of[-1]["event"] == "evaluated"
        images = [n for line in of if line["event"] == "shard" for n in range(line["first"], line["last"] + 1)]
        assert sorted(images) == list(range(80))


def test_status_tells_a_complete_sweep_and_what_one_lacks(sweep_copy: Path, run: Run) -> None:
    complete = run(*small(), "--out", sweep_copy, "--status")
    assert complete.code == 0, complete.error
    assert "trials  4: 4 done" in complete.out
    assert "missing nothing" in complete.out
    part, *_ = sorted((sweep_copy / "demo/scores").rglob("*.parquet"))
    absent = pq.read_metadata(part).num_rows
    part.unlink()
    lacking = run(*small(), "--out", sweep_copy, "--status")
    assert "trials  4: 1 evaluating, 3 done" in lacking.out
    assert f"missing {absent:,} scores" in lacking.out


def test_evaluation_overlaps_training(finished_sweep: Path) -> None:
    root = finished_sweep / "demo"
    first_score = min(path.stat().st_mtime for path in (root / "scores").rglob("*.parquet"))
    last_trained = max(path.stat().st_mtime for path in (root / "trials").iterdir())
    assert first_score < last_trained


def test_the_same_command_computes_nothing(sweep_copy: Path, run: Run) -> None:
    before = parts(sweep_copy)
    first = run(*small(), "--out", sweep_copy)
    again = run(*small(), "--out", sweep_copy)
    assert first.code == again.code == 0
    assert not new_since(before, sweep_copy)
    assert "accuracy" in again.out
    assert again.out == first.out
    for where in ("report/index.html", "scores", "mlflow ui"):
        assert where in again.out


def test_one_more_metric_is_all_that_is_computed(sweep_copy: Path, run: Run) -> None:
    before = parts(sweep_copy)
    metrics = "evaluation.metrics=[pixel_flipping_auc, ssim_continuity, ssim_contrastivity, complexity, sparseness]"
    done = run(*small(metrics, "evaluation.protocol=corrected"), "--out", sweep_copy)
    assert done.code == 0, done.error
    fresh = new_since(before, sweep_copy)
    assert {path.split("/")[1] for path in fresh} == {"scores", "samples"}
    for path in fresh:
        if "/scores/" in path:
            table = pq.read_table(sweep_copy / path)
            assert set(table["metric"].to_pylist()) == {"sparseness"}
    assert "sparseness" in (sweep_copy / "demo/report/index.html").read_text()


def test_what_is_new_or_lost_is_computed_and_nothing_else(sweep_copy: Path, run: Run) -> None:
    before = parts(sweep_copy)
    root = sweep_copy / "demo"
    known, lost = json.loads((root / "plan.json").read_text())["trials"][:2]
    weights = root / "checkpoints" / lost / "weights.safetensors"
    first_weights = weights.read_bytes()
    shutil.rmtree(weights.parent)
    done = run(
        *small("grid.seed=[0, 1, 2]", "grid.objective=cross_entropy", "evaluation.images=90"), "--out", sweep_copy
    )
    assert done.code == 0, done.error
    planned = json.loads((root / "plan.json").read_text())["trials"]
    assert planned[:2] == [known, lost]
    fresh = new_since(before, sweep_copy)
    assert f"demo/trials/{planned[2]}.json" in fresh
    # The known trial is neither trained again nor evaluated again on the images it had.
    more_images = {path for path in fresh if path.endswith("-000080-000089.parquet")}
    assert {path for path in fresh if known in path} <= more_images
    assert len(set(pq.read_table(root / "scores" / known, columns=["image"])["image"].to_pylist())) == 90
    # A lost checkpoint is trained again, to the same weights; its scores are still there.
    assert weights.read_bytes() == first_weights
    assert {path for path in fresh if lost in path and "/scores/" in path} <= more_images


def test_pruning_leaves_what_the_same_command_finds_complete(sweep_copy: Path, run: Run) -> None:
    smaller = [*small("grid.seed=0", "evaluation.metrics=[complexity, ssim_continuity]"), "--out", sweep_copy]
    before = parts(sweep_copy)
    listed = run(*smaller, "--prune")
    assert listed.code == 0, listed.error
    assert listed.out.count("not in the grid") == 2
    assert listed.out.count("cells not wanted") == 2
    assert "nothing was removed" in listed.out
    assert parts(sweep_copy) == before

    with lock.held(open_store(str(sweep_copy), "demo"), lost=print):
        refused = run(*smaller, "--prune", "--yes")
    assert refused.code == 2
    assert "is being written by" in refused.error
    assert parts(sweep_copy) == before

    assert run(*smaller, "--prune", "--yes").code == 0
    kept = parts(sweep_copy)
    assert len(list((sweep_copy / "demo/trials").iterdir())) == 2
    assert not [path for path in (sweep_copy / "demo").rglob("*") if path.is_dir() and not list(path.iterdir())]
    again = run(*smaller)
    assert again.code == 0, again.error
    assert not new_since(kept, sweep_copy)
    metrics = set(pq.read_table(sweep_copy / "demo/scores")["metric"].to_pylist())
    assert {metric.partition("[")[0] for metric in metrics} == {"complexity", "ssim_continuity"}
    assert "holds nothing that the configuration does not want" in run(*smaller, "--prune").out


def test_a_dry_run_counts_and_writes_nothing(sweep_copy: Path, tmp_path: Path, run: Run) -> None:
    before = sorted(sweep_copy.rglob("*"))
    done = run(*small("grid.seed=[0, 1, 2]"), "--out", sweep_copy, "--dry-run")
    assert done.code == 0, done.error
    assert "6 trials" in done.out
    assert "4 of 6 trials trained" in done.out
    assert "to train: 2 trials, 4 epochs" in done.out
    assert "eigen_cam x ssim_contrastivity" in done.out
    assert "forward passes" in done.out
    assert "estimate: about" in done.out
    assert sorted(sweep_copy.rglob("*")) == before

    fresh = tmp_path / "nowhere"
    assert "0 of 4 trials trained" in run(*small(), "--out", fresh, "--dry-run").out
    assert not fresh.exists()


def test_a_dry_run_needs_no_data(tmp_path: Path, run: Run) -> None:
    done = run("--dry-run", "--out", tmp_path / "runs", f"--set=dataset.root={tmp_path}")
    assert done.code == 0, done.error
    assert "140 trials" in done.out
    assert "what is already done cannot be told" in done.out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_what_this_machine_is_too_small_for(tmp_path: Path, run: Run) -> None:
    recipe = ROOT / "sweeps" / "paper_imagenet_s50.yaml"
    done = run("--config", recipe, "--set=resources.train.cpus=4096", f"--set=dataset.root={tmp_path}", "--dry-run")
    assert done.code == 0, done.error
    assert "15 trials" in done.out
    assert "to train: 15 trials, 2,400 epochs of 57,988 images" in done.out
    assert "x pointing_game" not in done.out  # its masks are known to be there
    assert "too small to run it" in done.out
    assert "GPU-hours" in done.out


def test_a_dry_run_counts_trials_of_a_folder_that_is_not_there(tmp_path: Path, run: Run) -> None:
    folder = f"dataset={{name: image_folder, root: {tmp_path / 'nowhere'}}}"
    done = run(*small(folder), "--out", tmp_path / "runs", "--dry-run")
    assert done.code == 0, done.error
    assert "to train: 4 trials, 8 epochs" in done.out
    assert "the cost cannot be told" in done.out


def test_users_own_parts_run_on_the_workers_and_a_failed_trial_is_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "my_parts.py").write_text(
        "import torch\n\n"
        "def pull(embeddings, labels, weight=1.0):\n"
        "    same = labels[:, None] == labels\n"
        "    distance = torch.cdist(embeddings, embeddings)\n"
        "    return weight * (distance[same].mean() + (1 - distance[~same]).relu().mean())\n\n"
        "def centre(model, images, targets, width=0.2):\n"
        "    line = torch.linspace(-1, 1, images.shape[-1])\n"
        "    bump = torch.exp(-(line[:, None] ** 2 + line**2) / width)\n"
        "    return bump.expand(len(images), -1, -1)\n\n"
        "def peak(model, images, targets, maps):\n"
        "    return maps.flatten(1).amax(1)\n"
    )
    settings = yaml.safe_load((ROOT / "sweeps/demo.yaml").read_text())
    diverges = {"name": "triplet", "training": {"learning_rate": 1e30}}
    settings["grid"] = {"objective": [{"name": "my_parts:pull"}, diverges], "backbone": "resnet8", "seed": 0}
    settings["training"] |= {"epochs": 1, "batch_size": 128}
    settings["evaluation"] = {"images": 20, "methods": ["my_parts:centre"], "metrics": ["my_parts:peak", "complexity"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    done = run("--config", path, "--out", tmp_path / "runs")
    sys.modules.pop("my_parts", None)

    assert done.code == 1, done.out + done.error
    assert "triplet margin=0.3 · resnet8 · seed 0" in done.out
    assert "not finite" in done.out
    records = [json.loads(record.read_text()) for record in (tmp_path / "runs/demo/trials").iterdir()]
    assert {record["configuration"]["objective"]["name"]: record["status"] for record in records} == {
        "my_parts:pull": "trained",
        "triplet": "failed",
    }
    (folder,) = (tmp_path / "runs/demo/scores").iterdir()
    scores = pq.read_table(folder).to_pandas()
    peaks = scores[scores.metric == "my_parts:peak"].value
    assert len(peaks) == 20
    assert peaks.between(0.9, 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set=training.epoch=3"], "training.epoch"),
        (["--set=grid.objective=[{name: cross_entropy, temperature: 1}]"], "cross_entropy.temperature"),
        (["--config=none.yaml"], "none.yaml: cannot be read"),
        (["--set=evaluation.images=1000000"], "evaluation.images"),
        (["--set=evaluation.metrics=['pixel_flipping_auc[features_per_step=5000]']"], "features_per_step"),
        (["--set=grid.backbone=resnet18", "--set=dataset.image_size=8"], "resnet18"),
        (["--set=dataset={name: cifar10, root: nowhere}"], "nowhere"),
        (["--set=dataset={name: image_folder, root: nowhere}"], "nowhere"),
        (["--set=evaluation.methods=eigen_cam", "--set=evaluation.metrics=ssim_contrastivity"], "evaluation"),
        (["--address=ray://127.0.0.1:10001"], "ray job submit"),
        (["--address=127.0.0.1:1"], "no Ray cluster answers"),
        (["--address=auto"], "no Ray cluster"),
        (["--out=s3://bucket/runs"], "MLFLOW_TRACKING_URI"),
        (["--out=nosuch://bucket"], "nosuch"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--yes"], "--yes: only confirms --prune"),
        (["--prune", "--dry-run"], "--prune: goes with none of"),
        (["--set=resources.train.cpus=4096"], "resources"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], expected: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    done = run(*small(), *arguments)
    assert done.code == 2
    assert expected in done.error
    assert "Traceback" not in done.error
    assert len(done.error.strip().splitlines()) == 1 or "usage:" in done.error
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("trials"))
    assert time.monotonic() - started < 15 or "resources" in expected


def test_a_server_that_is_no_cluster_is_refused(tmp_path: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        # It takes connections and never says a word.
        started = time.monotonic()
        done = run(*small(), "--out", tmp_path / "runs", "--address", f"127.0.0.1:{server.getsockname()[1]}")
    assert done.code == 2
    assert "no Ray cluster answers" in done.error
    assert time.monotonic() - started < 15


def test_an_unwritable_out_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    done = run(*small(), "--out", tmp_path / "file" / "runs")
    assert done.code == 2
    assert "cannot be written" in done.error


def test_two_writers_of_one_sweep(sweep_copy: Path, run: Run) -> None:
    hold = (
        "import sys, time; from scl_ray import lock, store\n"
        "with lock.held(store.open_store(sys.argv[1], 'demo'), lost=print):\n"
        "    print('held', flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, sweep_copy], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    refused = run(*small(), "--out", sweep_copy)
    assert refused.code == 2
    assert f"process {holder.pid}" in refused.error
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert run(*small(), "--out", sweep_copy).code == 0
