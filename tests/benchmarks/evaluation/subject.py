"""What is measured: a trained network, real images, and how long things take."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scl_ray import attribution, config, datasets, finishing, training
from scl_ray.attribution import Batch
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import DatasetConfig
from scl_ray.datasets import Dataset
from scl_ray.evaluation import reference_images

DEMO = Path(__file__).parents[3] / "sweeps/demo.yaml"


@dataclass(frozen=True)
class Subject:
    """A network trained on the digits at 32x32, and a batch of their test images, explained for the predicted class."""

    checkpoint: Checkpoint
    dataset: Dataset
    batch: Batch

    @property
    def network(self) -> nn.Module:
        return self.batch.model

    def fresh(self, methods: list[str]) -> Batch:
        """The batch with the forward pass that all *methods* share, as an evaluation starts with it."""
        batch = self.batch.but(images=self.batch.images)
        return batch.but(targets=batch.targets, passed=attribution.shared_forward(batch, methods))


def train(backbone: str, epochs: int, images: int) -> Subject:
    dataset = datasets.load(DatasetConfig(name="digits", image_size=32))
    settings = ["grid.objective=cross_entropy", f"grid.backbone={backbone}", f"training.epochs={epochs}"]
    trial = config.load(DEMO, settings).trials()[0]
    *_, (_, state) = training.fit(dataset, trial)
    checkpoint = finishing.finish(dataset, trial, state)[0]
    network = checkpoint.explained("corrected").to(memory_format=torch.channels_last)
    chosen, reference = dataset.evaluation_order[:images], reference_images(dataset)
    mean, std = torch.tensor(checkpoint.mean), torch.tensor(checkpoint.std)

    def normalised(given: Any) -> Tensor:
        return (torch.tensor(given).float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    shown = normalised(dataset.test_images[chosen])
    with torch.no_grad():
        targets = network(shown).argmax(1)
    batch = Batch(
        network, shown, targets, mean=mean, std=std, image_ids=chosen.tolist(),
        reference=normalised(dataset.train_images[reference]),
        reference_labels=torch.tensor(dataset.train_labels[reference]),
        masks=torch.tensor(dataset.test_images[chosen, 0] > 100),
    )  # fmt: skip
    return Subject(checkpoint, dataset, batch)


def medians(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each task. They take turns, so that what else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "captum", "quantus", "grad-cam", "scikit-image", "numpy")
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {next(iter(names), platform.processor())}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
        "date": time.strftime("%F"),
    }
