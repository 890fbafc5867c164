"""The terms of the report's tables: what a view and a measure are, and how their numbers are written."""

from typing import Any

import numpy as np
import pandas as pd

from scl_ray import specs

VIEW = ["backbone", "protocol"]  # objectives are compared within one backbone and one protocol
MEASURE = ["facet", "metric", "method"]
ACCURACY = "accuracy"
MEASURED = "measured/"

_MOST_DIGITS, _MOST_ZEROS = 6, 3  # after the point, and at the end of a whole number

_SPELLED = {"auc": "AUC", "ssim": "SSIM", "mprt": "MPRT", "irof": "IROF", "road": "ROAD"}
_HYPHENATED = {"pixel flipping": "pixel-flipping", "prediction flip": "prediction-flip"}


def representative(measures: pd.DataFrame) -> pd.DataFrame:
    """The measures that stand for their facets: accuracy, and of each facet the first metric under the first method."""
    first = measures.drop_duplicates([*VIEW, "facet"])[[*VIEW, *MEASURE]]
    return measures.merge(first)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts by column."""
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def decimals(values: pd.Series, significant: int = 3) -> int:
    """Digits after the point that show this many *significant* ones of the largest value. Beyond six, or below minus
    three, `written` shows powers of ten."""
    known = np.abs(values.to_numpy(float))
    largest = float(np.max(known, initial=0.0, where=np.isfinite(known)))
    digits = significant - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 2
    return digits if digits < -_MOST_ZEROS else max(digits, 0)


def resolving(difference: float, low: float, high: float, significant: int = 3) -> int:
    """`decimals` of a difference or of half its interval, whichever is larger: those that say something."""
    return decimals(pd.Series([difference, (high - low) / 2]), significant)


def written(value: float, digits: int) -> str:
    """The value with *digits* after the point and a true minus; never a minus zero, and a power of ten (``1.25e−8``)
    where digits would be mostly zeros."""
    if value == 0 or 0 <= digits <= _MOST_DIGITS or not np.isfinite(value):
        text = f"{value:.{digits if 0 <= digits <= _MOST_DIGITS else 0}f}"
    else:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def number(mean: float, spread: float, digits: int) -> str:
    """``0.271 ± 0.012``; the mean alone where one seed has no spread, a dash where nothing is defined."""
    if np.isnan(mean):
        return "–"
    return written(mean, digits) if np.isnan(spread) else f"{written(mean, digits)} ± {written(spread, digits)}"


def signed(difference: float, digits: int) -> str:
    """``+0.012`` or ``−0.109``, with a true minus; ``0.000`` has no sign."""
    text = written(difference, digits)
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"


def interval(low: float, high: float, digits: int) -> str:
    """``[−0.132, −0.086]``; nothing where it cannot be told."""
    return "" if np.isnan(low) else f"[{written(low, digits)}, {written(high, digits)}]"


def p_value(p: float) -> str:
    """``= 0.031`` or ``< 0.001``; what lies below 5 % is not rounded to it."""
    if p < 0.001:
        return "< 0.001"
    return "< 0.05" if p < 0.05 <= round(p, 3) else f"= {p:.3f}"


def arrow(direction: str) -> str:
    return "↓" if direction == "lower" else "↑"


def spelled(metric: str) -> str:
    """A metric's spec for people: ``ssim_continuity[noise=0.1]`` is ``SSIM continuity (noise 0.1)``."""
    name, parameters = specs.parse(metric)
    words = " ".join(_SPELLED.get(word, word) for word in name.split("_"))
    for apart, joined in _HYPHENATED.items():
        words = words.replace(apart, joined)
    shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in parameters.items())
    return f"{words} ({shown})" if shown else words
