"""The hand-off on real local clusters: it never deadlocks, and evaluation overlaps training."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from conftest import DEMO
from ray.cluster_utils import Cluster
from rich.console import Console

from scl_ray import config
from scl_ray.cluster import connection, driver
from scl_ray.config import InputError, Resources, Slot

TINY = [
    "grid.objective=cross_entropy",
    "training.epochs=1",
    "training.batch_size=128",
    "evaluation.images=20",
    "evaluation.methods=grad_cam",
    "evaluation.metrics=[complexity, sparseness]",
]


@contextmanager
def cluster(**head: int) -> Iterator[str]:
    """The address of a cluster of one node with the given resources."""
    started = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    try:
        yield started.address
    finally:
        started.shutdown()


def run(out: Path, address: str, *overrides: str) -> tuple[int, Path]:
    sweep = config.load(DEMO, [*TINY, *overrides])
    return driver.run(sweep, str(out), address, Console(quiet=True)), out / "demo"


@pytest.mark.parametrize("slots", [1, 2])
def test_any_number_of_slots_finishes_and_overlaps(slots: int, tmp_path: Path) -> None:
    with cluster(num_cpus=slots) as address:
        code, root = run(tmp_path, address, f"grid.seed={list(range(slots + 3))}")
    assert code == 0
    scored = [path.stat().st_mtime for path in (root / "scores").rglob("*.parquet")]
    trained = [path.stat().st_mtime for path in (root / "trials").iterdir()]
    assert len(scored) == len(trained) == slots + 3
    # Early trials are evaluated before late ones are trained.
    assert min(scored) < max(trained)


def test_placement_on_virtual_gpus(tmp_path: Path) -> None:
    with cluster(num_cpus=4, num_gpus=2) as address:
        with connection.connected(address):
            assert connection.slots(Slot(cpus=1, gpus=1)) == 2
            assert connection.slots(Slot(cpus=1, gpus=0.5)) == 4
            assert connection.slots(Slot(cpus=4, gpus=0.25)) == 1
            assert connection.check_resources(Resources()) == 2
            with pytest.raises(InputError, match="no node of the cluster has 1 CPUs and 3 GPUs"):
                connection.check_resources(Resources(train=Slot(gpus=3)))

            @ray.remote
            class Gathering:
                """Lets the tasks go when all of them are there, so they run at the same time."""

                def __init__(self) -> None:
                    self.there = 0

                def arrive(self) -> int:
                    self.there += 1
                    return self.there

                def count(self) -> int:
                    return self.there

            @ray.remote
            def device(gathering: ray.actor.ActorHandle) -> str:
                ray.get(gathering.arrive.remote())
                while ray.get(gathering.count.remote()) < 4:
                    pass
                return os.environ["CUDA_VISIBLE_DEVICES"]

            gathering = Gathering.options(num_cpus=0).remote()
            options = connection.task_options(Slot(cpus=1, gpus=0.5))
            devices = ray.get([device.options(**options).remote(gathering) for _ in range(4)], timeout=60)
            assert Counter(devices) == {"0": 2, "1": 2}
        code, root = run(tmp_path, address, "grid.seed=0")
        assert code == 0
        assert len(list((root / "trials").iterdir())) == 1


def test_a_lost_worker_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and a shard that kill their worker once are run again; one that always does is given up and named."""
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n\n"
        "def once(name):\n"
        "    mark = Path(os.environ['DEADLY'], name)\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "def loss(embeddings, labels):\n"
        "    once('training')\n"
        "    return embeddings.var()\n\n"
        "def metric(model, images, targets, maps):\n"
        "    once('shard')\n"
        "    return maps.flatten(1).mean(1)\n\n"
        "def always(embeddings, labels):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DEADLY", str(tmp_path))
    with cluster(num_cpus=2) as address:
        code, root = run(tmp_path / "runs", address, "grid.seed=0", "grid.objective=['deadly:loss', 'deadly:always']",
                         "evaluation.metrics=['deadly:metric', complexity]")  # fmt: skip
    assert (tmp_path / "training").exists()
    assert (tmp_path / "shard").exists()
    records = [json.loads(path.read_text()) for path in (root / "trials").iterdir()]
    by_objective = {record["configuration"]["objective"]["name"]: record for record in records}
    assert code == 1
    assert by_objective["deadly:loss"]["status"] == "trained"
    assert by_objective["deadly:always"]["status"] == "failed"
    assert "3 times" in by_objective["deadly:always"]["error"]
    assert len(list((root / "scores").rglob("*.parquet"))) == 1
