"""What is measured of a trained network beside its explanations: the names that its record and MLflow use.

`finishing.finish` measures all of it, on test images unless said otherwise; accuracies also on validation images, with
``validation_`` before the name. An undefined value (one class only, class means that coincide) is null.
"""

from math import inf
from typing import Literal, NamedTuple


class Measure(NamedTuple):
    """``direction`` is which way is better: more accurate, better calibrated, better clustered; None where neither is.

    ``bounds`` are the smallest and the largest value that there can be.
    """

    meaning: str
    direction: Literal["higher", "lower"] | None
    bounds: tuple[float, float]
    source: str


_GUO = "Guo et al. 2017, On calibration of modern neural networks"
_PAPYAN = (
    "Papyan, Han and Donoho 2020, Prevalence of neural collapse during the terminal phase of deep learning training"
)
_WANG = "Wang and Isola 2020, Understanding contrastive representation learning through alignment and uniformity"

# Whatever space a training objective acts on, features are compared by direction alone, as the read-outs see them.
_NORMALISED = "of L2-normalised features"

_CALIBRATION = {
    "": "as they are fitted",
    "_scaled": "divided by the temperature: what is explained under the corrected protocol",
    "_published": "of what is explained under the published protocol: not scaled, a probe on features that are not "
    "normalised",
}
_READOUTS = {
    "own_layer": "cross-entropy's own layer and the features that it reads",
    "linear_probe": "a linear probe and the L2-normalised features that it is trained on",
}
_COLLAPSE = {
    "nc1": ("variability within classes against that between them, tr(Σ_W Σ_B⁺) / K", (0, inf), "figure 6"),
    "nc2_equinorm": ("coefficient of variation of the centred class means' norms", (0, inf), "figure 2"),
    "nc2_equiangularity": ("standard deviation of the cosines between centred class means", (0, 1), "figure 3"),
    "nc2_maximal_angle": ("mean of |cos + 1 / (K - 1)| over pairs of centred class means", (0, 2), "figure 4"),
    "nc3": ("distance of weights and centred class means, each scaled to norm 1", (0, 2), "definition NC3"),
    "nc4": ("share of images that the nearest class mean classifies otherwise", (0, 1), "figure 7"),
}

MEASURES: dict[str, Measure] = {
    "accuracy/own_layer": Measure("accuracy of cross-entropy's own layer", "higher", (0, 1), ""),
    "accuracy/linear_probe": Measure(
        "accuracy of logistic regression on L2-normalised features, for every objective", "higher", (0, 1),
        "Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes"),
    "accuracy/prototype": Measure(
        "accuracy of the nearest class mean by cosine", "higher", (0, 1),
        "Snell et al. 2017, Prototypical networks for few-shot learning"),
    "accuracy/knn": Measure(
        "accuracy of the vote of the 20 nearest training images by cosine", "higher", (0, 1),
        "Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination"),
    "temperature": Measure(
        "what divides the scores to calibrate them, fitted on validation images", None, (0, inf), _GUO),
    **{f"calibration/ece{use}": Measure(
        f"expected calibration error in 15 bins of equal width of the scores {how}", "lower", (0, 1), _GUO)
       for use, how in _CALIBRATION.items()},
    **{f"calibration/nll{use}": Measure(
        f"negative log-likelihood, in nats per image, of the scores {how}", "lower", (0, inf), _GUO)
       for use, how in _CALIBRATION.items()},
    "geometry/silhouette": Measure(
        f"mean silhouette by cosine distance {_NORMALISED}", "higher", (-1, 1),
        "Rousseeuw 1987, Silhouettes: a graphical aid to the interpretation and validation of cluster analysis"),
    "geometry/within_between_ratio": Measure(
        f"trace of the within-class scatter over that of the between-class scatter {_NORMALISED}", "lower", (0, inf),
        "Fukunaga 1990, Introduction to statistical pattern recognition, section 10.2"),
    "geometry/alignment": Measure(
        f"mean squared distance of two images of one class {_NORMALISED}", "lower", (0, 4), _WANG),
    "geometry/uniformity": Measure(
        f"logarithm of the mean of exp(-2 · squared distance) of two images {_NORMALISED}", "lower", (-8, 0), _WANG),
    "geometry/effective_rank": Measure(
        f"exponential of the entropy of the singular values {_NORMALISED}, centred", None, (1, inf),
        "Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality"),
    **{f"geometry/{name}/{readout}": Measure(
        f"{meaning}; on training images, of {what}", "lower", bounds, f"{_PAPYAN}, {place}")
       for name, (meaning, bounds, place) in _COLLAPSE.items() for readout, what in _READOUTS.items()},
}  # fmt: skip
