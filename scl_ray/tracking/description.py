"""A sweep's description in MLflow, in Markdown: what was found, and how to read its runs."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from scl_ray.specs import tracking_name

LONGEST = 7500  # characters; MLflow cuts a description at 8000, in the middle of a sentence

RUNS = """Each run below this one is a trained network. `accuracy/…`, `calibration/…` and `geometry/…` measure the \
network, `<facet>/<metric>/<method>` its explanations: a mean over the test images that it classifies correctly."""

EXPERIMENT = f"""One run for the sweep, whose description says what was found and whose artifacts hold the report \
(`report/index.html`); below it one run for each trained network.

{RUNS[RUNS.index("`accuracy") :]} Group by the tag `objective_label` to see means over seeds."""


def of_sweep(report: Mapping[str, bytes]) -> str:
    """The description, from the report's files by their path; empty where there is no report.

    What is decided of ``tables/verdicts.csv`` stands in its own sentences, as many as fit.
    """
    if "report/index.html" not in report:
        return ""
    end = "\n\n".join(["The whole report: Artifacts, `report/index.html`.", RUNS, *_directions(report)])
    text = ""
    for line in _findings(_rows(report, "verdicts")):
        if len(text) + len(line) + len(end) > LONGEST:
            text += "\n- … and more in the report\n"
            break
        text += f"{line}\n"
    return f"{text}\n{end}" if text else end


def _findings(verdicts: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """View by view a line for each sentence that decides, and one for all that is not decided."""
    for view in dict.fromkeys((row["backbone"], row["protocol"]) for row in verdicts):
        yield f"**{view[0]}, {view[1]} protocol**\n"
        rows = [row for row in verdicts if (row["backbone"], row["protocol"]) == view]
        open_questions: dict[str, list[str]] = {}
        for row in rows:
            if row["verdict"] == "not decided":
                open_questions.setdefault(row["objective_label"], []).append(row["facet"])
            else:
                yield f"- {row['sentence']}; {row['support']}"
        if open_questions:
            listed = "; ".join(f"{label}: {', '.join(facets)}" for label, facets in open_questions.items())
            yield f"- not decided by this sweep (the report says how many more seeds it would take): {listed}\n"


def _directions(report: Mapping[str, bytes]) -> list[str]:
    """Which way is better, by metric as MLflow names it."""
    rows = [row for row in _rows(report, "measures") if row["method"]]  # accuracy has none
    better = {tracking_name(row["metric"]): row["direction"] for row in rows}
    named = {way: ", ".join(f"`{metric}`" for metric, is_better in better.items() if is_better == way)
             for way in ("higher", "lower")}  # fmt: skip
    return [f"{way.capitalize()} is better: {metrics}." for way, metrics in named.items() if metrics]


def _rows(report: Mapping[str, bytes], table: str) -> list[dict[str, str]]:
    content = report.get(f"report/tables/{table}.csv", b"")
    return list(csv.DictReader(io.StringIO(content.decode())))
