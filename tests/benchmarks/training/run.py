"""Measures training: what data and augmentation cost, the usual loop beside it, and what the goals for a GPU mean.

python tests/benchmarks/training/run.py --only loop > loop.json  # in the folder figures

Every figure is a median over epochs of loops that take turns; the first epoch of each does not count. A file of figures
holds the command that made it and one section or several:
share  the part of a step of contrastive training that data and augmentation take; at most 0.1 is asked for
loop   a step against that of the usual loop (usual.py), same network, batch and recipe; at least 1.5 times as fast on
       two cores, 5 times on a GPU, is asked for
goals  floating-point operations of the paper's CIFAR-10 recipes, what their goals for one H200 mean, how far it is
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import usual

from scl_ray import config, datasets, training
from scl_ray.config import DatasetConfig, InputError, Trial
from scl_ray.datasets import Dataset
from scl_ray.feed import Feed

SWEEPS = Path(__file__).parents[3] / "sweeps"
GOALS = {"cross_entropy": 4, "supcon": 20}  # minutes on one H200, of a trial of paper_cifar10.yaml
RECIPES = {"supcon": "contrastive", "cross_entropy": "crop_flip"}  # augmentation of objectives


class Setting(NamedTuple):
    device: torch.device
    backbones: list[str]  # the first is the one that loops are compared with
    batch_size: int  # images, however many views
    steps: int  # an epoch
    rounds: int


def share(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a step with two views of each image, and of its data and augmentation."""
    dataset, found = _pictures(setting.steps * setting.batch_size), {}
    for backbone in setting.backbones:
        with mock.patch.object(training, "Feed", _TimedFeed):
            loop = _ours(dataset, _trial("supcon", backbone, setting), setting.device)
            rounds = [(next(loop), _TimedFeed.seconds() / setting.steps) for _ in range(1 + setting.rounds)][1:]
            loop.close()
        step, fed = (statistics.median(each) for each in zip(*rounds, strict=True))
        found[backbone] = {"step_ms": 1e3 * step, "data_and_augmentation_ms": 1e3 * fed, "share": fed / step}
    return found


class _TimedFeed(Feed):
    """A feed whose batches are timed where they are made: on the device, as part of the loop."""

    spans: list[Callable[[], float]] = []  # noqa: RUF012  # one of all feeds, as one after the other is used

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        batches = super().epoch(generator)
        for _ in range(self.steps):
            with _timed(self.labels.device, self.spans):
                batch = next(batches)
            yield batch

    @classmethod
    def seconds(cls) -> float:
        """Of all batches since the last call."""
        total = sum(span() for span in cls.spans)
        cls.spans.clear()
        return total


@contextmanager
def _timed(device: torch.device, spans: list[Callable[[], float]]) -> Iterator[None]:
    """Add to *spans* what tells the seconds of the block. On a GPU it is not waited for before somebody asks."""
    if device.type != "cuda":
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        spans.append(lambda: seconds)
        return
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    yield
    last.record()
    spans.append(lambda: first.elapsed_time(last) / 1e3)


