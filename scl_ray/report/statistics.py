"""What the networks of two recipes say about the recipes: the seed is the unit of replication, never the image.

Images of one network are not independent samples of a training recipe, so a test over images finds anything
significant. Here a network is one number per measure (its mean over images), and recipes are compared by their
networks.

Seeds stand on the last axis of every array; axes before it are further comparisons, each by itself. A seed without a
value (nan) counts for nothing, and what cannot be told is nan.

The test that decides is `welch`. From the same seed two recipes draw the same first weights, yet batches, losses and
schedules differ, so their networks need not resemble each other. Welch's test holds its level for seeds that are
independent and for seeds that resemble each other, where it is too careful. The `paired` test holds it too, but has
half the degrees of freedom: with five independent seeds it finds a difference of two standard deviations in 66 of 100
sweeps, Welch's in 77; it gains only from seeds that resemble each other closely. Which of the two suits may not be
read off the same numbers, so one of them is fixed and the other stands beside it.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
FEWEST_SEEDS = 3  # two points say too little about their own spread for any verdict
MOST_SEEDS = 10_000  # what nobody trains
RESAMPLES = 2000

Values = NDArray[np.float64]
Number = Any  # a float, or an array of floats over the leading axes


class Difference(NamedTuple):
    """A difference of two means with its two-sided 95 % interval and p-value (nan where they cannot be told)."""

    difference: Number
    low: Number
    high: Number
    p: Number


class Interval(NamedTuple):
    """An estimate with its two-sided 95 % interval (nan where it cannot be told)."""

    estimate: Number
    low: Number
    high: Number


class Seeds(NamedTuple):
    """One side of a comparison: how many networks, their mean and their variance (n - 1)."""

    number: Values
    mean: Values
    variance: Values


def seeds_of(values: Values) -> Seeds:
    """Count, mean and variance of the seeds (..., n) that have a value."""
    defined = ~np.isnan(values)
    count = defined.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, values, 0).sum(-1) / count
        variance = np.where(defined, (values - mean[..., None]) ** 2, 0).sum(-1) / (count - 1)
        # Sums of the same numbers in another order differ in their last digits, which is no spread.
        variance = np.where(variance > (1e-12 * mean) ** 2, variance, 0.0)
    return Seeds(count, mean, np.where(count > 1, variance, np.nan))


def by_t(difference: Values, variance: Values, freedom: Values) -> Difference:
    """The interval and the test of a difference whose *variance* was estimated with *freedom* degrees; nan where
    nothing varies."""
    from scipy.special import stdtr, stdtrit

    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.where(variance > 0, variance, np.nan))
        half = stdtrit(freedom, 1 - ALPHA / 2) * error
        p = 2 * stdtr(freedom, -np.abs(difference / error))
    return Difference(difference, difference - half, difference + half, p)


def satterthwaite(*parts: tuple[Values, Values]) -> tuple[Values, Values]:
    """The sum of independent mean squares, each with its degrees of freedom, and the sum's own degrees of freedom
    (Satterthwaite, Biometrics Bulletin 2, 1946). A part without freedom has to be zero."""
    total = sum(part for part, _ in parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = sum(np.where(part == 0, 0, part**2 / freedom) for part, freedom in parts)
        return np.asarray(total), np.asarray(total**2 / lost)


def welch(values: Values, reference: Values) -> Difference:
    """Welch's t-test of *values* (..., n) against *reference* (..., m) (Welch, Biometrika 34, 1947).

    Interval and p-value are nan below two seeds on either side, and where neither side varies.
    """
    one, other = seeds_of(values), seeds_of(reference)
    variance, freedom = satterthwaite(*((side.variance / side.number, side.number - 1) for side in (one, other)))
    return by_t(one.mean - other.mean, variance, freedom)


def paired(values: Values, reference: Values) -> Difference:
    """The paired t-test of *values* against *reference*, both (..., n) in the same order of seeds; a seed that lacks a
    value on either side is left out."""
    of = seeds_of(values - reference)
    return by_t(of.mean, of.variance / of.number, of.number - 1)


def ratio(values: Values, reference: Values) -> Interval:
    """How many times the *reference* (..., m) the *values* (..., n) are: the ratio of geometric means with Welch's
    interval of the logarithms. nan unless all are positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logarithms = [np.where(np.nanmin(side, -1, initial=np.inf, keepdims=True) > 0, np.log(side), np.nan)
                      for side in (values, reference)]  # fmt: skip
        return Interval(*np.exp(welch(logarithms[0], logarithms[1])[:3]))


def bootstrap(values: Values, reference: Values) -> Interval:
    """The interval of the difference by resampling seeds, *values* (n,) and *reference* (m,), made wide enough for few
    of them.

    The spread of resampled means is that of the seeds with n, not n - 1, in the denominator, and its percentiles are
    those of a known spread; so each side's deviations are stretched by sqrt(n / (n - 1)), and all by the ratio of
    Student's to the normal quantile, at Welch's degrees of freedom. Without that, three seeds cover 80 % instead of 95
    (Hesterberg, The American Statistician 69, 2015, section 4.1). Resampling is seeded: same seeds, same interval.
    """
    from scipy.special import ndtri, stdtrit

    sides = [side[~np.isnan(side)] for side in (values, reference)]
    one, other = (seeds_of(side) for side in sides)
    variance, freedom = satterthwaite(*((side.variance / side.number, side.number - 1) for side in (one, other)))
    difference = one.mean - other.mean
    if not variance > 0:
        return Interval(difference, np.nan, np.nan)
    generator = np.random.default_rng(0)
    deviations = [
        (side[generator.integers(len(side), size=(RESAMPLES, len(side)))].mean(1) - side.mean())
        * np.sqrt(len(side) / (len(side) - 1))
        for side in sides
    ]
    ends = np.quantile(deviations[0] - deviations[1], [ALPHA / 2, 1 - ALPHA / 2])
    low, high = difference + ends * stdtrit(freedom, 1 - ALPHA / 2) / ndtri(1 - ALPHA / 2)
    return Interval(difference, low, high)


