"""What a sweep comes to, read from its store at its end: in a process of its own, for which it imports little."""

from typing import NamedTuple

from rich.table import Table

from scl_ray import report
from scl_ray.results import Results, missing, open_results, trial_means
from scl_ray.storage import StorageError


class SummedUp(NamedTuple):
    """The table that is printed, the means of each trial, and why there is no report."""

    table: Table | None
    means: dict[str, dict[str, float | None]]
    unwritten: Exception | None


def sum_up(out: str, name: str, is_to_write: bool, is_logged: bool) -> SummedUp:
    """Write the report where it *is_to_write*; and read what is printed and, where it *is_logged*, what MLflow is
    told."""
    results = open_results(out, name)
    unwritten = None
    try:
        if is_logged:
            results.means("own", "common")  # of the one reading that both the report and MLflow take
        if is_to_write:
            report.build(results)
    except StorageError as error:
        unwritten = error
    found = means(results) if is_logged else {}
    return SummedUp(report.summary_table(results), found, unwritten)


def means(results: Results) -> dict[str, dict[str, float | None]]:
    """What MLflow is told of each trial that lacks nothing: ``<facet>/<metric>/<method>`` to the mean, if any."""
    table = trial_means(results)
    table = table[~table["trial"].isin(missing(results)["trial"])]
    found: dict[str, dict[str, float | None]] = {trial: {} for trial in table["trial"]}
    for row in table.to_dict("records"):
        # Where no value is defined, pandas has nan for the mean.
        mean = row["mean"] if row["images"] else None
        found[row["trial"]][f"{row['facet']}/{row['metric']}/{row['method']}"] = mean
    return found
