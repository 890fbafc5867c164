"""Measures explain and score: against bare passes, the published pipeline and Quantus, and what bfloat16 changes.

python tests/benchmarks/evaluation/run.py --only published --images 8 > published.json  # in the folder figures

Every figure is a median of interleaved runs. A file of figures holds one section and the command that made it:
limit      each metric that runs the network on changed images, over as many bare passes at the best batch size
explaining each metric that explains again, by Grad-CAM, likewise
published  two CAMs and five metrics by the published pipeline, one image at a time, and by one batch here
quantus    each metric in Quantus, called with batches of its own, on grey images
sharing    seven CAMs and five metrics over the passes that their perturbations need, and one CAM more
memory     the peak of an evaluation, and the bound that was configured
precision  what bfloat16 changes in each score
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

setattr(np, "trapz", np.trapezoid)  # noqa: B010  # which Quantus 0.6.0 calls

sys.path.insert(0, str(Path(__file__).parent))

import peers
import published
from subject import Subject, machine, medians, train

from scl_ray import metrics
from scl_ray.attribution import METHODS, Batch, cost, explain_many, inference
from scl_ray.attribution.question import layer_of
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import Cell
from scl_ray.datasets import Dataset
from scl_ray.evaluation import evaluate
from scl_ray.metrics import METRICS

SHARED_CAMS = [name for name, method in METHODS.items() if "activations" in method.needs]
FIVE = ["pixel_flipping_auc", "ssim_continuity", "ssim_contrastivity", "complexity", "sparseness"]

# Fewer runs than by default where these are many: a pass costs the same.
FEWER = {
    "faithfulness_correlation": {"runs": 32}, "sensitivity_n": {"runs": 8}, "monotonicity_correlation": {"samples": 2},
    "smooth_mprt": {"samples": 2}, "effective_complexity": {"samples": 2}, "irof": {"segments": 30},
    "infidelity": {"patch_size": 8}, "non_sensitivity": {"patch_size": 8},
}  # fmt: skip


def limit(subject: Subject, rounds: int, explaining: bool = False) -> dict[str, Any]:
    """Time over that of as many bare passes, by metric. The passes are counted, not taken from `Metric.cost`.

    The bare pass is the fastest form of the network, without gradients; where metrics are *explaining* again, by
    Grad-CAM, which needs gradients of the last block only, it is the network itself.
    """
    sizes = (16, 32, 64, 128)
    few = subject.fresh(["grad_cam"])
    form = subject.network if explaining else inference.build(subject.network, few.images, "float32")
    each = _bare_times(subject, form, sizes, rounds)
    best = _images(subject, min(each, key=each.__getitem__))
    found: dict[str, Any] = {"bare pass": {"ms_an_image": {size: 1e3 * each[size] for size in sizes}}}
    for name, metric in METRICS.items():
        if metric.passes is None or explaining != ("re-explanation" in metric.needs):
            continue
        spec = metrics.resolve(name, **FEWER.get(name, {})).spec
        passes = _counted(subject, spec)
        if not passes:
            found[spec] = {"passes_an_image": 0}
            continue
        tasks: dict[str, Callable[[], object]] = {
            "bare": partial(_forward, form, best), "ours": partial(_scored, few, spec)
        }  # fmt: skip
        _scored(few, spec)
        times = medians(tasks, rounds)
        needed = passes * len(few.images) * times["bare"] / len(best)
        found[spec] = {"passes_an_image": passes, "seconds": times["ours"], "over_bare": times["ours"] / needed}
    return found


def _bare_times(subject: Subject, network: inference.Network, sizes: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Seconds of one image, by how many are passed together."""
    tasks = {str(size): partial(_forward, network, _images(subject, size)) for size in sizes}
    medians(tasks, 1)
    return {size: seconds / size for size, seconds in zip(sizes, medians(tasks, rounds).values(), strict=True)}


def _images(subject: Subject, count: int) -> torch.Tensor:
    images = subject.batch.images
    repeated = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    return repeated.contiguous(memory_format=torch.channels_last)


