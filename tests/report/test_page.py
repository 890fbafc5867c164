"""The page's parts: colours that can be read, and numbers as text."""

import re
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from scl_ray.report.figures import drawing
from scl_ray.report.page import View, conclusions, provenance

STYLE = (files("scl_ray.report") / "templates/style.css").read_text()
TEXTS = [("ink", "page"), ("soft", "page"), ("link", "page"), ("ink", "raised"), ("soft", "raised"),
         ("better", "better-back"), ("worse", "worse-back"), ("better", "page"), ("worse", "page")]  # fmt: skip
BRIGHTER = float(re.search(r"brightness\(([\d.]+)\)", STYLE)[1])  # figures in the dark theme


def theme(dark: bool) -> dict[str, str]:
    found = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    blocks = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in found]
    assert len(blocks) == 2
    assert blocks[0].keys() == blocks[1].keys()
    return blocks[dark]


def luminance(colour: str, brighter: float = 1.0) -> float:
    encoded = np.clip(np.array(to_rgb(colour)) * brighter, 0, 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(one: float, other: float) -> float:
    """WCAG 2.2, contrast ratio."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast(luminance("#ffffff"), luminance("#000000")) == pytest.approx(21)
    assert contrast(luminance("#777777"), luminance("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_have_the_contrast_of_aa(dark):
    colours = theme(dark)
    for text, back in TEXTS:
        assert contrast(luminance(colours[text]), luminance(colours[back])) >= 4.5, (text, back)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("number", [1, 4, 14])
def test_figures_have_the_contrast_of_aa(dark, number):
    labels = [f"supcon τ={place}" for place in range(number)]
    page = luminance(theme(dark)["page"])
    brighter = BRIGHTER if dark else 1.0
    shades = [colour for colour, _ in drawing.looks(labels, ["supcon"] * number).values()]
    for colour in [*drawing.PALETTE, *shades]:
        assert contrast(luminance(colour, brighter), page) >= 3, colour
    assert contrast(luminance(theme(dark)["axis"], brighter), page) >= 3


def test_many_objectives_look_different():
    names = ["cross_entropy", *["supcon"] * 6, *["triplet"] * 4, "simclr", "arcface", "vicreg"]
    found = drawing.looks([f"{name} {place}" for place, name in enumerate(names)], names)
    assert len(set(found.values())) == len(names)
    # Neighbours of one hue differ in lightness and in marker.
    assert len({colour for colour, _ in found.values()}) >= len(names) - 1


def test_measures_of_training_are_grouped_rows():
    table = pd.DataFrame({
        "objective_label": ["a", "a", "b"], "backbone": "resnet8", "training_seconds": [60.0, 62.0, 5.0],
        "measured/geometry/nc1": [0.4, 0.6, 0.1], "measured/geometry/none": [None, None, None],
        "measured/temperature": [1.5, 1.5, None], "other": 1,
    })  # fmt: skip
    found = provenance.trained(table)
    assert found["networks"] == ["a", "b"]
    assert found["groups"] == {
        "": {"temperature": ["1.50 ± 0.00", "–"], "training time": ["1 min 01 s", "5 s"]},
        "geometry": {"nc1": ["0.500 ± 0.141", "0.100"], "none": ["–", "–"]},
    }


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (np.nan, "–"), (21.4, "21 s"), (220, "3 min 40 s"),
                                               (59.7, "1 min 00 s"), (7500, "2 h 05 min")])  # fmt: skip
def test_durations(seconds, text):
    assert provenance.duration(seconds) == text


def sensitivity_rows(verdicts: list[str]) -> pd.DataFrame:
    names = ["as compared", "own images", "all images"][: len(verdicts)]
    return pd.DataFrame({
        "backbone": "r", "protocol": "corrected", "facet": "faithfulness", "metric": "auc", "method": "grad_cam",
        "objective_label": "supcon", "check": names, "difference": [-0.1, -0.2, np.nan][: len(verdicts)],
        "low": -0.3, "high": 0.1, "verdict": verdicts, "same": [verdict == verdicts[0] for verdict in verdicts],
        "note": "",
    })  # fmt: skip


def test_a_verdict_that_changes_is_outlined():
    found = conclusions.checks(sensitivity_rows(["better", "not decided"]))
    (row,) = found["rows"]
    assert [cell["changed"] for cell in row["cells"]] == [False, True]
    assert (found["standing"], found["total"], found["open"]) == (0, 1, [])
    assert row["cells"][0]["text"] == "−0.100"


def test_what_no_check_decides_is_apart():
    found = conclusions.checks(sensitivity_rows(["not decided", "not decided", "not decided"]))
    assert found["rows"] == []
    assert found["open"][0]["cells"][2]["verdict"] == "untold"


def test_a_backbone_of_the_users_own_names_no_pseudo_class():
    # In a stylesheet, "#maps-my_nets:small" would be no id.
    assert View("my_nets:small", "corrected", {}).slug == "my_nets_small-corrected"


def test_an_interval_that_holds_zero_denies_no_direction():
    row = {"direction": "lower", "published": 0.27, "published_spread": 0.0, "published_low": 0.26,
           "published_high": 0.28, "mean": 0.3, "low": 0.2, "high": 0.4, "agrees": True}  # fmt: skip
    ends = [(-0.2, 0.1, False), (0.1, 0.2, False), (-0.2, -0.1, True), (np.nan, np.nan, pd.NA)]
    table = pd.DataFrame([row | {"difference_low": low, "difference_high": high, "same_direction": same}
                          for low, high, same in ends])  # fmt: skip
    told = [found["direction_kept"] for found in conclusions.reproduction(table)]
    assert told == ["not decided", "no", "yes", ""]
