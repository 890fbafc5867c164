"""Do the metrics agree, does attribution quality go with other properties of a network, and which method is best?"""

from collections.abc import Iterable
from functools import cache
from itertools import combinations, permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scl_ray.report import statistics
from scl_ray.report.statistics import ALPHA, Values
from scl_ray.report.terms import ACCURACY, MEASURE, VIEW
from scl_ray.report.view_scores import ViewScores

MOST_PERMUTED = 7  # 5040 permutations
FEWEST_TRIALS = 4  # any three points have a rank correlation of at least a half, one way or the other
_CORRELATION = ["trials", "over_trials", "objectives", "over_objectives", "p_over_objectives", "within_objectives",
                "p_within_objectives"]  # fmt: skip


def of_metrics(means: pd.DataFrame, views: Iterable[ViewScores]) -> pd.DataFrame:
    """Rank correlations (Spearman) of each two metrics under the same method, signed so that 1 is perfect agreement on
    what is better.

    *means*: `tables.seed_means`. Columns: backbone, protocol, method, facet, metric, other_facet, other_metric;
    over_images, images_low, images_high: within a network, over its images that all trials classify correctly, the mean
    over networks with Student's interval; and those of `correlations` over networks.
    """
    signed = means.assign(mean=means["mean"].where(means["direction"] == "higher", -means["mean"]))
    rows = []
    for scores in views:
        ranked = _ranks_of_images(scores)
        of_view = signed[(signed["backbone"] == scores.backbone) & (signed["protocol"] == scores.protocol)]
        wide = of_view.pivot(index=["trial", "objective_label"], columns=["method", "metric"], values="mean")
        wide = wide.reindex(columns=pd.MultiIndex.from_frame(scores.measures[["method", "metric"]]))
        labels = wide.index.get_level_values("objective_label").to_numpy()
        for method, cells in scores.measures.groupby("method", sort=False):
            for one, other in combinations(cells.index, 2):
                first, second = scores.measures.loc[one], scores.measures.loc[other]
                within = statistics.mean_over_seeds(_over_images(ranked[one], ranked[other]))
                columns = [wide[method, measure["metric"]].to_numpy(float) for measure in (first, second)]
                both = (first["facet"], first["metric"], second["facet"], second["metric"])
                found = correlations(columns[0], columns[1], labels)
                rows.append((scores.backbone, scores.protocol, method, *both, *map(float, within), *found))
    columns = [*VIEW, "method", "facet", "metric", "other_facet", "other_metric", "over_images", "images_low",
               "images_high", *_CORRELATION]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def with_properties(means: pd.DataFrame, properties: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations (Spearman) of attribution quality with other *properties* of the networks, one column each by
    trial (accuracies, temperature, ``geometry/…``, ``calibration/…``), and with the accuracy of what is explained.

    A positive one says: the more of the property, the better the measure. *means*: `tables.seed_means`. Columns:
    backbone, protocol, facet, metric, method, direction, property; those of `correlations`; p_holm: of
    p_within_objectives over the measure's properties.
    """
    accuracy = means[means["facet"] == ACCURACY]
    rows = []
    for (*key, direction), measure in means[means["facet"] != ACCURACY].groupby(
        [*VIEW, *MEASURE, "direction"], sort=False
    ):
        of_view = accuracy[(accuracy[VIEW] == key[:2]).all(axis=1)].set_index("trial")["mean"]
        values = measure["mean"].to_numpy(float) * (1 if direction == "higher" else -1)
        known = properties.reindex(measure["trial"]).assign(**{ACCURACY: of_view.reindex(measure["trial"])})
        labels = measure["objective_label"].to_numpy()
        for name in known:
            of = known[name].to_numpy(float)
            if np.isfinite(of).sum() >= FEWEST_TRIALS and len(np.unique(of[np.isfinite(of)])) > 1:
                rows.append((*key, direction, name, *correlations(values, of, labels)))
    table = pd.DataFrame(rows, columns=[*VIEW, *MEASURE, "direction", "property", *_CORRELATION])
    table["p_holm"] = np.nan
    for _, members in table.groupby([*VIEW, *MEASURE], sort=False):
        table.loc[members.index, "p_holm"] = statistics.holm(members["p_within_objectives"].to_numpy(float))
    return table


def correlations(values: Values, others: Values, objectives: NDArray) -> tuple[float, ...]:
    """How two properties of networks go together, by ranks: trials, over_trials, objectives, over_objectives,
    p_over_objectives, within_objectives, p_within_objectives.

    Networks of one objective resemble each other, so the correlation ``over_trials`` has no test of its own. It mixes
    two questions that have one: whether objectives that have more of the one have more of the other
    (``over_objectives``: of the objectives' means; an exact permutation test up to seven of them), and whether
    networks do that share their objective (``within_objectives``: of ranks less their objective's mean).
    """
    told = ~(np.isnan(values) | np.isnan(others))
    values, others, objectives = values[told], others[told], objectives[told]
    nothing = (np.nan, np.nan)
    labels, member = np.unique(objectives.astype(str), return_inverse=True)
    if len(values) < FEWEST_TRIALS:
        return (len(values), np.nan, len(labels), *nothing, *nothing)
    ranks = [_ranks(side) for side in (values, others)]
    counts = np.bincount(member)
    centre = [np.bincount(member, side) / counts for side in (values, others)]
    between = _spearman_test(*centre) if len(labels) >= FEWEST_TRIALS else nothing
    inner = [side - (np.bincount(member, side) / counts)[member] for side in ranks]
    within = _correlation_test(inner[0], inner[1], len(values) - len(labels) - 1)
    return (len(values), _correlation(*ranks), len(labels), *between, *within)


def of_methods(means: pd.DataFrame) -> pd.DataFrame:
    """Which attribution methods a metric prefers: mean ranks over networks, and how far apart they have to lie.

    A block is a network (its mean over common images), never an image: images of one network are not independent, and
    thousands of them would tell any two methods apart. *means*: `tables.seed_means`; a network for which a method is
    undefined is left out. Columns: backbone, protocol, facet, metric, direction, method, mean, rank (1 is best, ties
    share), trials, methods, p (Friedman's test that all methods are alike, or the sign test of two),
    critical_difference (of mean ranks at 5 %, Nemenyi), best (no method's mean
    rank lies farther ahead than that, and p < 0.05).

    Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    from scipy.stats import binomtest, friedmanchisquare, rankdata, studentized_range

    rows = []
    scores = means[means["facet"] != ACCURACY]
    for key, measure in scores.groupby([*VIEW, "facet", "metric", "direction"], sort=False):
        wide = measure.pivot(index="trial", columns="method", values="mean")[measure["method"].unique()]
        # A method that no network has a value for takes nothing from the others.
        wide = wide.dropna(axis="columns", how="all").dropna()
        networks, methods = wide.shape
        if methods < 2 or networks < 2:
            continue
        oriented = wide.to_numpy() * (-1 if key[-1] == "higher" else 1)
        ranks = rankdata(oriented, axis=1).mean(axis=0)
        if methods > 2:
            with np.errstate(invalid="ignore"):  # nan where all are alike for every network
                p = float(friedmanchisquare(*oriented.T).pvalue)
        else:
            wins = int((oriented[:, 0] < oriented[:, 1]).sum())
            uneven = int((oriented[:, 0] != oriented[:, 1]).sum())
            p = float(binomtest(wins, uneven).pvalue) if uneven else np.nan
        quantile = studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
        critical = quantile * np.sqrt(methods * (methods + 1) / (6 * networks))
        best = (ranks - ranks.min() <= critical) & (p < ALPHA)
        for method, mean, rank, among_best in zip(wide.columns, wide.mean(), ranks, best, strict=True):
            rows.append((*key, method, mean, rank, networks, methods, p, critical, among_best))
    columns = [*VIEW, "facet", "metric", "direction", "method", "mean", "rank", "trials", "methods", "p",
               "critical_difference", "best"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _ranks_of_images(scores: ViewScores) -> NDArray[np.float32]:
    """The ranks (measures, trials, images) of common images, low to high quality; nan where undefined."""
    from scipy.stats import rankdata

    ranks = np.full((*scores.values.shape[:2], int(scores.common.sum())), np.nan, np.float32)
    for place, of_measure in enumerate(scores.values):
        values = of_measure[:, scores.common]
        sign = -1 if scores.measures["direction"].iloc[place] == "lower" else 1
        defined = ~np.isnan(values)
        if defined.all():
            ranks[place] = rankdata(sign * values, axis=1)
        else:
            for trial, told in enumerate(defined):
                ranks[place, trial, told] = rankdata(sign * values[trial, told])
    return ranks


def _over_images(one: NDArray[np.float32], other: NDArray[np.float32]) -> Values:
    """The correlation of ranks (trials, images) in each trial. Where an image is undefined for one of the two, the
    other's ranks keep a gap, which is no matter among many images."""
    told = ~(np.isnan(one) | np.isnan(other))
    count = told.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = []
        for side in (one, other):
            held = np.where(told, side, 0).astype(float)
            sides.append(np.where(told, held - held.sum(1, keepdims=True) / count[:, None], 0))
        scale = np.sqrt((sides[0] ** 2).sum(1) * (sides[1] ** 2).sum(1))
        return np.where((count >= FEWEST_TRIALS) & (scale > 0), (sides[0] * sides[1]).sum(1) / scale, np.nan)


def _ranks(values: Values) -> Values:
    from scipy.stats import rankdata

    return rankdata(values)


def _correlation(one: Values, other: Values) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one @ one) * (other @ other))
    # Sums that cancel leave their last digits.
    return float(one @ other / scale) if scale > 1e-9 else np.nan


def _correlation_test(one: Values, other: Values, freedom: int) -> tuple[float, float]:
    """A correlation and the p of its t-test, whose centring has already taken the degrees of freedom."""
    from scipy.special import stdtr

    found = _correlation(one, other)
    if np.isnan(found) or freedom < 1:
        return found, np.nan
    unexplained = max(1 - found**2, np.finfo(float).eps)  # rounding may leave less than nothing
    return found, float(2 * stdtr(freedom, -abs(found) * np.sqrt(freedom / unexplained)))


def _spearman_test(one: Values, other: Values) -> tuple[float, float]:
    """Spearman's correlation and its p: by all permutations up to seven points, else by t."""
    ranks = [_ranks(side) - (len(side) + 1) / 2 for side in (one, other)]
    if len(one) > MOST_PERMUTED:
        return _correlation_test(ranks[0], ranks[1], len(one) - 2)
    found = _correlation(*ranks)
    products = ranks[1][_permutations(len(one))] @ ranks[0]
    # Products of ranks that are the same number may differ in their last digits.
    as_extreme = np.abs(products) >= abs(ranks[0] @ ranks[1]) - 1e-9
    return found, np.nan if np.isnan(found) else float(as_extreme.mean())


@cache
def _permutations(count: int) -> NDArray[np.intp]:
    return np.array(list(permutations(range(count))))
