"""The numbers of the published study, and the recipes they belong to.

Arrighi, Belloni, Gallet, Gentile, Lippi and Zullich, On the Properties of Feature Attribution for Supervised
Contrastive Learning, XAI World Conference 2026, arXiv 2604.22540.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

CITATION = "Arrighi et al. 2026, arXiv 2604.22540"
SEEDS = 5


class Published(NamedTuple):
    """A published mean, in the units of this project (accuracy as a share).

    ``spread`` is the standard deviation over five seeds, None where none is printed or what is printed is that over
    images (the coherence of ImageNet-S50: 0.37 beside a mean of 0.84 is the spread of zeros and ones). ``rounding`` is
    half a unit of the last printed digit.
    """

    metric: str
    method: str
    mean: float
    spread: float | None
    rounding: float


class Recipe(NamedTuple):
    """What a trial's configuration has to say to be the study's: these keys, whatever else there is."""

    dataset: str
    image_size: int
    backbone: str
    objective: Mapping[str, Any]
    training: Mapping[str, Any]


Printed = tuple[float, float | None]  # mean, spread

_CIFAR10_SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9}
_METRIC_LEARNING = {"epochs": 500, "batch_size": 256, "weight_decay": 1e-4, "warmup_epochs": 10}
_IMAGENET = {"epochs": 160, "batch_size": 512, "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup_epochs": 5}
_SUPCON = {"name": "supcon", "temperature": 0.07}
_TRIPLET = {"name": "triplet", "margin": 0.3, "mining": "semi_hard"}

RECIPES: dict[tuple[str, str], Recipe] = {
    ("cifar10", "cross_entropy"): Recipe("cifar10", 32, "resnet18", {"name": "cross_entropy", "label_smoothing": 0}, {
        **_CIFAR10_SGD, "epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4,
        "warmup_epochs": 0, "augmentation": "crop_flip"}),
    ("cifar10", "supcon"): Recipe("cifar10", 32, "resnet18", _SUPCON, {
        **_CIFAR10_SGD, **_METRIC_LEARNING, "learning_rate": 0.5, "augmentation": "contrastive"}),
    ("cifar10", "triplet"): Recipe("cifar10", 32, "resnet18", _TRIPLET, {
        **_CIFAR10_SGD, **_METRIC_LEARNING, "learning_rate": 0.1, "augmentation": "crop_flip"}),
    ("imagenet_s50", "cross_entropy"): Recipe("imagenet_s50", 224, "resnet50", {
        "name": "cross_entropy", "label_smoothing": 0.1}, {
        **_IMAGENET, "optimizer": "adamw", "augmentation": "resized_crop_flip"}),
    ("imagenet_s50", "supcon"): Recipe("imagenet_s50", 224, "resnet50", _SUPCON, {
        **_IMAGENET, "optimizer": "radam", "augmentation": "contrastive_blur"}),
    ("imagenet_s50", "triplet"): Recipe("imagenet_s50", 224, "resnet50", _TRIPLET, {
        **_IMAGENET, "optimizer": "radam", "augmentation": "resized_crop_flip"}),
}  # fmt: skip

# Metric and method (accuracy has none), digits after the point, and what is printed for cross-entropy, supervised
# contrastive and triplet.
_TABLES: dict[str, list[tuple[str, str, int, tuple[Printed, Printed, Printed]]]] = {
    "cifar10": [
        ("accuracy", "", 4, ((0.9532, 0.0010), (0.9483, 0.0012), (0.9468, 0.0017))),
        ("pixel_flipping_auc", "grad_cam", 2, ((0.37, 0.01), (0.27, 0.00), (0.32, 0.01))),
        ("ssim_continuity", "grad_cam", 2, ((0.54, 0.02), (0.57, 0.01), (0.57, 0.02))),
        ("ssim_continuity", "eigen_cam", 2, ((0.49, None), (0.69, None), (0.80, None))),
        ("ssim_contrastivity", "grad_cam", 3, ((0.003, None), (0.006, None), (0.001, None))),
        ("complexity", "grad_cam", 2, ((6.81, None), (6.39, 0.01), (6.71, None))),
    ],
    "imagenet_s50": [
        ("accuracy", "", 4, ((0.8917, 0.0038), (0.8585, 0.0029), (0.8255, 0.0064))),
        ("pixel_flipping_auc", "grad_cam", 2, ((0.17, None), (0.10, None), (0.19, 0.01))),
        ("ssim_continuity", "grad_cam", 2, ((0.38, None), (0.61, None), (0.39, 0.01))),
        ("ssim_contrastivity", "grad_cam", 2, ((0.20, None), (0.34, None), (0.28, None))),
        ("complexity", "grad_cam", 2, ((10.20, 0.01), (9.70, 0.01), (10.07, 0.01))),
        ("pointing_game", "augmented_grad_cam", 2, ((0.84, None), (0.85, None), (0.67, None))),
        ("attribution_localisation", "augmented_grad_cam", 2, ((0.63, None), (0.68, None), (0.55, None))),
    ],
}  # fmt: skip


def numbers(dataset: str, objective: str) -> list[Published]:
    """What is published of one *objective* (``cross_entropy``, ``supcon`` or ``triplet``) on ``cifar10`` or
    ``imagenet_s50``."""
    place = ("cross_entropy", "supcon", "triplet").index(objective)
    return [Published(metric, method, *printed[place], 0.5 * 10.0**-digits)
            for metric, method, digits, printed in _TABLES[dataset]]  # fmt: skip


def recognised(configuration: Mapping[str, Any]) -> tuple[str, str] | None:
    """The dataset and the objective of the study's recipe that a trial's recorded *configuration* follows, or None."""
    for key, recipe in RECIPES.items():
        dataset = configuration["dataset"]
        size = dataset.get("image_size") or recipe.image_size  # none is the dataset's own
        named = (dataset["name"], size, configuration["backbone"])
        if (
            named == recipe[:3]
            and _holds(configuration["objective"], recipe.objective)
            and _holds(configuration.get("training", {}), recipe.training)
        ):
            return key
    return None


def _holds(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(settings.get(key) == value for key, value in wanted.items())
