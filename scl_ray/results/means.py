"""Means over correctly classified images, part by part: a billion scores pass, and hardly any stay in memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from scl_ray import coverage
from scl_ray.parts import Part

if TYPE_CHECKING:
    from scl_ray.results import Results

# What is summed for each cell over the images that count: the values, how many are defined, how many there are.
TOTAL, DEFINED, SCORED = range(3)


def of_trials(results: "Results", common: pd.DataFrame | None = None) -> pd.DataFrame:
    """The means of `results.trial_means`, over each trial's own correct images or over the *common* ones alone, given
    by backbone, protocol and image."""
    store, plan, records = results.store, results.plan, results.records
    scores, predictions = (coverage.by_trial(store, plan, kind, records) for kind in ("scores", "predictions"))
    cells = results.cells
    place = np.zeros((cells["method"].cat.categories.size, cells["metric"].cat.categories.size), np.int64)
    place[cells["method"].cat.codes, cells["metric"].cat.codes] = np.arange(len(cells))
    protocol = np.asarray(cells["protocol"].cat.codes, np.int64)

    def summed(trial: str) -> NDArray[np.float64]:
        found = np.zeros((3, len(cells)))
        counts = _counting(results, trial, predictions.get(trial, []))
        if common is not None:
            own = common[common["backbone"] == records[trial]["configuration"]["backbone"]]
            among = np.zeros_like(counts)
            among[own["protocol"].cat.codes, own["image"]] = True
            counts &= among
        if counts.any():
            for table in _rows(results, scores.get(trial, [])):
                for rows in filter(len, table.to_batches()):
                    begins, method, metric = _runs(rows, cells)
                    cell = place[method, metric]
                    for total, runs in zip(found, _sums(rows, begins, counts, protocol[cell]), strict=True):
                        np.add.at(total, cell, runs)
        return found

    # Arrow and numpy leave the interpreter to others while they decode and add up.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sums = np.array(list(pool.map(summed, records))).reshape(-1, 3, len(cells))
    of_trial, of_cell = np.nonzero(sums[:, SCORED])
    total, defined, scored = sums[of_trial, :, of_cell].T
    table = cells.iloc[of_cell][["protocol", "method", "metric", "facet", "direction"]].reset_index(drop=True)
    names = results.trials["trial"].iloc[of_trial].reset_index(drop=True)
    table = pd.concat([names, table], axis=1).apply(lambda column: column.cat.as_ordered())  # as `Results.query` does
    mean = np.divide(total, defined, out=np.full(len(total), np.nan), where=defined > 0)
    table = table.assign(mean=mean, images=defined.astype(int), undefined=(scored - defined).astype(int))
    return table.sort_values(["trial", "protocol", "method", "metric"], ignore_index=True)


def _counting(results: "Results", trial: str, predictions: Sequence[Part]) -> NDArray[np.bool_]:
    """Which images the trial classifies correctly: (protocols, test images of the dataset)."""
    plan, readouts = results.plan, results.records[trial].get("readouts", {})
    protocols = results.cells["protocol"].cat.categories
    correct = np.zeros((len(protocols), plan["dataset"]["test_images"]), bool)
    for number, protocol in enumerate(protocols):
        for part in predictions:
            if part.holds == readouts.get(protocol):
                rows = coverage.table(results.store, part, ["image", "label", "prediction"])
                rows = rows.slice(0, plan["images"] - part.first)  # a part's rows are in the order of the ranks
                correct[number, rows["image"].to_numpy()] = rows["label"].to_numpy() == rows["prediction"].to_numpy()
    return correct


def _rows(results: "Results", parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The scores of a trial that the plan covers, each once."""
    covered = [(coverage.cells(results.store, results.plan, part), part) for part in parts]
    tables = (coverage.scores(results.store, part, cells) for cells, part in covered if cells)
    if coverage.repeated((cells, [part]) for cells, part in covered):
        keys = ["image", "method", "metric"]
        rows = pa.concat_tables(tables).unify_dictionaries().group_by(keys).aggregate([("value", "min")])
        yield rows.rename_columns([*keys, "value"])
    else:
        yield from tables


def _runs(rows: pa.RecordBatch, cells: pd.DataFrame) -> list[NDArray[np.int64]]:
    """Where another cell begins, since a part holds the images of one cell one after the other; and the numbers of its
    method and its metric among those of the *cells*."""
    codes = [rows[key].indices.to_numpy() for key in ("method", "metric")]
    begins = np.flatnonzero(np.r_[True, np.logical_or(*(code[1:] != code[:-1] for code in codes))])
    numbers = [cells[key].cat.categories.get_indexer(rows[key].dictionary.to_pylist()) for key in ("method", "metric")]
    return [begins, *(number[code[begins]] for number, code in zip(numbers, codes, strict=True))]


def _sums(
    rows: pa.RecordBatch, begins: NDArray[np.int64], counts: NDArray[np.bool_], protocol: NDArray[np.int64]
) -> NDArray[np.float64]:  # fmt: skip
    """TOTAL, DEFINED and SCORED of each run of rows; *protocol* says which row of *counts* goes with it."""
    # Each row's place in `counts`, flattened.
    place = np.repeat(protocol * counts.shape[1], np.diff(begins, append=len(rows)))
    place += rows["image"].to_numpy()
    scored = counts.ravel()[place]
    value = rows["value"].to_numpy(zero_copy_only=False)
    defined = scored & ~np.isnan(value) if rows["value"].null_count else scored
    value = np.where(defined, value, 0)
    return np.array([np.add.reduceat(column, begins, dtype=float) for column in (value, defined, scored)])