def _forward(network: inference.Network, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network(images)


def _scored(batch: Batch, spec: str) -> object:
    return metrics.score_many(batch, explain_many(batch, ["grad_cam"]), [("grad_cam", spec)])


def _counted(subject: Subject, spec: str) -> float:
    """Forward passes of an image that a metric takes, counted on two images, beside those of the reference."""
    seen: list[int] = []
    given = {"images": subject.batch.images[:2], "targets": subject.batch.targets[:2],
             "masks": subject.batch.masks[:2], "image_ids": list(subject.batch.image_ids)[:2], "kept": {}}  # fmt: skip
    few = subject.batch.but(**given)
    shared = Subject(subject.checkpoint, subject.dataset, few).fresh(["grad_cam"])
    first = next(module for module in subject.network.modules() if isinstance(module, torch.nn.Conv2d))
    with first.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        for _ in range(2):  # the second time, what is made once for a network is there
            seen.clear()
            _scored(shared, spec)
    return sum(seen) / len(few.images)


def published_pipeline(subject: Subject, rounds: int) -> dict[str, Any]:
    """Milliseconds an image of two CAMs and five metrics, and how many times faster than the published pipeline.

    It takes 96 steps of 32 channel values. Whole pixels do not divide by 96: here they are 103 steps of 10.
    """
    layer = layer_of(subject.batch)
    classes = len(subject.dataset.classes)
    forms = {
        f"{steps} steps, {precision}": {"features_per_step": pixels, "precision": precision}
        for steps, pixels in ((103, 10), (32, 32))
        for precision in ("float32", "bfloat16")
    }
    tasks: dict[str, Callable[[], object]] = {
        "published": lambda: published.run(subject.network, layer, subject.batch.images, classes)
    }
    for name, parameters in forms.items():
        tasks[name] = partial(_pipeline, subject, ["grad_cam", "eigen_cam"], parameters)
    medians({name: task for name, task in tasks.items() if name != "published"}, 1)
    times = medians(tasks, rounds)
    return {
        name: {"ms_an_image": 1e3 * seconds / len(subject.batch.images), "times_faster": times["published"] / seconds}
        for name, seconds in times.items()
    }


def _pipeline(subject: Subject, methods: list[str], flipping: dict[str, Any]) -> object:
    """Explain and score as an evaluation does, from the images on."""
    batch = subject.fresh(methods)
    specs = [metrics.resolve(FIVE[0], **flipping).spec, *FIVE[1:]]
    cells = [(method, spec) for method in methods for spec in specs
             if METHODS[method].class_discriminative or spec != "ssim_contrastivity"]  # fmt: skip
    return metrics.score_many(batch, explain_many(batch, methods), cells)


def against_quantus(subject: Subject, rounds: int) -> dict[str, Any]:
    """Seconds of each metric here and in Quantus, on grey images; what Quantus cannot do is named."""
    peers.check()
    images, reference = (given[:, :1].contiguous() for given in (subject.batch.images, subject.batch.reference))
    batch = subject.batch.but(
        model=peers.grey(subject.network), images=images, reference=reference, mean=None, std=None
    )
    maps = explain_many(batch, [peers.METHOD])
    found: dict[str, Any] = {}
    for spec, peer in peers.PEERS.items():
        cells = [(peers.METHOD, metrics.resolve(spec).spec)]
        ours = partial(metrics.score_many, batch, maps, cells)
        ours()
        try:
            times = medians({"ours": ours, "quantus": partial(peers.run, peer, batch, maps[peers.METHOD])}, rounds)
        except peers.FAILURES as error:
            found[spec] = {"ours_s": medians({"ours": ours}, rounds)["ours"],
                           "quantus_fails": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}  # fmt: skip
        else:
            found[spec] = {"ours_s": times["ours"], "quantus_s": times["quantus"],
                           "times_faster": times["quantus"] / times["ours"]}  # fmt: skip
    return found | {name: {"not_compared": reason} for name, reason in peers.NOT_COMPARED.items()}


def sharing(subject: Subject, rounds: int) -> dict[str, Any]:
    """Seven CAMs and five metrics over the passes that their perturbations need, and what one CAM more costs."""
    images = len(subject.batch.images)
    chunk = _images(subject, 64)
    form = inference.build(subject.network, chunk, "float32")
    tasks: dict[str, Callable[[], object]] = {
        "bare": partial(_forward, form, chunk),
        "network": partial(_forward, subject.network, chunk),
        "pipeline": partial(_pipeline, subject, SHARED_CAMS, {}),
        "one": lambda: explain_many(subject.fresh(SHARED_CAMS[:1]), SHARED_CAMS[:1]),
        "all": lambda: explain_many(subject.fresh(SHARED_CAMS), SHARED_CAMS),
    }
    medians(tasks, 1)
    times = medians(tasks, rounds)
    flips = len(SHARED_CAMS) * metrics.cost([("grad_cam", FIVE[0])], subject.dataset.image_size)
    # One shared pass of the images and one of their noisy copies, by the network itself.
    others = cost(SHARED_CAMS, subject.dataset.image_size) + metrics.cost(
        [(method, "ssim_continuity") for method in SHARED_CAMS], subject.dataset.image_size
    )
    needed = images * (flips * times["bare"] + others * times["network"]) / len(chunk)
    more = (times["all"] - times["one"]) / (len(SHARED_CAMS) - 1)
    return {
        "methods": SHARED_CAMS,
        "metrics": FIVE,
        "passes_an_image": flips + others,
        "seconds": times["pipeline"],
        "over_bare": times["pipeline"] / needed,
        "one_cam_more_in_forward_passes": more / (images * times["network"] / len(chunk)),
    }


def memory(subject: Subject, rounds: int) -> dict[str, Any]:
    """GiB that an evaluation takes beyond what a first image took, by the bound, each in a process of its own."""
    found = {}
    for bound in (0.25, 0.5, 1.0):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peak = pool.submit(_peak, subject.checkpoint, subject.dataset, bound).result()
        found[f"{bound} GiB"] = {"peak_gib": peak, "within": peak <= bound}
    return found


def _peak(checkpoint: Checkpoint, dataset: Dataset, bound: float) -> float:
    torch.set_num_threads(1)
    cells = [Cell(method, metric) for method in ("saliency", "grad_cam", "integrated_gradients[steps=4]")
             for metric in ("pixel_flipping_auc[features_per_step=256]", "ssim_continuity")]  # fmt: skip
    evaluate(checkpoint, dataset, 0, 0, cells)
    before = _high_water()
    evaluate(checkpoint, dataset, 0, 63, cells, memory=bound)
    return _high_water() - before


def _high_water() -> float:
    """GiB that this process has held at most; getrusage would count those of the process that started it, too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def precision(subject: Subject, rounds: int) -> dict[str, Any]:
    """What bfloat16 changes in each score, over the images and three methods."""
    methods = ["grad_cam", "eigen_cam", "saliency"]
    maps = explain_many(subject.batch, methods)
    found = {}
    for name, metric in METRICS.items():
        if "precision" not in metric.parameters:
            continue
        exact, rough = (
            _values(subject, maps, metrics.resolve(name, **FEWER.get(name, {}), precision=each).spec)
            for each in ("float32", "bfloat16")
        )
        change = (rough - exact)[torch.isfinite(rough - exact)]
        found[name] = {
            "mean": float(exact.nanmean()),
            "change_of_mean": float(change.mean()),
            "mean_absolute_change": float(change.abs().mean()),
            "largest_change": float(change.abs().max()),
        }
    return found


def _values(subject: Subject, maps: dict[str, torch.Tensor], spec: str) -> torch.Tensor:
    cells = [(method, spec) for method in maps]
    return torch.cat([scores.values for scores in metrics.score_many(subject.batch, maps, cells).values()])


SECTIONS: dict[str, Callable[[Subject, int], dict[str, Any]]] = {
    "limit": limit, "explaining": partial(limit, explaining=True), "published": published_pipeline,
    "quantus": against_quantus, "sharing": sharing, "memory": memory, "precision": precision,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a small network, few images, one round: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.backbone, options.epochs, options.images, options.rounds = "resnet8", 1, 4, 1
    torch.set_num_threads(options.threads)
    subject = train(options.backbone, options.epochs, options.images)
    found: dict[str, Any] = {
        "command": " ".join(["python", "tests/benchmarks/evaluation/run.py", *sys.argv[1:]]),
        **machine(),
        "network": f"{options.backbone} at {subject.dataset.image_size}x{subject.dataset.image_size}",
        "images": options.images,
        "rounds": options.rounds,
    }
    for name in options.only:
        started = time.perf_counter()
        found[name] = SECTIONS[name](subject, options.rounds)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps(_rounded(found), indent=2))


def _rounded(value: Any) -> Any:
    """To four digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    main()
