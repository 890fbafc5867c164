"""Measures what following a sweep costs its driver: the live view, and what is logged to MLflow meanwhile.

python tests/benchmarks/scale/live_cost.py [--only sweep] > tests/benchmarks/scale/figures/live_cost.json

Everything is in CPU seconds of the thread that does it. At most a hundredth of a sweep is asked for.
sweep  the demo, with a terminal to draw on: each part's CPU seconds, and its share of the seconds that its slots had
many   a sweep of so many trials of 5 epochs and 4 shards, played to the view and to MLflow (SQLite): what one report
       costs, what drawing the view costs, twice a second, and what logging one trial and one network costs, in
       milliseconds; and the share of the slots' seconds where a trial takes a minute on one of a hundred slots. The
       first network of an architecture is traced, and the first of all has what that takes imported; the share is
       with a further one. All are resnet8 for images of 32x32 pixels
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.live import Live

from scl_ray import backbones, checkpoint, config, datasets, plan, session, tracker, tracking
from scl_ray.cluster import driver
from scl_ray.cluster.progress import Progress
from scl_ray.store import Store, open_store

DEMO = Path(__file__).parents[3] / "sweeps/demo.yaml"
EPOCHS, SHARDS = 5, 4
NETWORKS = 10  # that are logged after the first
MINUTE, SLOTS = 60.0, 100  # of the sweep of many trials: how long one takes, and on how many slots


def demo() -> dict[str, Any]:
    """The demo's CPU seconds by part, and their share."""
    spent: dict[str, float] = defaultdict(float)
    seen: list[Progress] = []

    def remembered(*arguments: Any) -> Progress:
        seen.append(Progress(*arguments))
        return seen[-1]

    with tempfile.TemporaryDirectory() as out, ExitStack() as patches, Path(os.devnull).open("w") as terminal:
        for owner, name, part in (
            (Progress, "update", "view"), (Live, "refresh", "view"), (tracker, "log_sweep", "runs while it runs"),
            (tracker, "log_networks", "networks while it runs"), (session.tracking, "log_sweep", "runs at the end"),
            (session.tracking, "log_networks", "networks at the end"),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(owner, name, _counted(getattr(owner, name), part, spent)))
        patches.enter_context(mock.patch.object(driver, "Progress", remembered))
        # What is read of MLflow, once, counts for itself: a sweep of any size has it once.
        before = time.thread_time()
        tracking.connection.client_class()
        spent["MLflow's import"] = time.thread_time() - before
        code = driver.run(config.load(DEMO), out, None, Console(file=terminal, force_terminal=True, width=120))
    if code:
        raise SystemExit("the demo failed")
    offered = seen[0].seconds * seen[0].slots
    return {
        "slot_seconds": offered,
        "cpu_seconds": dict(spent),
        "share": {part: seconds / offered for part, seconds in spent.items()},
        "share_of_view_and_runs": sum(s for part, s in spent.items() if part.startswith(("view", "runs"))) / offered,
    }


