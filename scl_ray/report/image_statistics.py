"""What the scores of images add: seeds (rows) by images (columns), the same images on both sides of a comparison.

An image here is never a unit of replication, save in `published`, which repeats what is done in the field.
"""

import numpy as np
from numpy.typing import NDArray

from scl_ray.report.statistics import ALPHA, Difference, Interval, by_t, satterthwaite, seeds_of

Scores = NDArray[np.floating]


def superiority(values: Scores, reference: Scores, direction: str) -> Interval:
    """The probability that on an image a network of the one recipe scores better than one of the other, ties half.

    *values* (n, images) and *reference* (m, images), nan where undefined (such an image counts for the pairs of
    networks that have it); *direction*, ``lower`` or ``higher``, is the better one. The estimate is the mean over all
    n·m pairs of networks and all images. The interval is that of a U-statistic over networks (its variance from the
    networks' own means, DeLong et al., Biometrics 44, 1988; Student's quantile at Satterthwaite's degrees of freedom),
    taken on the logit so that it stays in [0, 1]; nan below two seeds on either side, and where one always wins.
    """
    from scipy.special import stdtrit

    sign = -1.0 if direction == "lower" else 1.0
    wins = np.full((len(values), len(reference)), np.nan)
    for row, own in enumerate(values):
        difference = sign * (own - reference)
        told = (~np.isnan(difference)).sum(1)
        with np.errstate(invalid="ignore"):
            wins[row] = ((difference > 0).sum(1) + 0.5 * (difference == 0).sum(1)) / told
    wins = wins[~np.isnan(wins).all(1)][:, ~np.isnan(wins).all(0)]
    if wins.size == 0 or np.isnan(wins).any():
        return Interval(np.nan, np.nan, np.nan)
    probability = wins.mean()
    one, other = seeds_of(wins.mean(1)), seeds_of(wins.mean(0))
    variance, freedom = satterthwaite(*((side.variance / side.number, side.number - 1) for side in (one, other)))
    if not variance > 0 or probability in (0, 1):
        return Interval(probability, np.nan, np.nan)
    logit = np.log(probability / (1 - probability))
    half = stdtrit(freedom, 1 - ALPHA / 2) * np.sqrt(variance) / (probability * (1 - probability))
    return Interval(probability, *(1 / (1 + np.exp(-(logit + side * half))) for side in (-1, 1)))


def mixed_model(values: Scores, reference: Scores) -> Difference:
    """The difference of two recipes for new seeds and new images, by a balanced mixed model.

    A score is the sum of the recipe (fixed), the seed within the recipe, the image (crossed with the recipe), the
    recipe on that image, and a residue (random). *values* (n, images) and *reference* (m, images); an image that is
    undefined for any network is left out. What the difference of means varies by is Welch's variance over seeds plus
    what the recipe does differently on each image: the variance over images of the difference of the recipes' means,
    less the residue's share in it (no less than zero), by the number of images. Degrees of freedom are Satterthwaite's.
    With equal seeds this is the quasi-F of the mean squares; each recipe has its own spread over seeds here. nan below
    two seeds on either side or two images.

    Searle, Casella & McCulloch, Variance Components, 1992, chapter 4; Clark, J. Verbal Learn. Verbal Behav. 12, 1973.
    """
    defined = ~(np.isnan(values).any(0) | np.isnan(reference).any(0))
    sides = [side[:, defined].astype(float) for side in (values, reference)]
    images = int(defined.sum())
    if images == 0:
        return Difference(np.nan, np.nan, np.nan, np.nan)
    of_seeds = [seeds_of(side.mean(1)) for side in sides]
    difference = of_seeds[0].mean - of_seeds[1].mean
    if min(len(side) for side in sides) < 2 or images < 2:
        return Difference(difference, np.nan, np.nan, np.nan)
    parts: list[tuple[float, float]] = [
        (float(seeds.variance / seeds.number), float(seeds.number - 1)) for seeds in of_seeds
    ]
    on_images = np.var(sides[0].mean(0) - sides[1].mean(0), ddof=1) / images
    residues = [_residue(side) / (len(side) * images) for side in sides]
    if on_images > sum(residues):
        parts += [(on_images, images - 1)]
        parts += [(-residue, (len(side) - 1) * (images - 1)) for side, residue in zip(sides, residues, strict=True)]
    variance, freedom = satterthwaite(*((np.asarray(part), np.asarray(free)) for part, free in parts))
    return by_t(difference, variance, freedom)


def _residue(scores: Scores) -> float:
    """The mean square of what neither the seed nor the image explains."""
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    return float((rest**2).sum() / ((scores.shape[0] - 1) * (scores.shape[1] - 1)))


def published(values: Scores, reference: Scores) -> Difference:
    """The paired t-test over images that the field publishes: every image of every seed counts as one observation.

    *values* and *reference*: (n, images) in the same order of seeds. Anti-conservative: two recipes that do not differ
    are found different in most sweeps, since networks differ by their seeds and images multiply. It decides nothing
    here and is shown so that numbers can be set beside published ones.
    """
    differences = (values - reference).ravel().astype(float)
    of = seeds_of(differences)
    return by_t(of.mean, of.variance / of.number, of.number - 1)
