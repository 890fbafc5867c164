"""Means over correctly classified images, part by part: a billion scores pass, and hardly any stay in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
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


def of_trials(results: "Results", selections: Sequence[pd.DataFrame | None]) -> list[pd.DataFrame]:
    """The means of `results.trial_means` for each of the *selections*: each trial's own correct images (None), or the
    common ones alone, given by backbone, protocol and image. Every score is read once for all of them."""
    store, plan, records = results.store, results.plan, results.records
    scores, predictions = (coverage.by_trial(store, plan, kind, records) for kind in ("scores", "predictions"))
    cells = results.cells
    numbers = [{name: at for at, name in enumerate(cells[key].cat.categories)} for key in ("method", "metric")]
    place = np.zeros([len(of_key) for of_key in numbers], np.int64)
    place[cells["method"].cat.codes, cells["metric"].cat.codes] = np.arange(len(cells))
    protocol = np.asarray(cells["protocol"].cat.codes, np.int64)

    def summed(trial: str) -> NDArray[np.float64]:
        found = np.zeros((len(selections), 3, len(cells)))
        correct = _correct(results, trial, predictions.get(trial, []))
        backbone = records[trial]["configuration"]["backbone"]
        counts = [correct if selected is None else correct & _places(selected, backbone, correct.shape)
                  for selected in selections]  # fmt: skip
        if any(each.any() for each in counts):
            for table in _rows(results, scores.get(trial, [])):
                for rows in filter(len, table.to_batches()):
                    begins, method, metric = _runs(rows, numbers)
                    cell = place[method, metric]
                    for sums, runs in zip(found, _sums(rows, begins, counts, protocol[cell]), strict=True):
                        for total, of_runs in zip(sums, runs, strict=True):
                            np.add.at(total, cell, of_runs)
        return found

    # Arrow and numpy leave the interpreter to others while they decode and add up.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sums = np.array(list(pool.map(summed, records))).reshape(-1, len(selections), 3, len(cells))
    return [_means(results, sums[:, number]) for number in range(len(selections))]


def _means(results: "Results", sums: NDArray[np.float64]) -> pd.DataFrame:
    """One row a trial and cell that is scored, of *sums* (trials, 3, cells)."""
    cells = results.cells
    of_trial, of_cell = np.nonzero(sums[:, SCORED])
    total, defined, scored = sums[of_trial, :, of_cell].T
    table = cells.iloc[of_cell][["protocol", "method", "metric", "facet", "direction"]].reset_index(drop=True)
    names = results.trials["trial"].iloc[of_trial].reset_index(drop=True)
    table = pd.concat([names, table], axis=1).apply(lambda column: column.cat.as_ordered())  # as `Results.query` does
    mean = np.divide(total, defined, out=np.full(len(total), np.nan), where=defined > 0)
    table = table.assign(mean=mean, images=defined.astype(int), undefined=(scored - defined).astype(int))
    return table.sort_values(["trial", "protocol", "method", "metric"], ignore_index=True)


def _places(selected: pd.DataFrame, backbone: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which images are *selected* for a backbone: (protocols, test images of the dataset)."""
    rows = selected[selected["backbone"] == backbone]
    places = np.zeros(shape, bool)
    places[rows["protocol"].cat.codes, rows["image"]] = True
    return places


def _correct(results: "Results", trial: str, predictions: Sequence[Part]) -> NDArray[np.bool_]:
    """Which images the trial classifies correctly: (protocols, test images of the dataset)."""
    plan, readouts = results.plan, results.records[trial].get("readouts", {})
    protocols = list(results.cells["protocol"].cat.categories)
    correct = np.zeros((len(protocols), plan["dataset"]["test_images"]), bool)
    for protocol in plan["protocols"]:
        for part in predictions:
            if part.holds == readouts.get(protocol):
                rows = coverage.table(results.store, part, ["image", "label", "prediction"])
                rows = rows.slice(0, plan["images"] - part.first)  # a part's rows are in the order of the ranks
                is_correct = rows["label"].to_numpy() == rows["prediction"].to_numpy()
                correct[protocols.index(protocol), rows["image"].to_numpy()] = is_correct
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


def _runs(rows: pa.RecordBatch, numbers: Sequence[Mapping[str, int]]) -> list[NDArray[np.int64]]:
    """Where another cell begins, since a part holds the images of one cell one after the other; and the *numbers* of
    its method and its metric."""
    codes = [rows[key].indices.to_numpy() for key in ("method", "metric")]
    begins = np.flatnonzero(np.r_[True, np.logical_or(*(code[1:] != code[:-1] for code in codes))])
    found = [begins]
    for key, code, number in zip(("method", "metric"), codes, numbers, strict=True):
        # A part's dictionary may name what the plan has no longer, of which no row is left.
        known = np.array([number.get(name, -1) for name in rows[key].dictionary.to_pylist()])
        found.append(known[code[begins]])
    return found


def _sums(
    rows: pa.RecordBatch, begins: NDArray[np.int64], selections: Sequence[NDArray[np.bool_]],
    protocol: NDArray[np.int64],
) -> Iterator[list[NDArray[np.float64]]]:  # fmt: skip
    """TOTAL, DEFINED and SCORED of each run of rows, for each of the *selections* of images (protocols, images);
    *protocol* says which row of a selection goes with a run."""
    # Each row's place in a selection, flattened.
    place = np.repeat(protocol * selections[0].shape[1], np.diff(begins, append=len(rows)))
    place += rows["image"].to_numpy()
    value = rows["value"].to_numpy(zero_copy_only=False)
    is_defined = ~np.isnan(value) if rows["value"].null_count else None
    for counts in selections:
        scored = counts.ravel()[place]
        defined = scored if is_defined is None else scored & is_defined
        total, how_many = (np.add.reduceat(each, begins, dtype=float) for each in (np.where(defined, value, 0), scored))
        yield [total, how_many if is_defined is None else np.add.reduceat(defined, begins, dtype=float), how_many]
