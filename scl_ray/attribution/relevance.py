"""Methods that share a score out layer by layer, so that the shares add up to it.

Whether they do is checked for every image: the map is nan where they do not. The channels of a pixel are summed.
"""

import torch
from torch import Tensor

from scl_ray.attribution.deeplift import lift
from scl_ray.attribution.lrp import relevances
from scl_ray.attribution.method import Method
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PROTOCOL, TARGET, positive_integer, positive_number
from scl_ray.attribution.rules import rewritten

# How far the sum of a map may miss what it should be: relative to that and, for the rounding of what cancels, to the
# magnitudes of all that is added up. ResNets, VGG, DenseNet and MobileNets miss it by 1e-6 of these at most; a network
# with an operation that has no rule, by a tenth and more.
TOLERANCE = 1e-3
ROUNDING = 1e-5


_NO_REFERENCE = "deep_lift_shap needs reference images; give reference=, a tensor (M,C,H,W)"


def deep_lift(question: Question, spec: str, *, protocol: str) -> Tensor:
    """What each pixel adds to the score, compared with the zero of the normalised space (the mean image); (N,H,W),
    signed. It adds up to the score's difference; where it does not, to 1e-3, the map is nan.

    By the rescale rule; of what follows the features, a norm's multipliers are its mean gradient, so that they add up.

    Shrikumar et al., Learning Important Features Through Propagating Activation Differences, ICML 2017.
    """
    return _lifted(question, "deep_lift", torch.zeros_like(question.images[:1]))


def deep_lift_shap(question: Question, spec: str, *, baselines: int, protocol: str) -> Tensor:
    """Mean of `deep_lift` over *baselines* images, spread evenly over the reference, or over all of it where that has
    fewer; (N,H,W), signed. It adds up to the difference to their mean score.

    Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, section 4.2.
    """
    reference = question.batch.reference
    if reference is None:
        raise ValueError(_NO_REFERENCE)
    count = min(baselines, len(reference))
    chosen = torch.arange(count, device=reference.device) * len(reference) // count
    return _lifted(question, "deep_lift_shap", reference[chosen])


def lrp(question: Question, spec: str, *, gamma: float, protocol: str) -> Tensor:
    """Relevance of each pixel, by LRP-gamma in convolutions and LRP-0 elsewhere; (N,H,W), signed.

    With what the biases absorb, it adds up to the score; where it does not, to 1e-3, the map is nan. In convolutions,
    contributions that have the sign of the output count 1 + *gamma* times. A norm that follows the features counts as
    a constant.

    Bach et al., PLoS ONE 10(7), 2015; Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019, section
    10.2; for either sign, Andéol et al., Learning Domain Invariant Representations by Joint Wasserstein Distance
    Minimization, 2021.
    """
    attributions, absorbed, outputs = relevances(rewritten(question, "lrp"), question.images, question.weights, gamma)
    return _conserved(attributions.sum(1), outputs * question.weights, absorbed)


def _lifted(question: Question, method: str, baselines: Tensor) -> Tensor:
    attributions, outputs, reference = lift(rewritten(question, method), question.images, baselines, question.weights)
    return _conserved(attributions.sum(1), outputs * question.weights, (reference * question.weights).sum(1))


def _conserved(maps: Tensor, terms: Tensor, rest: Tensor) -> Tensor:
    """*maps* (N,H,W), nan where map and *rest* (N,) do not add up to the score, which is the sum of *terms* (N,K)."""
    wanted = terms.sum(1) - rest
    magnitudes = maps.abs().sum((1, 2)) + terms.abs().sum(1) + rest.abs()
    adds_up = (maps.sum((1, 2)) - wanted).abs() <= TOLERANCE * wanted.abs() + ROUNDING * magnitudes
    return torch.where(adds_up[:, None, None], maps, torch.nan)


def _serves_deep_lift(question: Question, **parameters: object) -> None:
    _must_add_up(question, "deep_lift", deep_lift(question, "deep_lift", protocol="corrected"))


def _serves_deep_lift_shap(question: Question, **parameters: object) -> None:
    if question.batch.reference is None:
        raise ValueError(_NO_REFERENCE)
    # Compared with the mean image: a reference image may be the one that it is tried on.
    _must_add_up(question, "deep_lift_shap", deep_lift(question, "deep_lift_shap", protocol="corrected"))


def _serves_lrp(question: Question, *, gamma: float, **parameters: object) -> None:
    _must_add_up(question, "lrp", lrp(question, "lrp", gamma=gamma, protocol="corrected"))


def _must_add_up(question: Question, method: str, maps: Tensor) -> None:
    if maps.isnan().any():
        raise ValueError(f"{method} cannot explain {type(question.batch.model).__name__}: what the pixels get does not "
                         "add up to the score, so the network has an operation without a rule")  # fmt: skip


METHODS = {
    "deep_lift": Method(
        deep_lift,
        serves=_serves_deep_lift,
        class_discriminative=True,
        citation="Shrikumar et al., ICML 2017",
        cost=lambda parameters, image_size: 3,
    ),
    "deep_lift_shap": Method(
        deep_lift_shap,
        serves=_serves_deep_lift_shap,
        class_discriminative=True,
        parameters={"protocol": PROTOCOL, "target": TARGET, "baselines": positive_integer(10)},
        citation="Lundberg & Lee, NeurIPS 2017",
        cost=lambda parameters, image_size: 1 + 2 * int(parameters["baselines"]),
    ),
    "lrp": Method(
        lrp,
        serves=_serves_lrp,
        class_discriminative=True,
        parameters={"protocol": PROTOCOL, "target": TARGET, "gamma": positive_number(0.25)},
        citation="Bach et al., PLoS ONE 2015",
        cost=lambda parameters, image_size: 6,
    ),
}
