"""Measures what a sweep costs beside its work: the driver's time for each trial and shard, and its memory.

python tests/benchmarks/scale/driver.py > tests/benchmarks/scale/figures/driver.json

Everything runs as it is, Tune, coordinators, permits, store, MLflow and report, on a real cluster of this machine; only
what a slot would compute is replaced: training waits for a second, and a shard writes whole parts of made-up scores.
Each size is a process of its own, of which this tells memory and CPU seconds: those of all its threads, and of the
process that it has write the report. What a trial costs is told from what a shard costs by a second run whose trials
have many more shards.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before anything imports Ray.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from scl_ray import backbones, checkpoint, config, plan, session, tracker
from scl_ray.cluster import coordinator, driver
from scl_ray.cluster.connection import ray
from scl_ray.config import Cell
from scl_ray.parts import Shard, evaluation
from scl_ray.store import Store

DEMO = Path(__file__).parents[3] / "sweeps/demo.yaml"
SIZES = ((4, 250, 4), (4, 1000, 4), (4, 2000, 4), (8, 250, 4), (8, 1000, 4), (8, 2000, 4), (8, 250, 24))
TRAINING = float(os.environ.get("T", "1.0"))  # seconds
IMAGES = 240
QUARTERS = (0.25, 0.5, 0.75, 1)
LOOK_EVERY = 1.0  # seconds between two looks at the driver's memory


def settings(trials: int) -> list[str]:
    return [
        "grid.objective=cross_entropy", f"grid.seed={list(range(trials))}", "training.epochs=1",
        f"evaluation.images={IMAGES}", "evaluation.methods=grad_cam", "evaluation.metrics=[complexity, sparseness]",
    ]  # fmt: skip


def train(
    store: Store, trial_id: str, trial: config.Trial, about: Mapping[str, Any], **_: Any
) -> Iterator[dict[str, Any]]:
    """As `tasks.train`, of a training that takes a second and computes nothing."""
    yield {}
    yield {"earlier": []}
    time.sleep(TRAINING)
    epoch = {"epoch": 1, "loss": 1.0, "seconds": TRAINING, "images_per_second": 1000.0}
    yield epoch
    store.write_checkpoint(trial_id, network())
    store.write_record(trial_id, {
        **about, "status": "trained", "checkpoint": f"checkpoints/{trial_id}", "epochs": [epoch], "seconds": TRAINING,
        "readouts": dict.fromkeys(("corrected", "published"), trial.readout),
        "metrics": {f"accuracy/{trial.readout}": 0.9}, "workers": 1, "host": "here", "device": "none",
        "finished": time.strftime("%FT%TZ", time.gmtime()), "versions": {},
    })  # fmt: skip
    yield {"slot_seconds": TRAINING}


def network() -> dict[str, bytes]:
    """The files of a network as it is before it is trained."""
    built = backbones.build("resnet8", 32)
    outputs = torch.zeros(10, built(torch.zeros(2, 3, 32, 32)).shape[1])
    return checkpoint.to_files(checkpoint.Checkpoint(
        backbone_name="resnet8", backbone=built, readout="own_layer", weight=outputs, bias=torch.zeros(10),
        temperature=1.0, prototypes=outputs.clone(), classes=tuple("0123456789"), image_size=32,
        mean=(0.5,) * 3, std=(0.5,) * 3,
    ))  # fmt: skip


def evaluate(store: Store, trial_id: str, shard: Shard, *_: Any, **__: Any) -> dict[str, Any]:
    """As `tasks.evaluate`, of scores that are made up."""
    started = time.perf_counter()
    images = np.arange(shard.first, shard.last + 1, dtype=np.int32)
    for readout in shard.readouts:
        store.write_part("predictions", trial_id, readout, shard.first, shard.last, pa.table({
            "image": images, "label": images % 10, "prediction": images % 10,
            "confidence": np.full(len(images), 0.9, np.float32),
        }))  # fmt: skip
    values = np.random.default_rng(int(trial_id, 16)).random(len(images) * len(shard.cells), np.float32)
    cells: list[Cell] = [v.cell for v in shard.cells for _ in images]
    store.write_part("scores", trial_id, evaluation(shard.cells), shard.first, shard.last, pa.table({
        "image": np.tile(images, len(shard.cells)),
        "method": pa.array([cell.method for cell in cells]).dictionary_encode(),
        "metric": pa.array([cell.metric for cell in cells]).dictionary_encode(),
        "value": values,
    }), shard.cells)  # fmt: skip
    return {"slot_seconds": time.perf_counter() - started, "node": "here", "bytes": 0}


def coordinate(trial: Mapping[str, str], **arguments: Any) -> None:
    """The coordinator as it is, in whose process the two tasks are replaced."""
    vars(coordinator).update(_train=ray.remote(train), _evaluate=ray.remote(evaluate))
    coordinator.coordinate(trial, **arguments)


class Clock:
    """CPU seconds, and seconds, of the functions that a run passes through; and CPU seconds of copying networks."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.copying = 0.0

    def of_copying(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.copying += time.thread_time() - started

        return timed

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            started, cpu = time.perf_counter(), _cpu()
            try:
                return function(*arguments, **named)
            finally:
                self.found[name] = {"cpu_s": _cpu() - cpu, "wall_s": time.perf_counter() - started}

        return timed


def one(slots: int, trials: int, shards: int) -> dict[str, Any]:
    """Run one sweep in this process, on a cluster of *slots* CPUs."""
    clock, memory = Clock(), [_memory()]
    patches: Any = [
        (driver, "coordinate", coordinate), (plan, "shard_images", lambda *_: IMAGES // shards),
        (plan, "make", clock.of("plan", plan.make)), (driver, "_run_trials", clock.of("run", driver._run_trials)),
        (session, "finish", clock.of("finish", session.finish)),
        (session.apart, "call", clock.of("report", session.apart.call)),
        (tracker, "log_networks", clock.of_copying(tracker.log_networks)),
        (session.tracking, "log_networks", clock.of("networks", clock.of_copying(session.tracking.log_networks))),
    ]  # fmt: skip
    for module, name, changed in patches:
        setattr(module, name, changed)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_EVERY):
            memory.append(_memory())

    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": slots})
    watching = threading.Thread(target=look)
    watching.start()
    try:
        with tempfile.TemporaryDirectory() as out:
            sweep = config.load(DEMO, settings(trials))
            code = driver.run(sweep, out, cluster.address, Console(file=sys.stderr, width=110))
            assert code == 0
            assert len(list(Path(out).glob("demo/scores/*/*.parquet"))) == trials * shards
    finally:
        stop.set()
        watching.join()
        cluster.shutdown()
    return {
        "slots": slots, "trials": trials, "shards": shards,
        "phases": clock.found,  # finish contains the report and the networks that were not copied while it ran
        "copying_networks_cpu_s": clock.copying,  # in all
        "memory_mb": {kind: {"at_quarters": [memory[round(share * (len(memory) - 1))][kind] for share in QUARTERS],
                             "most": max(look[kind] for look in memory)} for kind in memory[0]},
    }  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds of the driver for each trial with its shards, by size; how many of them copying networks took after
    the trials, which is given a minute; and for one shard more, without those of copying networks."""
    spent, copying = (
        {(run["slots"], run["trials"], run["shards"]): sum(run["phases"][name]["cpu_s"] for name in phases)
         for run in runs}
        for phases in (("plan", "run", "finish"), ("networks",))
    )  # fmt: skip
    a_trial = {f"{slots} slots, {trials} trials of {shards} shards":
               {"all": round(seconds / trials, 4), "networks": round(copying[slots, trials, shards] / trials, 4)}
               for (slots, trials, shards), seconds in spent.items()}  # fmt: skip
    a_shard = [
        round((_but_networks(many) - _but_networks(few)) / (few["trials"] * (many["shards"] - few["shards"])), 5)
        for many in runs for few in runs
        if (few["slots"], few["trials"]) == (many["slots"], many["trials"]) and few["shards"] < many["shards"]
    ]  # fmt: skip
    return {"cpu_s_of_a_trial": a_trial} | ({"cpu_s_of_a_shard": max(a_shard)} if a_shard else {})


def _but_networks(run: Mapping[str, Any]) -> float:
    # How many of them are copied within the minute is chance.
    seconds = sum(run["phases"][name]["cpu_s"] for name in ("plan", "run", "finish"))
    return float(seconds - run["copying_networks_cpu_s"])


def _cpu() -> float:
    """Seconds of this process, and of those that it has started and that have ended: that which writes the report."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _memory() -> dict[str, int]:
    """Megabytes that this process has for itself, and all that it maps: files of libraries, say, which others share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    of = {name: int(amount.split()[0]) for name, amount in (line.split(":", 1) for line in lines)}  # kB
    return {"own": (of["Private_Clean"] + of["Private_Dirty"]) // 1024, "resident": of["Rss"] // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=[",".join(map(str, size)) for size in SIZES],
                        help="slots,trials,shards of each run (default: %(default)s)")  # fmt: skip
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*map(int, options.one.split(",")))))
        return
    runs = []
    for size in options.sizes:
        done = subprocess.run([sys.executable, __file__, "--one", size], check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps({
        "command": " ".join(["python", "tests/benchmarks/scale/driver.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "mlflow", "pyarrow")},
        "date": time.strftime("%F"),
        **summary(runs),
        "runs": runs,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