def against_the_usual_loop(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a step here and there, by objective."""
    dataset, backbone, found = _pictures(setting.steps * setting.batch_size), setting.backbones[0], {}
    for objective in RECIPES:
        loops = {"usual": usual.loop(dataset, _trial(objective, backbone, setting), setting.device)}
        for precision in ("float32", "bfloat16"):
            loops[precision] = _ours(dataset, _trial(objective, backbone, setting, precision), setting.device)
        times = _in_turns(loops, setting.rounds)
        found[objective] = {
            name: {"step_ms": 1e3 * seconds, "times_faster": times["usual"] / seconds}
            for name, seconds in times.items()
        }
    return found


def goals(setting: Setting) -> dict[str, Any]:
    """Floating-point operations of the paper's recipes, the rate that the goals ask for, and that of this machine."""
    sweep = config.load(SWEEPS / "paper_cifar10.yaml", [])
    recipes = {trial.objective.name: trial for trial in sweep.trials() if trial.seed == 0}
    images = round(datasets.INFO["cifar10"].train_images * (1 - sweep.dataset.validation))
    found = {}
    for name, minutes in GOALS.items():
        trial = recipes[name]
        epochs, batch_size = trial.training.epochs, trial.training.batch_size
        steps = images // batch_size
        an_image = _operations(trial)
        total = an_image * batch_size * steps * epochs
        found[name] = {
            "operations_an_image": an_image,
            "operations": total,
            "goal_minutes": minutes,
            "goal_tflop_s": total / (60 * minutes) / 1e12,
        }
        if setting.device.type == "cuda":
            dataset = _noise(images)
            step = _in_turns({"ours": _ours(dataset, _with(trial, precision="bfloat16"), setting.device)},
                             setting.rounds)["ours"]  # fmt: skip
            found[name]["measured_on_a_gpu"] = {
                "device": torch.cuda.get_device_name(setting.device), "step_ms": 1e3 * step,
                "minutes": step * steps * epochs / 60, "tflop_s": an_image * batch_size / step / 1e12,
            }  # fmt: skip
        else:
            few = 128 // (2 if name == "supcon" else 1)
            trial, dataset = _with(trial, batch_size=few), _noise(2 * few)
            times = _in_turns({"usual": usual.loop(dataset, trial, setting.device),
                               "ours": _ours(dataset, trial, setting.device)}, 1)  # fmt: skip
            found[name]["on_this_cpu"] = {
                "batch_size": few, "step_s": times["ours"], "tflop_s": an_image * few / times["ours"] / 1e12,
                "times_faster_than_usual": times["usual"] / times["ours"],
                "days": total / an_image / few * times["ours"] / 86_400,
            }  # fmt: skip
            found[name]["measured_on_a_gpu"] = None
    return found


def _operations(trial: Trial) -> float:
    """Of one image's views, forward and backward."""
    count, dataset = 4, _noise(4)
    network, objective = training.build(dataset, trial, torch.device("cpu"))
    images = torch.zeros(count * objective.views, 3, dataset.image_size, dataset.image_size)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / count


def _ours(dataset: Dataset, trial: Trial, device: torch.device) -> Iterator[float]:
    """Mean seconds of a step after each epoch."""
    for metrics, _ in training.fit(dataset, trial, device=device):
        yield trial.training.batch_size / metrics["images_per_second"]


def _in_turns(loops: Mapping[str, Iterator[float]], rounds: int) -> dict[str, float]:
    """Median of what each loop yields. They take turns, so that what else the machine does falls on all alike."""
    with ExitStack() as stack:
        for loop in loops.values():
            stack.enter_context(closing(loop))
        times = [{name: next(loop) for name, loop in loops.items()} for _ in range(1 + rounds)][1:]
    return {name: statistics.median(each[name] for each in times) for name in loops}


def _trial(objective: str, backbone: str, setting: Setting, precision: str = "float32") -> Trial:
    settings = [f"grid.objective={objective}", f"grid.backbone={backbone}", "training.learning_rate=0.01"]
    trial = config.load(SWEEPS / "demo.yaml", settings).trials()[0]
    return _with(trial, batch_size=setting.batch_size, augmentation=RECIPES[objective], precision=precision,
                 epochs=1 + setting.rounds)  # fmt: skip


def _with(trial: Trial, **settings: Any) -> Trial:
    return trial.model_copy(update={"training": trial.training.model_copy(update=settings)})


def _pictures(count: int) -> Dataset:
    """*count* images of Fashion-MNIST at 32x32, or as many digits, again and again, where it is not."""
    try:
        dataset = datasets.load(DatasetConfig(name="fashion_mnist", image_size=32))
    except InputError:
        dataset = datasets.load(DatasetConfig(name="digits", image_size=32))
    return _of(dataset, np.arange(count) % len(dataset.train_labels))


def _noise(count: int) -> Dataset:
    """*count* random images of CIFAR-10's form, since what they show does not change the time."""
    random = np.random.default_rng(0)
    digits = datasets.load(DatasetConfig(name="digits", image_size=32))
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return replace(_of(digits, np.zeros(count, int)), train_images=images, train_labels=np.arange(count) % 10)


def _of(dataset: Dataset, rows: np.ndarray[Any, Any]) -> Dataset:
    """The training images of *rows*, and few validation images: those are no part of a step."""
    return replace(
        dataset, train_images=dataset.train_images[rows], train_labels=dataset.train_labels[rows],
        validation_images=dataset.validation_images[:16], validation_labels=dataset.validation_labels[:16],
    )  # fmt: skip


SECTIONS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "share": share, "loop": against_the_usual_loop, "goals": goals
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backbones", nargs="+", help="default: resnet20 and resnet8, resnet18 on a GPU")
    parser.add_argument("--batch-size", type=int, help="default: 128, 512 on a GPU")
    parser.add_argument("--steps", type=int, help="of an epoch; default: 8, 40 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    is_gpu = options.device == "cuda"
    setting = Setting(
        torch.device(options.device),
        options.backbones or (["resnet18"] if is_gpu else ["resnet20", "resnet8"]),
        options.batch_size or (512 if is_gpu else 128),
        options.steps or (40 if is_gpu else 8),
        options.rounds,
    )
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/training/run.py", *sys.argv[1:]]),
        **_machine(setting.device),
        "backbones": [f"{name} at 32x32" for name in setting.backbones],
        "batch_size": setting.batch_size,
        "steps": setting.steps,
        "rounds": setting.rounds,
    }
    for name in options.only:
        started = time.perf_counter()
        found[name] = SECTIONS[name](setting)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps(_rounded(found), indent=2))


def _machine(device: torch.device) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {next(iter(names), platform.processor())}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")},
        "date": time.strftime("%F"),
    }


def _rounded(value: Any) -> Any:
    """To four digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
