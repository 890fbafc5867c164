"""Counts the bytes that images and checkpoints take to reach the nodes of a cluster, and how often the store is read.

python tests/benchmarks/scale/bytes_per_node.py > bytes_per_node.json  # in the folder figures

A sweep of ResNet-20s on digits, a few shards each, on nodes of two slots each. Of each node: what was put into its
shared memory, its own objects and those that came from other nodes alike, as Ray counts it. Once per node is the bound:
the images, and each checkpoint. Beside it what it would be once per task. Reads of the store are counted as it is read.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
os.environ["RAY_AUTH_MODE"] = "token"

from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from scl_ray import config, datasets
from scl_ray.cluster import driver
from scl_ray.store import Store

DEMO = HERE.parents[2] / "sweeps/demo.yaml"
SLOTS = 2  # of a node
SETTINGS = [
    "grid.objective=cross_entropy", "grid.backbone=resnet20", "dataset.image_size=16", "training.epochs=1",
    "training.batch_size=128", "evaluation.images=320", "evaluation.protocol=corrected",
    "evaluation.methods=saliency", "evaluation.metrics=[complexity, sparseness]",
]  # fmt: skip


class Counted(Store):
    """A store that notes each reading of a checkpoint in the file that READS names."""

    def read_checkpoint(self, trial: str) -> dict[str, bytes]:
        with Path(os.environ["READS"]).open("a") as reads:
            reads.write(f"{os.getpid()}\n")
        return super().read_checkpoint(trial)


def one(nodes: int, trials: int) -> dict[str, Any]:
    """Run one sweep on so many *nodes*."""
    from ray.cluster_utils import Cluster

    sweep = config.load(DEMO, [*SETTINGS, f"grid.seed={list(range(trials))}"])
    images = _bytes_of_images(datasets.load(sweep.dataset))
    with tempfile.TemporaryDirectory() as folder:
        reads = Path(folder, "reads")
        os.environ["READS"] = str(reads)
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 0})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=SLOTS)

            def open_counted(out: str, name: str) -> Store:
                return Counted(LocalFileSystem(), f"{out}/{name}")

            # The driver opens the store; what it opened is what the nodes read.
            with mock.patch.object(driver, "open_store", open_counted):
                out = f"{folder}/runs"
                assert driver.run(sweep, out, cluster.address, Console(file=sys.stderr, width=110)) == 0
            created = _created(cluster)
        finally:
            cluster.shutdown()
        shards = len(list(Path(out).glob("demo/scores/*/*.parquet")))
        weights = [path.stat().st_size for path in Path(out).glob("demo/checkpoints/*/weights.safetensors")]
        # The driver reads each too, to copy it to MLflow.
        read = [pid for pid in reads.read_text().split() if int(pid) != os.getpid()]
    bound = images + sum(weights)
    return {
        "nodes": nodes, "slots_a_node": SLOTS, "trials": trials, "shards": shards,
        "images_bytes": images, "checkpoint_bytes": weights[0],
        "bytes_into_a_node": created,
        "once_per_node_bytes": bound,
        "most_over_once_per_node": round(max(created) / bound, 3),
        "once_per_task_bytes": (shards + trials) * images + sum(weights) * shards // trials,
        "checkpoint_reads_by_nodes": len(read),
    }  # fmt: skip


def _bytes_of_images(dataset: datasets.Dataset) -> int:
    arrays = (dataset.train_images, dataset.validation_images, dataset.test_images)
    return sum(int(array.nbytes) for array in arrays)


def _created(cluster: Any) -> list[int]:
    """Bytes of all objects that were ever put into the shared memory of each node on which work runs."""
    # A node's own word for it, which it writes into its log every minute.
    folder = Path(cluster.head_node.get_logs_dir_path())
    logs = [folder / f"raylet.{number}.out" for number in range(1, 1 + len(cluster.worker_nodes))]
    earlier = [len(_said(log)) for log in logs]
    while any(len(_said(log)) == count for log, count in zip(logs, earlier, strict=True)):
        time.sleep(1)
    return [_said(log)[-1] for log in logs]


def _said(log: Path) -> list[int]:
    return [int(number) for number in re.findall(r"num bytes created total: (\d+)", log.read_text(errors="replace"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    print(json.dumps({
        "command": " ".join(["python", "tests/benchmarks/scale/bytes_per_node.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "torch")},
        "date": time.strftime("%F"),
        **one(options.nodes, options.trials),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