def standardised(values: Values, reference: Values) -> Interval:
    """Hedges' g of *values* (..., n) against *reference* (..., m): the difference in pooled standard deviations over
    seeds, without the bias of small samples (Hedges, J. Educ. Stat. 6, 1981).

    The interval holds the standardised differences under which a t of the one observed, or a more extreme one, comes in
    no less than 2.5 % of sweeps (noncentral t); it takes both sides' spreads for equal.
    """
    from scipy.special import gammaln, nctdtrinc

    one, other = seeds_of(values), seeds_of(reference)
    freedom = one.number + other.number - 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = ((one.number - 1) * one.variance + (other.number - 1) * other.variance) / freedom
        size = np.sqrt(1 / one.number + 1 / other.number)
        t = (one.mean - other.mean) / (np.sqrt(np.where(pooled > 0, pooled, np.nan)) * size)
        unbiased = np.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2)
        low, high = (
            np.where(np.isnan(t), np.nan, nctdtrinc(freedom, share, t)) for share in (1 - ALPHA / 2, ALPHA / 2)
        )
        return Interval(unbiased * size * t, size * low, size * high)


def power(difference: float, variances: tuple[float, float], seeds: int, alpha: float = ALPHA) -> float:
    """The share of sweeps with *seeds* networks on either side in which Welch's test at level *alpha* finds a true
    *difference* of its own sign between recipes of these *variances*.

    Of normal samples, how two mean squares share out does not depend on their sum. Given it, Welch's t is a multiple of
    a noncentral t with all 2n - 2 degrees of freedom, against the quantile at its own; the share is a beta variable, at
    whose quantiles the power is averaged. With the degrees of freedom of the true variances instead, three seeds would
    seem to find in 78 of 100 sweeps what they find in 67.
    """
    from scipy.special import betaincinv, nctdtr, stdtrit

    one, other = variances
    freedom, points = seeds - 1, 16
    share = betaincinv(freedom / 2, freedom / 2, (np.arange(points) + 0.5) / points)
    own, base = one * share, other * (1 - share)
    critical = stdtrit(freedom * (own + base) ** 2 / (own**2 + base**2), 1 - alpha / 2)
    multiple = np.sqrt((one + other) / (2 * (own + base)))
    missed = nctdtr(2 * freedom, abs(difference) / np.sqrt((one + other) / seeds), critical / multiple)
    return float(1 - np.nan_to_num(missed).mean())  # it gives nan where nothing is missed: below about 1e-200


def seeds_needed(values: Values, reference: Values, alpha: float = ALPHA) -> float:
    """The fewest seeds a side, of at least three, with which Welch's test at level *alpha* has a power of 80 %, if the
    difference and the spreads are as observed on *values* (n,) and *reference* (m,).

    inf where there is no difference or more than 10,000 would be needed; nan where the spread cannot be told.
    """
    one, other = seeds_of(values), seeds_of(reference)
    difference, variances = float(one.mean - other.mean), (float(one.variance), float(other.variance))
    if not sum(variances) > 0:
        return np.nan
    few, enough = FEWEST_SEEDS - 1, MOST_SEEDS
    if power(difference, variances, enough, alpha) < POWER:
        return np.inf
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(difference, variances, middle, alpha) >= POWER else (middle, enough)
    return float(enough)


def holm(p: Values) -> Values:
    """p-values (k,) adjusted for the number of comparisons (Holm, Scand. J. Stat. 6, 1979); nan stays nan and is no
    member of the family."""
    adjusted = np.full(len(p), np.nan)
    told = np.flatnonzero(~np.isnan(p))
    ascending = told[np.argsort(p[told], kind="stable")]
    raised = p[ascending] * np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return adjusted


def holm_levels(p: Values) -> Values:
    """The level (k,) that Holm's procedure sets each of the p-values (k,) against: 5 % by the number of comparisons
    that are no clearer."""
    levels = np.full(len(p), np.nan)
    told = np.flatnonzero(~np.isnan(p))
    levels[told[np.argsort(p[told], kind="stable")]] = ALPHA / np.arange(len(told), 0, -1)
    return levels


def mean_over_seeds(values: Values) -> Interval:
    """The mean of the seeds (..., n) with Student's interval."""
    of = seeds_of(values)
    return Interval(*by_t(of.mean, of.variance / of.number, of.number - 1)[:3])


def over_seeds(means: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The mean and the spread (standard deviation, n - 1) over seeds of the trials' means, by *keys*.

    Columns beside the keys: mean, spread (nan for one seed), seeds (with a defined mean), images, undefined (both
    summed over seeds).
    """
    return means.groupby(keys, observed=True, sort=False, as_index=False).agg(
        mean=("mean", "mean"), spread=("mean", "std"), seeds=("mean", "count"),
        images=("images", "sum"), undefined=("undefined", "sum"))  # fmt: skip
