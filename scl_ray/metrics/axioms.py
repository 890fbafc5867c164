"""Axioms: what an attribution has to satisfy whatever the network.

Quantus answers yes or no, by comparing floating-point numbers; these metrics say by how much an axiom is missed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, one_of, positive_integer, positive_number
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.perturbed import ZERO_FIRST, answers, patch_count, patches, replacing, unperturbed
from scl_ray.metrics.removal import BASELINES
from scl_ray.metrics.undefined import CHANGED, FLAT

# Below it, the change of a probability and the attribution relative to the map's largest count as none.
NOTHING = 1e-5


def lose_the_image(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, baseline: str, protocol: str
) -> dict[str, Tensor]:
    """What the class's score loses, (N,) float64, with all pixels set to the *baseline*; the same for all methods."""
    nothing = BASELINES[baseline](batch).expand_as(batch.images)
    left = answers(batch, 1, lambda images, numbers: nothing[images]).score
    return dict.fromkeys(maps, (unperturbed(batch).score - left)[:, 0])


def completeness(batch: Batch, maps: Tensor, passed: Tensor, **parameters: Any) -> Tensor:
    """How far the attributions are from adding up to what the class's score (the logit) loses without the image:
    |sum - loss| / (|sum| + |loss|), in [0,1]; lower is more complete.

    0: complete. 1: the sum has the wrong sign, or one of the two is zero. Relative to both, so that no image with a
    small loss outweighs all others. The image is lost to the *baseline*, by default the zero of the normalised space,
    as for integrated gradients. Both protocols agree.

    Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, section 3.
    """
    total = maps.flatten(1).double().sum(1)
    return (total - passed).abs() / (total.abs() + passed.abs())


def change_patches(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, patch_size: int | None, baseline: str, protocol: str
) -> dict[str, Tensor]:
    """How much the class's probability changes, (N,P) float64, when one square of the image is set to the *baseline*;
    the same for all methods."""
    groups = patches(batch.images.shape[2:], patch_size).to(batch.images.device)

    count = patch_count(batch.images.shape[2:], patch_size)
    replaced = replacing(batch, baseline)
    after = answers(batch, count, lambda images, numbers: replaced(images, groups == numbers[:, None])).probability
    return dict.fromkeys(maps, (after - unperturbed(batch).probability).abs())


def non_sensitivity(batch: Batch, maps: Tensor, passed: Tensor, *, patch_size: int | None, **parameters: Any) -> Tensor:
    """Share of the squares of the image that have no attribution though the class's probability depends on them, or
    some though it does not, in [0,1]; lower is better.

    A square has no attribution if none of its pixels has more than 1e-5 of the map's largest magnitude, and does not
    matter if taking it away changes the probability by less than 1e-5 (Quantus' thresholds). With ``patch_size=1`` the
    squares are the pixels of the definition; by default they are an eighth of the image wide, which costs fewer passes.
    Both protocols agree. Quantus gives the number of single channel values, where it does not crash.

    Nguyen & Martínez, On Quantitative Aspects of Model Interpretability, arXiv 2007.07584, 2020, section 4.1.
    """
    magnitudes = maps.abs().flatten(1)
    groups = patches(maps.shape[1:], patch_size).to(maps.device).expand(len(maps), -1)
    largest = magnitudes.new_zeros(passed.shape).scatter_reduce_(1, groups, magnitudes, "amax")
    unattributed = largest < NOTHING * magnitudes.amax(1, keepdim=True)
    return (unattributed ^ (passed < NOTHING)).double().mean(1)


class Shifted(nn.Module):
    """*model* for images whose values are all lower by *shift*: it adds the shift again.

    Changing the bias of the first layer instead (as the paper and Quantus do) is the same only without zero padding.
    """

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model = model
        self.shift = shift
        for name in ("prototypes", "cam_layer"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images + self.shift)
        return scores


class ShiftedEmbedding(Shifted):
    """`Shifted`, for a model that makes embeddings."""

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.embed(images + self.shift)  # type: ignore[operator]
        return features


def explain_shifted(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, shift: float, protocol: str
) -> dict[str, Tensor]:
    """The maps of all methods for the shifted images and the network that undoes the shift.

    The reference and the pixel space shift along, so that only the method can tell the difference.
    """
    wrapper = ShiftedEmbedding if callable(getattr(batch.model, "embed", None)) else Shifted
    # Kept, since the other forms that the shifted network has are made once too.
    model, kept = batch.kept.setdefault(f"lowered by {shift}", (wrapper(batch.model, shift), {}))
    images = batch.images - shift
    shifted = batch.but(
        model=model,
        images=images,
        layer=batch.layer,
        mean=batch.to_pixels(images.new_full((1, images.shape[1], 1, 1), shift)).flatten(),
        reference=None if batch.reference is None else batch.reference - shift,
        kept=kept,
    )
    return attribution.explain_many(shifted, maps)


def input_invariance(batch: Batch, maps: Tensor, passed: Tensor, **parameters: Any) -> Tensor:
    """Distance of the map to that for a shifted image and a network that undoes the shift,
    ||a - a'|| / (||a|| + ||a'||), in [0,1]; lower is better, 0 is invariant.

    All values of the normalised image are lowered by *shift*. Both protocols agree. Quantus says whether all values
    agree to 1e-4, and finds the first layer only of networks that are built like its own.

    Kindermans et al., The (Un)reliability of Saliency Methods, arXiv 1711.00867, 2017, section 2.
    """
    first, second = maps.flatten(1).double(), passed.flatten(1).double()
    return (first - second).norm(dim=1) / (first.norm(dim=1) + second.norm(dim=1))


METRICS = {
    "completeness": Metric(
        completeness,
        passes=lose_the_image,
        cost=lambda methods, image_size, parameters: 1,
        parameters={"protocol": PROTOCOL, "baseline": ZERO_FIRST},
        facet="axiomatic",
        direction="lower",
        range=(0, 1),
        citation="Sundararajan et al., ICML 2017",
    ),
    "non_sensitivity": Metric(
        non_sensitivity,
        passes=change_patches,
        cost=lambda methods, image_size, parameters: patch_count((image_size, image_size), parameters["patch_size"]),
        parameters={"protocol": PROTOCOL, "patch_size": positive_integer(None), "baseline": one_of(*BASELINES)},
        facet="axiomatic",
        direction="lower",
        range=(0, 1),
        citation="Nguyen & Martínez, arXiv 2007.07584, 2020",
    ),
    "input_invariance": Metric(
        input_invariance,
        passes=explain_shifted,
        cost=lambda methods, image_size, parameters: attribution.cost(methods, image_size),
        needs=frozenset({"re-explanation"}),
        parameters={"protocol": PROTOCOL, "shift": positive_number(1.0)},
        undefined=FLAT + CHANGED,
        facet="axiomatic",
        direction="lower",
        range=(0, 1),
        citation="Kindermans et al., arXiv 1711.00867, 2017",
    ),
}
