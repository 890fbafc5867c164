"""Measures planning: from a configuration of 10,000 trials to 100,000 shards, and their order, over an empty store.

python tests/benchmarks/scale/planning.py > tests/benchmarks/scale/figures/planning.json
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from scl_ray import config, cost, datasets, hand_off, plan
from scl_ray.datasets import Dataset
from scl_ray.store import open_store

DEMO = Path(__file__).parents[3] / "sweeps/demo.yaml"
SLOTS = 1000
IMAGES = 10_000


def of_many_images() -> Dataset:
    """The digits, their test images again and again."""
    digits = datasets.load(config.load(DEMO).dataset)
    rows = np.arange(IMAGES) % len(digits.test_labels)
    return replace(digits, test_images=digits.test_images[rows], test_labels=digits.test_labels[rows],
                   evaluation_order=np.arange(IMAGES))  # fmt: skip


def once(trials: int, dataset: Dataset) -> dict[str, float]:
    """CPU seconds that each step takes."""
    objectives = "grid.objective=[cross_entropy, {name: supcon, temperature: [0.05, 0.1, 0.5]}]"
    seeds, backbones = f"grid.seed={list(range(trials // 8))}", "grid.backbone=[resnet8, resnet20]"
    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        sweep = config.load(DEMO, [objectives, seeds, backbones, f"evaluation.images={IMAGES}"])
        read = time.process_time()
        found = plan.make(sweep, dataset, open_store(out, sweep.name), SLOTS)
        planned = time.process_time()
        order = hand_off.longest_first(cost.of_trials(found, len(dataset.train_labels)))
        ordered = time.process_time()
    shards = sum(len(work.shards) for work in found.work.values())
    assert len(order) == trials
    return {
        "shards": shards, "configuration_cpu_s": read - started, "plan_cpu_s": planned - read,
        "order_cpu_s": ordered - planned,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    dataset = of_many_images()
    found = {}
    for trials in options.trials:
        runs = [once(trials, dataset) for _ in range(options.repeat)]
        found[trials] = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    print(json.dumps({
        "command": " ".join(["python", "tests/benchmarks/scale/planning.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"pydantic": version("pydantic")},
        "date": time.strftime("%F"),
        "cells": len(plan.cells_of(config.load(DEMO), has_masks=False)[0]),
        "median": found,
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
