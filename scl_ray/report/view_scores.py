"""The scores of one view as an array: every measure of every trial on every image."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scl_ray.report.terms import MEASURE, VIEW
from scl_ray.results import Results, common_images

_CHUNK = 500  # DuckDB's vectors of 2048 rows that are taken at once


@dataclass(frozen=True)
class ViewScores:
    """All that one backbone was scored under one protocol, on the images that all its trials have evaluated.

    ``measures``: facet, metric, method (both specs without their protocol), direction; ``trials``: trial,
    objective_label, seed; ``images``: their indices. ``values`` (measures, trials, images) float32 is nan where
    undefined or not scored yet; ``correct`` (trials, images) tells whether the trial classifies the image correctly.
    """

    backbone: str
    protocol: str
    measures: pd.DataFrame
    trials: pd.DataFrame
    images: NDArray[np.int32]
    values: NDArray[np.float32]
    correct: NDArray[np.bool_]

    @property
    def common(self) -> NDArray[np.bool_]:
        """(images,) which of them all trials classify correctly."""
        return np.asarray(self.correct.all(0))

    def rows(self, objective_label: str) -> NDArray[np.intp]:
        """The trials of one objective, in the order of their seeds."""
        seeds = self.trials.loc[self.trials["objective_label"] == objective_label, "seed"].sort_values()
        return seeds.index.to_numpy()


def read(results: Results) -> list[ViewScores]:
    """Every view of the sweep, in the order of the configuration."""
    return [_read(results, str(row["backbone"]), str(row["protocol"]))
            for _, row in common_images(results)[VIEW].iterrows()]  # fmt: skip


def _read(results: Results, backbone: str, protocol: str) -> ViewScores:
    view = [backbone, protocol]
    seen = results.query(
        """
        SELECT trial, image, predictions.correct FROM predictions JOIN trials USING (trial)
        JOIN compared USING (backbone, protocol, image) WHERE backbone = $1 AND protocol = $2""",
        view,
    )
    trials = results.trials[results.trials["trial"].isin(seen["trial"].unique())].reset_index(drop=True)
    cells = results.cells[results.cells["protocol"] == protocol].reset_index(drop=True)
    images = np.unique(seen["image"])
    # DuckDB numbers names as the categories do; these tables turn such a number into a place in the array.
    trial_at = _places(results.trials["trial"].cat.categories, trials["trial"])
    method_at = _places(results.cells["method"].cat.categories, cells["method"].drop_duplicates())
    metric_at = _places(results.cells["metric"].cat.categories, cells["metric"].drop_duplicates())
    cell_at = np.full((method_at.max() + 1, metric_at.max() + 1), -1)
    cell_at[method_at[cells["method"].cat.codes], metric_at[cells["metric"].cat.codes]] = np.arange(len(cells))
    correct = np.zeros((len(trials), len(images)), bool)
    correct[trial_at[seen["trial"].cat.codes], np.searchsorted(images, seen["image"])] = seen["correct"]
    values = np.full((len(cells), len(trials), len(images)), np.nan, np.float32)
    found = results.connection.execute(
        """
        SELECT enum_code(trial)::INT AS trial, enum_code(method)::INT AS method, enum_code(metric)::INT AS metric,
               image, value
        FROM scores JOIN trials USING (trial) JOIN cells USING (method, metric)
        WHERE backbone = $1 AND protocol = $2""",
        view,
    )
    while len(rows := found.fetch_df_chunk(_CHUNK)):
        cell = cell_at[method_at[rows["method"]], metric_at[rows["metric"]]]
        trial = trial_at[rows["trial"]]
        image = np.minimum(np.searchsorted(images, rows["image"]), len(images) - 1)
        # Scores whose prediction is not stored yet have no place.
        kept = (trial >= 0) & (images[image] == rows["image"].to_numpy())
        values[cell[kept], trial[kept], image[kept]] = rows["value"].to_numpy()[kept]
    measures = cells.assign(metric=cells["plain_metric"], method=cells["plain_method"])[[*MEASURE, "direction"]]
    return ViewScores(backbone, protocol, measures.astype(str), trials[["trial", "objective_label", "seed"]].astype(
        {"trial": str, "objective_label": str}), images, values, correct)  # fmt: skip


def _places(names: pd.Index, among: pd.Series) -> NDArray[np.intp]:
    """For each of *names* its place in *among*, or -1."""
    return pd.Index(among.astype(str)).get_indexer(names.astype(str))
