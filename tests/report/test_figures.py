"""Figures: what they draw is what the tables say, they stay small, and they say it in words."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scl_ray.report.figures import curves, differences, distributions, drawing, rankings


@pytest.fixture(autouse=True)
def styled():
    with drawing.style():
        yield


def compared(verdicts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({
        "facet": "faithfulness", "metric": "pixel_flipping_auc", "method": "grad_cam", "direction": "lower",
        "objective_label": [f"objective {place}" for place in range(len(verdicts))],
        "difference": np.linspace(-0.1, 0.1, len(verdicts)), "low": -0.2, "high": 0.2, "verdict": verdicts,
        "seeds": 3, "reference_seeds": 3,
    })  # fmt: skip


def test_a_forest_fills_only_what_is_decided():
    drawn = differences.forest(compared(["better", "not decided", "worse"]), "forest", "cross_entropy")
    assert drawn.svg.count(f"fill: {drawing.HOLLOW}") == 1
    for colour in (drawing.BETTER, drawing.WORSE):
        assert f"fill: {colour.lower()}; stroke: {colour.lower()}" in drawn.svg
    assert "objective 0, pixel_flipping_auc: −0.100 [−0.200, 0.200], better." in drawn.alt
    assert drawing.HOLLOW not in drawn.themed
    assert "var(--page)" in drawn.themed


def test_an_undefined_difference_is_said_and_no_row_is_lost():
    rows = compared(["better", "not decided"])
    rows.loc[1, ["difference", "low", "high"]] = np.nan
    drawn = differences.forest(rows, "forest", "cross_entropy")
    assert "objective 1, pixel_flipping_auc: undefined." in drawn.alt
    assert "objective 1" in drawn.svg


def test_groups_of_methods_are_the_longest_runs_within_the_critical_difference():
    # Demšar, figure 1a: C4.5, C4.5+m, C4.5+cf, C4.5+m+cf with a critical difference of 1.25.
    assert rankings._groups(np.array([1.964, 2.0, 2.893, 3.143]), 1.25) == [(1.964, 3.143)]
    assert rankings._groups(np.array([1.0, 2.0, 3.0]), 1.2) == [(1.0, 2.0), (2.0, 3.0)]
    assert rankings._groups(np.array([1.0, 3.0]), 1.0) == []


def test_long_names_of_methods_stay_on_the_paper():
    names = ["integrated_gradients[baseline=blurred,steps=200]", "grad_cam", "saliency"]
    table = pd.DataFrame({"facet": "faithfulness", "metric": "auc", "direction": "lower", "method": names,
                          "mean": 0.5, "rank": [1.0, 2.0, 3.0], "trials": 8, "methods": 3, "p": 0.001,
                          "critical_difference": 1.17, "best": True})  # fmt: skip
    drawn = rankings.ranks(table, "slug")
    pixels = np.asarray(Image.open(io.BytesIO(drawn.png)).convert("L"))
    assert pixels[:, [0, 1, -2, -1]].min() == 255  # nothing is cut off at an edge
    assert all(name in drawn.svg for name in names)


def test_ids_of_two_figures_on_a_page_differ_and_numbers_are_short():
    drawn = []
    for name in ("one", "other"):
        figure = Figure(figsize=(2, 2))
        axis = figure.subplots()
        axis.plot(np.linspace(0, 1 / 3, 50), np.linspace(0, 1 / 7, 50), marker="o")
        axis.set_xticks([0.12345], ["0.12345"])
        drawn.append(drawing.save(figure, name, name, 'a "line" & <marks>'))
    ids = [set(re.findall(r' id="([^"]+)"', one.themed)) for one in drawn]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    assert all(f'id="{used}"' in drawn[0].themed for used in re.findall(r'(?:href="#|url\(#)([^")]+)', drawn[0].themed))
    assert not re.search(r' d="[^"]*\.\d{3}', drawn[0].svg)
    assert ">0.12345<" in drawn[0].svg  # a label keeps its digits
    assert 'aria-label="a &quot;line&quot; &amp; &lt;marks>"' in drawn[0].themed


def test_three_panels_in_a_row_fill_the_page_as_four_do():
    assert drawing.panels(6, 2.7, 2)[0].get_figwidth() == pytest.approx(drawing.panels(8, 2.7, 2)[0].get_figwidth())
    assert len(drawing.panels(7, 2.7, 2)[1]) == 7


def test_scores_that_are_all_zero_or_undefined_are_drawn():
    measure = {"facet": "coherence", "metric": "pointing_game", "method": "grad_cam", "direction": "higher"}
    look = drawing.looks(["one", "other"], ["one", "other"])
    zero = np.zeros(len(distributions.QUANTILES))
    scores = pd.DataFrame({**measure, "objective_label": ["one", "other"], "images": 40, "quantiles": [zero, zero]})
    measures = pd.DataFrame({**measure, "objective_label": ["one", "other"], "mean": 0.0, "spread": 0.0})
    seeds = pd.DataFrame({**measure, "objective_label": ["one", "other"], "seed": 0, "mean": 0.0})
    drawn = distributions.violins(scores, measures, seeds, look, "slug")
    assert "one 0.00 to 0.00, other 0.00 to 0.00" in drawn.alt
    nowhere = [table.assign(mean=np.nan, spread=np.nan) for table in (measures, seeds)]
    (drawn,) = distributions.networks(*nowhere, look, "one", "slug")
    assert "pointing_game under grad_cam: one –, other –." in drawn.alt


def curves_of(metric: str, values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"objective_label": "one", "trial": "t", "method": "grad_cam", "metric": metric,
                         "step": range(len(values)), "value": values})  # fmt: skip


def test_only_pixels_that_are_flipped_are_called_so():
    look = drawing.looks(["one"], ["one"])
    flipped = curves.at_steps(curves_of("pixel_flipping_auc", [0.9, 0.4, 0.1]), look, "slug")
    assert "share of the pixels flipped" in flipped.svg
    for metric in ("insertion_auc", "road", "pixel_flipping_auc[order=least_relevant]"):
        assert "flipped" not in curves.at_steps(curves_of(metric, [0.1, 0.4]), look, "slug").svg


def test_a_curve_below_zero_is_not_cut_off(monkeypatch):
    limits = []
    monkeypatch.setattr(curves, "save", lambda figure, *_: limits.append(figure.axes[0].get_ylim()))
    for values in ([-0.3, 0.2], [0.3, 0.2]):
        curves.at_steps(curves_of("sensitivity_n", values), drawing.looks(["one"], ["one"]), "slug")
    assert limits[0][0] <= -0.3
    assert limits[1][0] == 0


def test_dollars_in_a_name_are_no_formula():
    rows = compared(["better", "worse"]).replace("objective 0", r"mine:$\frac{$")
    assert r"mine:$\frac{$" in differences.forest(rows, "forest", "cross_entropy").svg
