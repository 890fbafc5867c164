"""How a measure answers to an objective's parameter: to the temperature, to the margin."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from scl_ray.report import statistics
from scl_ray.report.statistics import ALPHA, FEWEST_SEEDS
from scl_ray.report.terms import MEASURE, VIEW

_KEYS = [*VIEW, *MEASURE, "direction"]
SERIES = ["objective", "parameter", "others"]
_DOSE_COLUMNS = [*_KEYS, *SERIES, "dose", "mean", "low", "high", "spread", "seeds"]
_SLOPE_COLUMNS = [*_KEYS, *SERIES, "doses", "trials", "scale", "slope", "low", "high", "p", "p_straight"]


def tables(
    means: pd.DataFrame, trials: pd.DataFrame, recipes: Mapping[str, object]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every numeric parameter of an objective that the grid varies, against every measure: the doses and the slopes.

    *means*: `tables.seed_means`; *trials*: `Results.trials`; *recipes*: what else sets trials apart, by trial: a series
    holds trials of one recipe. Where several parameters of an objective vary, a series holds the others fixed; they
    are named in ``others`` (``margin=0.3``, empty where there are none).

    Doses, one row a series and dose: backbone, protocol, facet, metric, method, direction, objective (its name),
    parameter, others, dose, mean over seeds with its Student interval low and high, spread, seeds.

    Slopes, one row a series of at least two doses: the same keys, doses and trials (how many), scale (``doubling``, or
    ``unit`` where a dose is zero or less), slope (change of the measure for each doubling or unit of the dose, least
    squares over trials) with interval low and high and p, p_holm (over the slopes of the view), p_straight (the test
    that a straight line leaves no more than the spread over seeds; a small one says that the slope does not tell the
    whole, Draper & Smith, Applied Regression Analysis, section 2.1; nan for two doses), and verdict: whether the
    measure gets ``better`` or ``worse`` with the dose, or ``not decided`` (p_holm of 0.05 or more, or fewer than three
    seeds at a dose).
    """
    doses, slopes = [], []
    for series, dosed in _series(trials, recipes):
        rows = means.drop(columns="objective_label").merge(dosed, on="trial")
        for key, measure in rows.groupby(_KEYS, sort=False):
            told = measure.dropna(subset=["mean"])
            at_dose = [(dose, group["mean"].to_numpy(float)) for dose, group in told.groupby("dose")]
            for dose, values in at_dose:
                over_seeds = statistics.mean_over_seeds(values)
                spread = values.std(ddof=1) if len(values) > 1 else np.nan
                doses.append((*key, *series, dose, *over_seeds, spread, len(values)))
            if len(at_dose) > 1:
                fewest = min(len(values) for _, values in at_dose)
                slopes.append((*key, *series, len(at_dose), len(told), *_slope(told), fewest))
    found = pd.DataFrame(slopes, columns=[*_SLOPE_COLUMNS, "fewest"])
    found["p_holm"] = np.nan
    for _, members in found.groupby(VIEW, sort=False):
        found.loc[members.index, "p_holm"] = statistics.holm(members["p"].to_numpy(float))
    decided = (found["p_holm"] < ALPHA) & (found["fewest"] >= FEWEST_SEEDS)
    improved = (found["slope"] < 0) == (found["direction"] == "lower")
    found["verdict"] = np.where(decided, np.where(improved, "better", "worse"), "not decided")
    return pd.DataFrame(doses, columns=_DOSE_COLUMNS), found.drop(columns="fewest")


def _series(trials: pd.DataFrame, recipes: Mapping[str, object]) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Each series' objective, parameter and fixed others, with its trials and their dose."""
    known = trials.astype({"trial": str, "objective": str})
    fixed = {"trial", "objective", "objective_label", "backbone", "seed", "dataset"}
    for objective, rows in known.groupby("objective", sort=False):
        varied = [name for name in rows if name not in fixed and rows[name].nunique() > 1]
        rows = rows.assign(recipe=[str(recipes[trial]) for trial in rows["trial"]])
        for parameter in varied:
            if not pd.api.types.is_numeric_dtype(rows[parameter]) or pd.api.types.is_bool_dtype(rows[parameter]):
                continue
            others = [name for name in varied if name != parameter]
            # Trials of another recipe are not the same but for the dose.
            for _, group in rows.groupby([*others, "recipe"], observed=True, sort=False, dropna=False):
                group = group.dropna(subset=[parameter])
                if group[parameter].nunique() > 1:
                    named = ", ".join(f"{name}={group[name].iloc[0]}" for name in others)
                    yield (str(objective), str(parameter), named), group[["trial"]].assign(dose=group[parameter])


def _slope(trials: pd.DataFrame) -> tuple[str, float, float, float, float, float]:
    """Scale, slope, low, high, p, p_straight of trials with their dose and mean."""
    from scipy.special import fdtrc

    scale = "doubling" if trials["dose"].min() > 0 else "unit"
    x = np.log2(trials["dose"]) if scale == "doubling" else trials["dose"]
    x, y = (x - x.mean()).to_numpy(), trials["mean"].to_numpy(float)
    slope = float(x @ y / (x @ x))
    residues = y - y.mean() - slope * x
    residues[np.abs(residues) < 1e-12 * np.abs(y).max()] = 0  # digits that rounding leaves are no spread
    left, doses = len(y) - 2, trials["dose"].nunique()
    variance = residues @ residues / left / (x @ x) if left > 0 else np.nan
    found = statistics.by_t(*map(np.asarray, (slope, variance, float(left))))
    within = float(((trials["mean"] - trials.groupby("dose")["mean"].transform("mean")) ** 2).sum())
    p_straight = np.nan
    if doses > 2 and len(y) > doses and within > 0:
        bent = max(residues @ residues - within, 0.0) / (doses - 2)
        p_straight = float(fdtrc(doses - 2, len(y) - doses, bent / (within / (len(y) - doses))))
    return scale, slope, float(found.low), float(found.high), float(found.p), p_straight
