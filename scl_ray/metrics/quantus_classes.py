"""What there is to know of Quantus' classes that Quantus does not say: data for `scl_ray.metrics.quantus_adapter`."""

from collections.abc import Callable, Mapping
from math import ceil, inf
from typing import Any, NamedTuple

# By Quantus' category, or by class where the metric's counterpart in this package has a facet of its own.
FACETS = {
    "FAITHFULNESS": "faithfulness", "ROBUSTNESS": "continuity", "LOCALISATION": "coherence", "COMPLEXITY": "complexity",
    "RANDOMISATION": "randomisation", "AXIOMATIC": "axiomatic",
    "RandomLogit": "contrastivity", "Sparseness": "sparseness",
}  # fmt: skip

# Where Quantus' own direction contradicts its formula: the values are drops of the class's score.
DIRECTIONS = {"RegionPerturbation": "higher"}

# The parameter and its value that turn the direction round.
REVERSED_BY = {"RegionPerturbation": ("order", "lerf")}


class Class(NamedTuple):
    """A class that can be had.

    range: of its values. needs: as `scl_ray.metrics.metric.Metric` has them. cost: forward passes and explanations that
    an image takes, by the parameters and the side of the image in pixels, of three channels.
    """

    range: tuple[float, float]
    needs: frozenset[str] = frozenset()
    cost: Callable[[Mapping[str, Any], int], tuple[int, int]] = lambda parameters, size: (0, 0)


_CORRELATION, _SHARE, _POSITIVE, _ANY = (-1.0, 1.0), (0.0, 1.0), (0.0, inf), (-inf, inf)
_MASKS, _AGAIN = frozenset({"masks"}), frozenset({"re-explanation"})


def _steps(parameters: Mapping[str, Any], size: int) -> int:
    """Raises ValueError where Quantus refuses steps that do not divide the pixels."""
    step = parameters["features_in_step"]
    if size**2 % step:
        raise ValueError(f"features_in_step={step} does not divide the {size**2} pixels of an image, as Quantus asks")
    return ceil(3 * size**2 / step)


def _patches(parameters: Mapping[str, Any], size: int) -> int:
    return ceil(size / parameters["patch_size"]) ** 2


def _sampled(predictions: int) -> Callable[[Mapping[str, Any], int], tuple[int, int]]:
    """An explanation and so many forward passes for each of ``nr_samples``."""
    return lambda parameters, size: (predictions * parameters["nr_samples"], parameters["nr_samples"])


CLASSES = {
    "FaithfulnessCorrelation": Class(_CORRELATION, cost=lambda p, size: (1 + p["nr_runs"], 0)),
    "FaithfulnessEstimate": Class(_CORRELATION, cost=lambda p, size: (1 + _steps(p, size), 0)),
    "PixelFlipping": Class(_POSITIVE, cost=lambda p, size: (_steps(p, size), 0)),
    "RegionPerturbation": Class(_ANY, cost=lambda p, size: (1 + min(p["regions_evaluation"], _patches(p, size)), 0)),
    "Monotonicity": Class(_SHARE, cost=lambda p, size: (_steps(p, size), 0)),
    "MonotonicityCorrelation": Class(_CORRELATION, cost=lambda p, size: (1 + p["nr_samples"] * _steps(p, size), 0)),
    "Selectivity": Class(_POSITIVE, cost=lambda p, size: (_patches(p, size), 0)),
    "IROF": Class(_ANY, cost=lambda p, size: (101, 0)),  # about 100 segments
    "Infidelity": Class(_POSITIVE, cost=lambda p, size: (1 + p["n_perturb_samples"] * ceil(size / 4) ** 2, 0)),
    "Continuity": Class(_POSITIVE, _AGAIN, lambda p, size: (p["nr_steps"], 1 + p["nr_steps"])),
    "LocalLipschitzEstimate": Class(_POSITIVE, _AGAIN, _sampled(0)),
    "MaxSensitivity": Class(_POSITIVE, _AGAIN, _sampled(0)),
    "AvgSensitivity": Class(_POSITIVE, _AGAIN, _sampled(0)),
    "RelativeInputStability": Class(_POSITIVE, _AGAIN, _sampled(2)),
    "RelativeOutputStability": Class(_POSITIVE, _AGAIN, _sampled(3)),
    "RelativeRepresentationStability": Class(_POSITIVE, _AGAIN, _sampled(3)),
    "PointingGame": Class(_SHARE, _MASKS),
    "TopKIntersection": Class(_POSITIVE, _MASKS),
    "RelevanceMassAccuracy": Class(_ANY, _MASKS),
    "RelevanceRankAccuracy": Class(_SHARE, _MASKS),
    "AttributionLocalisation": Class(_SHARE, _MASKS),
    "AUC": Class(_SHARE, _MASKS),
    "Sparseness": Class(_SHARE),
    "Complexity": Class(_POSITIVE),
    "EffectiveComplexity": Class(_POSITIVE),
    # One explanation for each layer with weights: about twenty in the networks of this package.
    "MPRT": Class(_CORRELATION, _AGAIN, lambda p, size: (0, 2 if p["skip_layers"] else 21)),
    "EfficientMPRT": Class(_ANY, _AGAIN, lambda p, size: (2, 2 if p["skip_layers"] else 21)),
    "RandomLogit": Class(_CORRELATION, _AGAIN | {"class"}, lambda p, size: (0, 1)),
    "NonSensitivity": Class(_POSITIVE, cost=lambda p, size: (1 + 3 * size**2, 0)),
}

# Why a class cannot be had, and what to use instead.
REFUSED = {
    "ROAD": "it takes a map's channels for pixels, so it fails on images of several channels; use road",
    "SensitivityN": "it correlates over the images of a batch and not over subsets of an image; use sensitivity_n",
    "Sufficiency": "it compares the images of a batch with one another; use sufficiency, which takes the reference",
    "Consistency": "it compares the images of a batch with one another, by the signs of five pixels in the corner of "
    "their maps; use sufficiency, which takes the reference",
    "Focus": "it scores mosaics that it is given; use grid_pointing_game, which makes them",
    "SmoothMPRT": "it explains by a plain gradient whatever the method; use smooth_mprt",
    "Completeness": "it asks two sums of floating-point numbers to be equal, which they never are; use completeness",
    "InputInvariance": "it takes the network's second module for a convolution with a bias; use input_invariance",
}  # fmt: skip

# Parameters that are not the user's: what the adapter sets itself, what makes Quantus speak, and what is broken
# (PointingGame casts its weight to a bool; AttributionLocalisation divides by the size of an array that is empty for a
# single image, for both of its own; NonSensitivity compares single values with steps of several).
WITHHELD = {
    "return_aggregate", "disable_warnings", "display_progressbar", "return_auc_per_sample", "return_sample_correlation",
    "return_average_correlation", "return_last_correlation", "compute_extra_scores",
    ("PointingGame", "weighted"), ("AttributionLocalisation", "weighted"), ("AttributionLocalisation", "max_size"),
    ("NonSensitivity", "features_in_step"), ("RandomLogit", "num_classes"), ("RandomLogit", "seed"),
}  # fmt: skip

CHOICES = {
    "perturb_baseline": ("black", "white", "mean", "uniform"),
    "order": ("morf", "lerf"),
    "layer_order": ("top_down", "bottom_up", "independent"),
    "segmentation_method": ("slic", "felzenszwalb"),
    "loss_func": ("mse",),
}
