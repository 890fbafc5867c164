"""Small sweeps on real local clusters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import DEMO
from ray.cluster_utils import Cluster
from rich.console import Console

from scl_ray import config
from scl_ray.cluster import driver

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
