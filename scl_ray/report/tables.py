"""The report's tables: what is compared, on which images, and what is missing.

Every table is a data frame with one row a fact, and is written as CSV; the page and the figures show these and nothing
else.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from scl_ray.report import (
    agreement,
    comparisons,
    dose_response,
    reproduction,
    sensitivity,
    statistics,
    verdicts,
    view_scores,
)
from scl_ray.report.terms import ACCURACY, MEASURE, MEASURED, VIEW
from scl_ray.results import Results, accuracies, common_images, missing, plain, trial_means

_COMPARED = ["difference", "low", "high", "p", "p_holm", "verdict"]


@dataclass(frozen=True)
class Tables:
    """trials: one row a trial of the plan: its configuration, what became of it, its training measurements.
    seeds: one row a trial and measure: the mean over the common images (those that all compared trials classify
      correctly), with how many images have a defined value and how many have none.
    measures: one row an objective and measure: mean and spread over seeds, and the comparison with the reference.
    comparisons: one row a comparison with the reference: every interval, test and effect size, and the seeds it would
      take (`comparisons.table`).
    verdicts: one row a facet and objective: the verdict of the facet's first measure in a sentence (`verdicts.table`).
    sensitivity: one row a comparison and check: whether it stands on other images, under the other protocol, without
      calibration, at equal accuracy (`sensitivity.table`).
    doses, slopes: measures against an objective's parameter (`dose_response.tables`).
    agreement: rank correlations of metrics with each other (`agreement.of_metrics`).
    properties: rank correlations of measures with accuracy, geometry and calibration (`agreement.with_properties`).
    methods: mean ranks of attribution methods with critical differences (`agreement.of_methods`).
    reproduction: published numbers beside ours, empty unless the recipes are the study's (`reproduction.table`).
    images: per view, how many images were evaluated and how many are common.
    undefined: per objective, method and metric, how many values are undefined; only where there are any.
    protocols: corrected and published side by side; empty where one protocol ran.
    reference: the label of the objective that the others are compared with.
    failures: trials that failed, have not finished, or miss scores. not_cells: pairs that make no sense, and why.
    """

    trials: pd.DataFrame
    seeds: pd.DataFrame
    measures: pd.DataFrame
    comparisons: pd.DataFrame
    verdicts: pd.DataFrame
    sensitivity: pd.DataFrame
    doses: pd.DataFrame
    slopes: pd.DataFrame
    agreement: pd.DataFrame
    properties: pd.DataFrame
    methods: pd.DataFrame
    reproduction: pd.DataFrame
    images: pd.DataFrame
    undefined: pd.DataFrame
    protocols: pd.DataFrame
    failures: pd.DataFrame
    not_cells: pd.DataFrame
    reference: str

    def named(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {name: table for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}


def make(results: Results) -> Tables:
    """All tables of one sweep."""
    reference = reference_objective(results)
    seeds = seed_means(results)
    views = view_scores.read(results)
    # Networks that were trained elsewhere are numbered, which is no seed that they share.
    same_seeds = results.plan.get("kind") != "comparison"
    compared = comparisons.table(seeds, views, reference, same_seeds=same_seeds)
    measures = statistics.over_seeds(seeds, [*VIEW, *MEASURE, "direction", "objective_label"])
    measures = measures.merge(compared[["objective_label", *VIEW, *MEASURE, *_COMPARED]], "left",
                              ["objective_label", *VIEW, *MEASURE])  # fmt: skip
    measures["verdict"] = measures["verdict"].fillna("")
    doses, slopes = dose_response.tables(seeds, results.trials, _recipes(results))
    return Tables(
        trials=_trials(results),
        seeds=seeds,
        measures=measures,
        comparisons=compared,
        verdicts=verdicts.table(compared, measures),
        sensitivity=sensitivity.table(seeds, views, compared, reference),
        doses=doses,
        slopes=slopes,
        agreement=agreement.of_metrics(seeds, views),
        properties=agreement.with_properties(seeds, _properties(results)),
        methods=agreement.of_methods(seeds),
        reproduction=reproduction.table(seeds, compared, reference, reproduction.recipes_of(results)),
        images=common_images(results),
        undefined=_undefined(measures),
        protocols=_protocols(measures),
        failures=_failures(results),
        not_cells=pd.DataFrame(results.plan["not_cells"], columns=["method", "metric", "reason"]),
        reference=reference,
    )


def reference_objective(results: Results) -> str:
    """The label that the others are compared with: cross-entropy, or else the first objective."""
    trials = results.trials
    cross_entropy = trials.loc[trials["objective"] == "cross_entropy", "objective_label"]
    labels = cross_entropy if len(cross_entropy) else trials["objective_label"]
    return str(labels.iloc[0]) if len(labels) else ""


def seed_means(results: Results) -> pd.DataFrame:
    """One row a trial and measure: backbone, protocol, objective_label, seed, trial, facet, metric, method (both
    without their protocol), direction, mean, images, undefined. Accuracy is a measure too, of no method, on all
    evaluated images. A measure that is not scored yet on all common images has no mean: it would be of other images
    than that of the other trials."""
    scores = trial_means(results, images="common")
    for column in ("method", "metric"):
        scores[column] = scores[column].map({spec: plain(spec) for spec in scores[column].cat.categories}).astype(str)
    accuracy = accuracies(results).rename(columns={"accuracy": "mean"})
    accuracy = accuracy.assign(facet=ACCURACY, metric=ACCURACY, method="", direction="higher", undefined=0)
    rows = pd.concat([accuracy, scores.astype({"facet": str, "direction": str})]).astype({"protocol": str})
    configuration = results.trials[["trial", "objective_label", "backbone", "seed"]]
    rows = rows.merge(configuration.astype({"backbone": str, "objective_label": str}), on="trial")
    common = results.query("SELECT backbone, protocol, count(*) AS common FROM common GROUP BY ALL")
    wanted = rows[VIEW].merge(common.astype(dict.fromkeys(VIEW, str)), "left")["common"]
    whole = (rows["facet"] == ACCURACY) | (rows["images"] + rows["undefined"] >= wanted)
    rows["mean"] = rows["mean"].where(whole)
    return _ordered(rows, results)[[*VIEW, "objective_label", "seed", "trial", *MEASURE, "direction", "mean", "images",
                                    "undefined"]]  # fmt: skip


def _ordered(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Rows in the configuration's order: backbone, protocol, facet as first met, metric, method, objective, seed."""
    cells, trials = results.cells, results.trials
    facets = [ACCURACY, *dict.fromkeys(cells["facet"].astype(str))]
    orders = {
        "backbone": list(trials["backbone"].cat.categories), "protocol": list(results.plan["protocols"]),
        "facet": facets, "metric": [ACCURACY, *cells["plain_metric"].cat.categories],
        "method": ["", *cells["plain_method"].cat.categories],
        "objective_label": list(trials["objective_label"].cat.categories),
    }  # fmt: skip
    by = [*VIEW, *MEASURE, "objective_label", "seed"]
    return rows.sort_values(
        by, ignore_index=True, key=lambda column: column.map({v: i for i, v in enumerate(orders[column.name])})
        if column.name in orders else column)  # fmt: skip


