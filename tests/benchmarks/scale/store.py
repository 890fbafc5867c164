"""Measures the store of a billion scores, and of 10,000 trials.

python tests/benchmarks/scale/store.py > store.json  # in the folder figures; about 5 GB of --folder while it runs

The scores are generated, float32 numbers of full mantissas round a mean that differs by objective, method and metric;
what plans, cuts, writes and reads them is what a sweep uses. Each reading is a process of its own. A file of figures
holds the command that made it and two sections:
table    a billion scores: bytes a score (at most 6 asked for); seconds and memory of the paper's table: the mean of
         each objective, method and metric over correctly classified images (at most 30 s and 2 GB on two cores)
missing  10,000 trials, all finished: seconds in which a run plans what is missing, and `results.missing` lists it (at
         most 10 s); and in which a sweep of which nothing is done is planned, with its shards
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scl_ray import config, datasets, plan, results, session
from scl_ray.attribution import METHODS
from scl_ray.config import DatasetConfig, Sweep
from scl_ray.datasets import Dataset
from scl_ray.datasets.splits import stratified_order
from scl_ray.metrics import METRICS
from scl_ray.parts import Shard, evaluation
from scl_ray.plan import Plan
from scl_ray.store import Store, open_store

FULL_GRID = Path(__file__).parents[3] / "sweeps" / "full_grid.yaml"
SLOTS = 64
BATCH = 256  # images that a shard explains together
EPOCHS = 200  # in a trial's record
GIB = 2**30


def table(folder: Path, rounds: int, share: float) -> dict[str, Any]:
    """The full grid's 140 trials with 22 methods, every metric and all test images; of *share* 0.1, 14 trials."""
    seeds = max(1, round(5 * share))
    sweep = config.load(FULL_GRID, [
        f"grid.seed={list(range(seeds))}", f"evaluation.methods={list(METHODS)[:22]}",
        f"evaluation.metrics={list(METRICS)}", "evaluation.images=10000",
    ])  # fmt: skip
    if share < 0.2:
        sweep = sweep.model_copy(update={"grid": sweep.grid.model_copy(update={"backbone": sweep.grid.backbone[:1]})})
    planned, made = _write(sweep, folder)
    scores = len(planned.trials) * len(planned.cells) * planned.images
    size = {kind: sum(path.stat().st_size for path in (folder / sweep.name / kind).rglob("*.parquet"))
            for kind in ("scores", "predictions")}  # fmt: skip
    return {
        "trials": len(planned.trials), "cells": len(planned.cells), "images": planned.images, "scores": scores,
        "bytes_a_score": size["scores"] / scores, "with_predictions": sum(size.values()) / scores, "written": made,
        "rows": _apart(_paper_table, folder, sweep.name, rounds=1)["found"],
        "own_images": _apart(_paper_table, folder, sweep.name, rounds=rounds),
        "common_images": _apart(_common_table, folder, sweep.name, rounds=rounds),
    }  # fmt: skip


def missing(folder: Path, rounds: int, share: float) -> dict[str, Any]:
    """20 objectives, two backbones and 250 seeds on 2,000 images. The parts hold one image: only names and footers are
    read."""
    temperatures = [round(0.05 * step, 2) for step in range(1, 10)]
    objectives = ["cross_entropy", "triplet", *({"name": name, "temperature": temperatures}
                                                for name in ("supcon", "simclr"))]  # fmt: skip
    sweep = config.load(FULL_GRID, [f"grid.objective={json.dumps(objectives)}",
                                    f"grid.seed={list(range(round(250 * share)))}"])  # fmt: skip
    fresh = _apart(_planned, folder, sweep.model_dump_json(), rounds=rounds)
    planned, made = _write(sweep, folder, rows=1)
    return {
        "trials": len(planned.trials), "cells": len(planned.cells), "images": planned.images,
        "parts": sum(1 for _ in (folder / sweep.name).rglob("*.parquet")), "written": made,
        "planned_fresh": fresh,
        "planned_finished": _apart(_planned, folder, sweep.model_dump_json(), rounds=rounds),
        "listed": _apart(_listed, folder, sweep.name, rounds=rounds),
    }  # fmt: skip


def _paper_table(folder: Path, name: str) -> dict[str, int]:
    return _grouped(folder, name, images="own")


def _common_table(folder: Path, name: str) -> dict[str, int]:
    return _grouped(folder, name, images="common")


def _grouped(folder: Path, name: str, **images: Any) -> dict[str, int]:
    opened = results.open_results(str(folder), name)
    means = results.trial_means(opened, **images).merge(opened.trials[["trial", "objective_label"]].astype(str))
    rows = means.groupby(["objective_label", "method", "metric"], observed=True)["mean"].mean()
    return {"rows": len(rows), "scores": int(means["images"].sum() + means["undefined"].sum())}


def _planned(folder: Path, sweep: str) -> dict[str, int]:
    wanted = Sweep.model_validate_json(sweep)
    found = plan.make(wanted, _pictures(), open_store(str(folder), wanted.name), SLOTS)
    return {"trials": len(found.work), "shards": sum(len(work.shards) for work in found.work.values())}


def _listed(folder: Path, name: str) -> dict[str, int]:
    return {"ranges": len(results.missing(str(folder), name))}


def _apart(read: Callable[..., dict[str, int]], *arguments: object, rounds: int) -> dict[str, Any]:
    """Medians over processes of their own: seconds and CPU seconds of the call, and the process's greatest memory."""
    ways = multiprocessing.get_context("spawn")
    found = []
    for _ in range(rounds):
        ours, theirs = ways.Pipe()
        process = ways.Process(target=_timed, args=(theirs, read, arguments))
        process.start()
        found.append(ours.recv())
        process.join()
    middle = {key: statistics.median(one[key] for one in found) for key in ("seconds", "cpu_seconds", "peak_gib")}
    return {**middle, "found": found[0]["found"]}


