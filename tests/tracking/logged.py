"""Records of trials as a sweep has them, and what MLflow holds of them."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scl_ray import checkpoint
from scl_ray.checkpoint import Checkpoint
from scl_ray.given import checkpoint as given_checkpoint
from scl_ray.given.checkpoint import GivenClassifier
from scl_ray.store import Store, open_store

SWEEP = {"name": "demo", "grid": {"seed": [0, 1]}}
MEANS = {"faithfulness/pixel_flipping_auc/grad_cam": 0.25, "continuity/ssim_continuity[noise=0.1]/eigen_cam[a=b]": 0.5}


def record(trial: str, objective: dict[str, Any], *, epochs: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "trial": trial,
        "label": f"{objective['name']} · resnet8 · seed 0",
        "objective_label": objective["name"],
        "status": "trained",
        "error": None,
        "configuration": {
            "dataset": {"name": "digits", "root": None, "image_size": 32, "validation": 0.1},
            "objective": objective,
            "backbone": "resnet8",
            "seed": 0,
            "training": {"epochs": epochs, "batch_size": 128, "learning_rate": 0.05, "optimizer": "sgd"},
        },
        "dataset": {"name": "digits", "fingerprint": 4 * "0123456789abcdef", "image_size": 16, "classes": 10},
        "epochs": [
            {"epoch": e, "loss": 1 / e, "learning_rate": 0.1 / e, "seconds": 2.0, "images_per_second": 700.0}
            for e in range(1, epochs + 1)
        ],
        "metrics": {"accuracy/linear_probe": 0.9, "accuracy/knn": None, "temperature": 1.7},
        "seconds": 7.5,
        "workers": 1,
        "device": "a processor",
        "host": "node-0",
        "finished": "2026-01-01T00:00:00+00:00",
        **changes,
    }


CROSS_ENTROPY = record("ce0000000000", {"name": "cross_entropy", "label_smoothing": 0.0})
SUPCON = record("5c0000000000", {"name": "supcon", "temperature": 0.07})
TRIPLET = record("791000000000", {"name": "triplet", "margin": 0.3, "mining": "hard"})
TRAINED = {entry["trial"]: MEANS for entry in (CROSS_ENTROPY, SUPCON, TRIPLET)}


class Stored:
    """What MLflow holds of a sweep, read by its own client."""

    def __init__(self, uri: str, name: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id])
        (self.parent,) = (run for run in runs if "sweep" in run.data.tags)
        self.trials = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
        assert len(runs) == 1 + len(self.trials), "a run was logged twice"

    def points(self, trial: str, metric: str) -> list[tuple[int, float]]:
        run_id = self.trials[trial].info.run_id
        return [(point.step, point.value) for point in self.client.get_metric_history(run_id, metric)]

    def all_points(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        return {(t, key): self.points(t, key) for t, run in self.trials.items() for key in run.data.metrics}


def write_store(out: Path, name: str, networks: dict[str, Checkpoint | GivenClassifier]) -> Store:
    """A sweep's store with the given networks for trials, and two images of 16x16 as its sample."""
    store = open_store(str(out), name)
    for trial, network in networks.items():
        is_given = isinstance(network, GivenClassifier)
        files = given_checkpoint.to_files(network) if is_given else checkpoint.to_files(network)
        store.write_checkpoint(trial, files)
        store.write_record(trial, {"status": "trained"})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3 * 16 * 16), np.uint8)
    sizes = {side: [length] * 2 for side, length in (("channels", 3), ("height", 16), ("width", 16))}
    store.write_table("samples/images.parquet", pa.table({**sizes, "pixels": list(pixels)}))
    return store


PIXELS = torch.rand((5, 3, 16, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def scores(network: Checkpoint | GivenClassifier) -> torch.Tensor:
    """What the explained network gives for PIXELS."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    return network.explained("corrected")((PIXELS - mean) / std)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