def _trials(results: Results) -> pd.DataFrame:
    table = results.trials.set_index(results.trials["trial"].astype(str)).drop(columns="trial")
    for trial, record in results.records.items():
        # The prefix keeps a measurement apart from a parameter of the same name (temperature is both).
        measured = {f"{MEASURED}{name}": value for name, value in record.get("metrics", {}).items()}
        facts = {"status": record["status"], "epochs": len(record.get("epochs", [])),
                 "training_seconds": record.get("seconds"), "device": record.get("device"),
                 "host": record.get("host"), "finished": record.get("finished"), **measured}  # fmt: skip
        for name, value in facts.items():
            if name not in table:
                table[name] = pd.Series([None] * len(table), index=table.index, dtype=object)
            table.at[trial, name] = value
    return table.infer_objects().reset_index(names="trial")


def _recipes(results: Results) -> dict[str, Any]:
    return {trial: record["configuration"].get("training") for trial, record in results.records.items()}


def _properties(results: Results) -> pd.DataFrame:
    """What training measured of each trial, one column a property."""
    measured = {trial: record.get("metrics", {}) for trial, record in results.records.items()}
    return pd.DataFrame.from_dict(measured, orient="index").apply(pd.to_numeric, errors="coerce")


def _undefined(measures: pd.DataFrame) -> pd.DataFrame:
    scores = measures[measures["facet"] != ACCURACY]
    undefined = scores.loc[scores["undefined"] > 0, [*VIEW, "objective_label", "method", "metric", "undefined"]].copy()
    undefined["values"] = undefined["undefined"] + scores.loc[undefined.index, "images"]
    return undefined


def _protocols(measures: pd.DataFrame) -> pd.DataFrame:
    """One row a backbone, measure and objective that both protocols have: both means, the change, and whether the
    objectives keep their order."""
    keys = ["backbone", *MEASURE, "direction", "objective_label"]
    sides = [measures.loc[measures["protocol"] == protocol, [*keys, "mean", "spread", "verdict"]]
             for protocol in ("corrected", "published")]  # fmt: skip
    table = sides[0].merge(sides[1], on=keys, suffixes=("_corrected", "_published"))
    table["change"] = table["mean_published"] - table["mean_corrected"]
    ranks = table.groupby(["backbone", *MEASURE], sort=False)[["mean_corrected", "mean_published"]].rank().fillna(0)
    moved = ranks["mean_corrected"] != ranks["mean_published"]
    table["same_order"] = ~moved.groupby([table[key] for key in ("backbone", *MEASURE)]).transform("any").astype(bool)
    return table


def _failures(results: Results) -> pd.DataFrame:
    """Trials that do not stand fully in the tables, with the reason."""
    wanted = len(results.cells) * results.plan["images"]
    rows = []
    for (trial, label, what), lacks in missing(results).groupby(["trial", "label", "what"], sort=False):
        record = results.records.get(str(trial))
        if what == "scores":
            lacking = (lacks["last"] - lacks["first"] + 1).sum()
            rows.append((trial, label, "incomplete", f"{lacking:,} of its {wanted:,} scores are missing"))
        elif record is None:
            rows.append((trial, label, "not finished", "training has not finished"))
        else:
            reason = record.get("error") or record.get("reason") or "no reason was recorded"
            rows.append((trial, label, record["status"], reason))
    return pd.DataFrame(rows, columns=["trial", "label", "status", "reason"])