def many(trials: int) -> dict[str, float]:
    """Milliseconds of a report, of a refresh and of logging a trial and a network, and the share of the slots' time."""
    sweep = config.load(DEMO, [f"grid.seed={list(range(trials // 4))}", "evaluation.images=256"])
    with tempfile.TemporaryDirectory() as out, Path(os.devnull).open("w") as terminal:
        store = open_store(out, "many")
        planned = plan.make(sweep, datasets.load(sweep.dataset), store, SLOTS)
        progress = Progress(planned, SLOTS, Console(file=terminal, force_terminal=True, width=120, height=50))
        reports: list[float] = []
        drawn: list[float] = []
        with mock.patch.object(Live, "start"), mock.patch.object(Live, "stop"), progress:
            for number, trial in enumerate(planned.work):
                with _timed(reports):
                    for report in _reports():
                        progress.update(trial, report)
                if number % (trials // 10) == 0:
                    with _timed(drawn):
                        progress.console.print(progress._view())
        uri = tracking.tracking_uri(out)
        tracking.log_sweep(uri, "many", [], {})
        logged: list[float] = []
        records = [_record(planned, trial) for trial in planned.work]
        for first in range(0, trials, 20):  # what ends within two flushes
            with _timed(logged):
                tracking.log_sweep(uri, "many", records[first : first + 20], {}, status="RUNNING")
        networks: list[float] = []
        _write_images(store, seed=trials)
        for record in records[: 1 + NETWORKS]:
            store.write_checkpoint(record["trial"], _network())
            store.write_record(record["trial"], {"status": "trained"})
            with _timed(networks):  # one at a time, as while trials end
                lacking = tracking.log_networks(uri, "many", store, [record])
            assert not lacking
    count = len(list(_reports()))  # of one trial
    report, refresh, trial, network = (1e3 * statistics.median(each) for each in (reports, drawn, logged, networks[1:]))
    # Every second of the sweep draws twice and offers SLOTS seconds; every trial is reported and logged.
    share = 1e-3 * (2 * refresh / SLOTS + (report + trial / 20 + network) / MINUTE)
    return {
        "report_ms": report / count, "refresh_ms": refresh, "trial_logged_ms": trial / 20,
        "first_network_logged_ms": 1e3 * networks[0], "network_logged_ms": network, "share": share,
    }  # fmt: skip


def _reports() -> Iterator[dict[str, Any]]:
    yield {"phase": "training", "reached": {}}
    yield {"phase": "training", "reached": {"earlier": []}}
    for epoch in range(1, EPOCHS + 1):
        yield {"phase": "training", "reached": {"epoch": epoch, "loss": 1.0 / epoch, "seconds": 1.0}}
    yield {"phase": "training", "reached": {"slot_seconds": 6.0}}
    yield {"phase": "trained"}
    for _ in range(SHARDS):
        yield {"phase": "evaluating", "shard_images": 64, "first": 0, "last": 63, "slot_seconds": 1.0, "node": "node"}
    yield {"phase": "done"}


def _record(planned: plan.Plan[Any], trial: str) -> dict[str, Any]:
    rows = [{"epoch": epoch, "loss": 1.0 / epoch, "learning_rate": 0.1, "seconds": 1.0, "images_per_second": 1e3}
            for epoch in range(1, EPOCHS + 1)]  # fmt: skip
    measured = {f"geometry/measure_{number}": 0.5 for number in range(30)}
    return {
        "trial": trial, "status": "trained", **planned.trial_record(planned.trials[trial]), "epochs": rows,
        "metrics": measured, "seconds": 6.0, "workers": 1, "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def _network() -> dict[str, bytes]:
    """The files of a network with random weights."""
    built, outputs = backbones.build("resnet8", 32), torch.randn(10, 64)
    return checkpoint.to_files(checkpoint.Checkpoint(
        backbone_name="resnet8", backbone=built, readout="own_layer", weight=outputs, bias=torch.randn(10),
        temperature=1.0 + float(torch.rand(())), prototypes=outputs.clone(), classes=tuple("0123456789"), image_size=32,
        mean=(0.5,) * 3, std=(0.5,) * 3,
    ))  # fmt: skip


def _write_images(store: Store, seed: int) -> None:
    """A sample of two images. Graphs are kept by the example, too: with other images the first network is traced."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3 * 32 * 32), np.uint8)
    sizes = {"channels": [3, 3], "height": [32, 32], "width": [32, 32]}
    store.write_table("samples/images.parquet", pa.table({**sizes, "pixels": list(pixels)}))


@contextmanager
def _timed(spans: list[float]) -> Iterator[None]:
    started = time.thread_time()
    yield
    spans.append(time.thread_time() - started)


def _counted(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] += time.thread_time() - started

    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--only", choices=["sweep", "many"], nargs="+", default=["sweep", "many"])
    options = parser.parse_args()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/scale/live_cost.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {next(iter(names), platform.processor())}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "mlflow", "rich", "torch")},
        "date": time.strftime("%F"),
    }
    if "sweep" in options.only:
        found["sweep"] = demo()
    if "many" in options.only:
        found["many"] = {trials: many(trials) for trials in options.trials}
    print(json.dumps(_rounded(found), indent=2))


def _rounded(value: Any) -> Any:
    """To four digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