def _timed(pipe: Any, read: Callable[..., dict[str, int]], arguments: tuple[object, ...]) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    found = read(*arguments)
    pipe.send({
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, "found": found,
    })  # fmt: skip


def _pictures() -> Dataset:
    """As many test images as CIFAR-10 has, which nobody looks at here, with as many classes."""
    digits = datasets.load(DatasetConfig(name="digits", image_size=32))
    labels = np.arange(10_000) % 10
    return replace(digits, name="cifar10", test_images=np.zeros((10_000, 3, 32, 32), np.uint8), test_labels=labels,
                   evaluation_order=stratified_order(labels))  # fmt: skip


def _write(sweep: Sweep, folder: Path, rows: int | None = None) -> tuple[Plan[Any], dict[str, float]]:
    """A finished sweep; every part has *rows* images, or all of its own. Returns what was planned, and what it took."""
    started = time.perf_counter()
    dataset, store = _pictures(), open_store(str(folder), sweep.name)
    planned = plan.make(sweep, dataset, store, SLOTS)
    session.write_plan(store, planned, dataset)
    with multiprocessing.get_context("spawn").Pool(
        initializer=_prepare, initargs=(store, planned, dataset, rows)
    ) as pool:
        for _ in pool.imap_unordered(_write_trial, planned.trials, chunksize=4):
            pass
    return planned, {"seconds": time.perf_counter() - started}


_TASK: dict[str, Any] = {}  # of a process that writes


def _prepare(store: Store, planned: Plan[Any], dataset: Dataset, rows: int | None) -> None:
    _TASK.update(store=store, plan=planned, dataset=dataset, rows=rows)


def _write_trial(trial_id: str) -> None:
    store, planned = _TASK["store"], _TASK["plan"]
    trial = planned.trials[trial_id]
    random = np.random.default_rng(int(trial_id, 16))
    means = np.random.default_rng(len(trial.objective_label)).uniform(0.1, 0.9, len(planned.cells)).astype(np.float32)
    kept = plan.readouts(trial.readout, planned.sweep.evaluation)
    epochs = [{"epoch": epoch, "loss": float(random.random()), "seconds": 21.5, "images_per_second": 2100.5,
               "validation_prototype_accuracy": float(random.random())} for epoch in range(1, EPOCHS + 1)]  # fmt: skip
    store.write_checkpoint(trial_id, {"checkpoint.json": b"{}", "weights.safetensors": b""})
    store.write_record(trial_id, {
        **planned.trial_record(trial), "status": "trained", "checkpoint": f"checkpoints/{trial_id}", "epochs": epochs,
        "readouts": dict(zip(planned.sweep.evaluation.protocol, kept, strict=True)), "metrics": {"accuracy/knn": 0.9},
    })  # fmt: skip
    for shard in planned.work[trial_id].shards:
        _write_shard(store, trial_id, shard, means, random)


def _write_shard(
    store: Store, trial_id: str, shard: Shard, means: np.ndarray[Any, Any], random: np.random.Generator
) -> None:  # fmt: skip
    dataset, images = _TASK["dataset"], _TASK["rows"] or shard.images
    chosen = dataset.evaluation_order[shard.first : shard.first + images].astype(np.int32)
    labels = dataset.test_labels[chosen].astype(np.int32)
    prediction = np.where(random.random(images) < 0.93, labels, (labels + 1) % 10).astype(np.int32)
    confidence = random.random(images, np.float32)
    for readout in shard.readouts:
        store.write_part("predictions", trial_id, readout, shard.first, shard.last, pa.table({
            "image": chosen, "label": labels, "prediction": prediction, "confidence": confidence,
        }))  # fmt: skip
    # As `evaluation.evaluate` gives them: batch by batch, in each of these cell by cell.
    batches = np.array_split(chosen, range(BATCH, images, BATCH))
    image = np.concatenate([np.tile(batch, len(shard.cells)) for batch in batches])
    cell = np.concatenate([np.repeat(np.arange(len(shard.cells)), len(batch)) for batch in batches])
    value = random.standard_normal(len(image), np.float32) * np.float32(0.1) + means[cell]
    columns = {}
    for key in ("method", "metric"):
        names = list(dict.fromkeys(getattr(v.cell, key) for v in shard.cells))
        codes = np.array([names.index(getattr(v.cell, key)) for v in shard.cells], np.int32)
        columns[key] = pa.DictionaryArray.from_arrays(codes[cell], names)
    # One in a thousand is undefined, as where a map is constant.
    table = pa.table({"image": image, **columns, "value": pa.array(value, mask=random.random(len(value)) < 1e-3)})
    store.write_part("scores", trial_id, evaluation(shard.cells), shard.first, shard.last, table, shard.cells)


SECTIONS = {"table": table, "missing": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the store is written and removed; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the scores and trials asked for")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/scale/store.py", *sys.argv[1:]]),
        **_machine(),
        "rounds": options.rounds,
    }
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            started = time.perf_counter()
            found[name] = SECTIONS[name](Path(folder), options.rounds, options.share)
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps(_rounded(found), indent=2))


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {next(iter(names), '')}",
        "disk_free_gib": shutil.disk_usage(tempfile.gettempdir()).free / GIB,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pyarrow", "duckdb", "numpy", "pandas")},
        "date": time.strftime("%F"),
    }


def _rounded(value: Any) -> Any:
    """To four digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
