"""What was found, in words: one sentence for each facet and objective, and never a winner inside the noise."""

import numpy as np
import pandas as pd

from scl_ray.report import terms
from scl_ray.report.statistics import FEWEST_SEEDS
from scl_ray.report.terms import MEASURE, VIEW

MANY_SEEDS = 100  # beyond this many more a sweep is told that more seeds are no way to decide

# What a facet's better and worse sides are called, before "than".
WORDS = {
    "accuracy": ("more accurate", "less accurate"),
    "faithfulness": ("more faithful", "less faithful"),
    "continuity": ("more continuous", "less continuous"),
    "contrastivity": ("more contrastive", "less contrastive"),
    "complexity": ("less complex", "more complex"),
    "sparseness": ("sparser", "less sparse"),
    "coherence": ("more coherent", "less coherent"),
    "randomisation": ("more sensitive to what was learned", "less sensitive to what was learned"),
    "axiomatic": ("closer to the axioms", "further from the axioms"),
}


def table(comparisons: pd.DataFrame, measures: pd.DataFrame) -> pd.DataFrame:
    """One row a view, facet and other objective: the verdict of the measure that stands for the facet.

    *comparisons*: `comparisons.table`; *measures*: `Tables.measures`, whose largest mean says how many digits are
    shown. Columns: backbone, protocol, facet, metric, method, direction, objective_label, verdict, sentence; and of all
    the facet's measures of that objective how many are decided ``better`` and ``worse`` and how many are ``undecided``,
    with ``support``, which says so in words.
    """
    digits = measures.groupby([*VIEW, *MEASURE], sort=False)["mean"].agg(terms.decimals).rename("digits").reset_index()
    rows = comparisons.merge(digits, "left", [*VIEW, *MEASURE])
    by_facet = [*VIEW, "facet", "objective_label"]
    counts = rows.groupby(by_facet, sort=False)["verdict"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["better", "worse", "not decided"], fill_value=0).reset_index()
    shown = terms.representative(rows).merge(counts.rename(columns={"not decided": "undecided"}), on=by_facet)
    shown["sentence"] = [sentence(row) for row in terms.records(shown)]
    shown["support"] = [_support(row) for row in terms.records(shown)]
    counted = ["better", "worse", "undecided", "support"]
    return shown[[*VIEW, *MEASURE, "direction", "objective_label", "verdict", "sentence", *counted]]


def sentence(row: dict) -> str:
    """The verdict of one row of comparisons, with ``digits`` after the point, or as many as its difference needs."""
    label, reference = row["objective_label"], row["reference"]
    few = [(name, int(seeds)) for name, seeds in ((label, row["seeds"]), (reference, row["reference_seeds"]))
           if seeds < FEWEST_SEEDS]  # fmt: skip
    measure = "accuracy" if row["facet"] == terms.ACCURACY else f"{terms.spelled(row['metric'])} of {row['method']}"
    if np.isnan(row["difference"]):
        return f"{label} and {reference}: {measure} is defined for no network of one of them"
    least, most = sorted((int(row["seeds"]), int(row["reference_seeds"])))
    seeds = f"{least} seed{'s' if least != 1 else ''}" if least == most else f"{least} and {most} seeds"
    digits = max(row["digits"], terms.resolving(row["difference"], row["low"], row["high"], significant=2))
    found = [f"{measure} {terms.signed(row['difference'], digits)}"]
    if not np.isnan(row["low"]):
        found[0] += f" {terms.interval(row['low'], row['high'], digits)}"
    found += [seeds] if np.isnan(row["p_holm"]) else [seeds, f"Holm p {terms.p_value(row['p_holm'])}"]
    evidence = ", ".join(found)
    if row["verdict"] == "not decided":
        return f"{label} and {reference}: not decided by this sweep ({evidence}): {_more(row, few)}"
    better, worse = WORDS.get(row["facet"], (f"better in {row['facet']}", f"worse in {row['facet']}"))
    return f"{label} is {better if row['verdict'] == 'better' else worse} than {reference}: {evidence}"


def _more(row: dict, few: list[tuple[str, int]]) -> str:
    """What it would take to decide."""
    if few:
        lacking = " and ".join(f"{FEWEST_SEEDS - seeds} more of {name}" for name, seeds in few)
        return f"at least {FEWEST_SEEDS} seeds are needed, {lacking}"
    if np.isnan(row["seeds_needed"]):
        return "the networks do not differ between seeds, so there is no spread to judge by"
    more = row["seeds_needed"] - min(row["seeds"], row["reference_seeds"])
    if more > MANY_SEEDS:
        return f"if the difference is as small as it looks, more than {MANY_SEEDS} more seeds would be needed"
    # The observed difference may suffice for the power wanted and yet have missed the level.
    more = max(int(more), 1)
    return f"about {more} more seed{'s' if more != 1 else ''} of each would be needed"


def _support(row: dict) -> str:
    """How the facet's measures share out."""
    counts = {"better": row["better"], "worse": row["worse"], "not decided": row["undecided"]}
    total = sum(counts.values())
    if total == 1:
        return "the facet's only measure"
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    return f"of the facet's {total} measures {', '.join(parts)}"
