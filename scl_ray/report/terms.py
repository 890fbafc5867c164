"""The terms of the report's tables: what a view and a measure are, and how their numbers are written."""

from typing import Any

import numpy as np
import pandas as pd

from scl_ray import specs

VIEW = ["backbone", "protocol"]  # objectives are compared within one backbone and one protocol
MEASURE = ["facet", "metric", "method"]
ACCURACY = "accuracy"
MEASURED = "measured/"

_SPELLED = {"auc": "AUC", "ssim": "SSIM", "mprt": "MPRT", "irof": "IROF", "road": "ROAD"}
_HYPHENATED = {"pixel flipping": "pixel-flipping", "prediction flip": "prediction-flip"}


def representative(measures: pd.DataFrame) -> pd.DataFrame:
    """The measures that stand for their facets: accuracy, and of each facet the first metric under the first method."""
    first = measures.drop_duplicates([*VIEW, "facet"])[[*VIEW, *MEASURE]]
    return measures.merge(first)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts by column."""
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def decimals(values: pd.Series) -> int:
    """Digits after the point that show three significant ones of the largest value."""
    largest = float(np.nanmax(np.abs(values.to_numpy(float)), initial=0.0))
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 6)) if largest > 0 else 2


def number(mean: float, spread: float, digits: int) -> str:
    """``0.271 ± 0.012``; the mean alone where one seed has no spread, a dash where nothing is defined."""
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" if np.isnan(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def signed(difference: float, digits: int) -> str:
    """``+0.012`` or ``−0.109``, with a true minus."""
    return f"{difference:+.{digits}f}".replace("-", "−")


def interval(low: float, high: float, digits: int) -> str:
    """``[−0.132, −0.086]``; nothing where it cannot be told."""
    return "" if np.isnan(low) else f"[{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


def p_value(p: float) -> str:
    """``= 0.031`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


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
