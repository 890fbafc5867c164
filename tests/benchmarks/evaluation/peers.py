"""Each metric in Quantus, with the same parameters, called with batches of its own."""

import copy
from typing import Any, NamedTuple

import numpy as np
import quantus
import torch
from torch import Tensor, nn

from scl_ray.attribution import Batch, explain
from scl_ray.metrics import METRICS
from scl_ray.specs import parse

METHOD = "saliency"
QUIET = {"disable_warnings": True, "display_progressbar": False}
BLACK = {"perturb_baseline": "black"}
EXPLAINED_AGAIN = {"nr_samples": 10, **QUIET}


class Peer(NamedTuple):
    """A class of Quantus and its arguments; *softmax*: whether it reads probabilities."""

    name: str
    parameters: dict[str, Any]
    softmax: bool = False


# By our spec.
PEERS = {
    "pixel_flipping_auc": Peer("PixelFlipping", {"features_in_step": 32, **BLACK, "normalise": False,
                                                 "return_auc_per_sample": True}, softmax=True),
    "region_perturbation[baseline=minimum,regions=16]": Peer(
        "RegionPerturbation", {"patch_size": 8, "regions_evaluation": 16, **BLACK, "normalise": False}, softmax=True),
    "selectivity": Peer("Selectivity", {"patch_size": 8, **BLACK, "normalise": False}, softmax=True),
    "irof[baseline=minimum]": Peer("IROF", {**BLACK, "normalise": False}, softmax=True),
    "road": Peer("ROAD", {"percentages": list(range(10, 100, 10)), "noise": 0.01, "normalise": False}),
    "faithfulness_correlation[subset_size=64]": Peer(
        "FaithfulnessCorrelation", {"nr_runs": 100, "subset_size": 64, **BLACK, "return_aggregate": False}),
    "faithfulness_estimate": Peer("FaithfulnessEstimate", {"features_in_step": 32, **BLACK}),
    "monotonicity_correlation": Peer("MonotonicityCorrelation", {"features_in_step": 32, "nr_samples": 10}),
    # With a fixed baseline one sample says all; Quantus by default runs the network ten times for the same value.
    "infidelity": Peer("Infidelity", {"perturb_patch_sizes": [4], **BLACK}),
    "local_lipschitz_estimate": Peer("LocalLipschitzEstimate", EXPLAINED_AGAIN),
    "max_sensitivity": Peer("MaxSensitivity", EXPLAINED_AGAIN),
    "avg_sensitivity": Peer("AvgSensitivity", EXPLAINED_AGAIN),
    "relative_input_stability": Peer("RelativeInputStability", {"nr_samples": 10}),
    "relative_output_stability": Peer("RelativeOutputStability", {"nr_samples": 10}),
    "relative_representation_stability": Peer("RelativeRepresentationStability", {"nr_samples": 10}),
    "random_logit": Peer("RandomLogit", {"num_classes": 10}),
    "mprt": Peer("MPRT", {"return_average_correlation": True}),
    "smooth_mprt[samples=2]": Peer("SmoothMPRT", {"nr_samples": 2, "return_average_correlation": True}),
    "efficient_mprt": Peer("EfficientMPRT", {}, softmax=True),
    "complexity": Peer("Complexity", {}),
    "sparseness": Peer("Sparseness", {}),
    "pointing_game": Peer("PointingGame", {}),
    "attribution_localisation": Peer("AttributionLocalisation", {}),
    "top_k_intersection": Peer("TopKIntersection", {}),
    "relevance_mass_accuracy": Peer("RelevanceMassAccuracy", {}),
    "relevance_rank_accuracy": Peer("RelevanceRankAccuracy", {}),
    "localisation_auc": Peer("AUC", {}),
    "completeness": Peer("Completeness", {"abs": False, **BLACK}),
    "non_sensitivity": Peer("NonSensitivity", {"features_in_step": 16, **BLACK}),
    "input_invariance": Peer("InputInvariance", {}),
}  # fmt: skip

NOT_COMPARED = {
    "prediction_flip_auc": "Quantus has none; the passes are those of pixel_flipping_auc",
    "deletion_auc": "Quantus has none; the passes are those of pixel_flipping_auc",
    "insertion_auc": "Quantus has none; the passes are those of pixel_flipping_auc",
    "sensitivity_n": "Quantus takes away growing sets of the most important pixels, not random sets: other passes",
    "sufficiency": "Quantus compares with the other images of the batch, not with a reference: other passes",
    "ssim_continuity": "Quantus has none; see the published pipeline",
    "ssim_contrastivity": "Quantus has none; see the published pipeline",
    "grid_pointing_game": "Quantus has none",
    "effective_complexity": "Quantus counts values above a threshold, and runs no network",
}


# What Quantus raises where it cannot do something.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check() -> None:
    """Every metric must be compared, or be said not to be."""
    missing = METRICS.keys() - NOT_COMPARED.keys() - {parse(spec)[0] for spec in PEERS}
    if missing:
        raise SystemExit(f"peers.py says nothing of {', '.join(sorted(missing))}")


def grey(network: nn.Module) -> nn.Module:
    """A copy that takes one channel for three: some of Quantus' metrics fail on colour, others flip single values."""
    one = copy.deepcopy(network)
    name, first = next((name, part) for name, part in one.named_modules() if isinstance(part, nn.Conv2d))
    summed = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)
    summed.weight.data = first.weight.data.sum(1, keepdim=True)
    one.set_submodule(name, summed)
    return one.eval()


def run(peer: Peer, batch: Batch, maps: Tensor) -> object:
    """What Quantus says of the *maps* (N,H,W) of the grey images of *batch*."""

    def explained(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **ignored: object) -> np.ndarray:
        given = torch.as_tensor(inputs).float(), torch.as_tensor(targets)
        return explain(model, *given, METHOD)[:, None].numpy()

    metric = getattr(quantus, peer.name)(**{**peer.parameters, **QUIET})
    assert batch.masks is not None
    return metric(
        model=batch.model,
        x_batch=batch.images.numpy().copy(),
        y_batch=batch.targets.numpy(),
        a_batch=maps[:, None].numpy().copy(),
        s_batch=batch.masks[:, None].numpy(),
        channel_first=True,
        softmax=peer.softmax,
        explain_func=explained,
        device="cpu",
    )
