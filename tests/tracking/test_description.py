"""A sweep's description: what was found, short enough for MLflow."""

from pathlib import Path

from tracking.logged import SUPCON, Stored

from scl_ray import tracking
from scl_ray.tracking import description

COLUMNS = "backbone,protocol,facet,metric,method,direction,objective_label,verdict,sentence,support\n"
BETTER = 'resnet8,corrected,faithfulness,pixel_flipping_auc,grad_cam,lower,supcon,better,"supcon is better",all agree\n'
OPEN = 'resnet8,corrected,continuity,ssim_continuity,grad_cam,higher,supcon,not decided,"not decided: more seeds",\n'
MEASURES = """metric,method,direction
accuracy,,higher
pixel_flipping_auc,grad_cam,lower
ssim_continuity[noise=0.1],grad_cam,higher
"""


def of(verdicts: str) -> str:
    tables = {"verdicts": COLUMNS + verdicts, "measures": MEASURES}
    report = {f"report/tables/{name}.csv": table.encode() for name, table in tables.items()}
    return description.of_sweep({**report, "report/index.html": b""})


def test_what_is_decided_is_said_and_what_is_not_is_listed() -> None:
    lines = of(BETTER + OPEN).splitlines()
    assert lines[0] == "**resnet8, corrected protocol**"
    assert lines[2] == "- supcon is better; all agree"
    assert lines[3].startswith("- not decided by this sweep")
    assert lines[3].endswith(": supcon: continuity")
    assert lines[-3:] == [
        "Higher is better: `ssim_continuity:noise:0.1`.",
        "",
        "Lower is better: `pixel_flipping_auc`.",
    ]


def test_it_is_as_long_as_mlflow_allows_and_no_sentence_is_cut() -> None:
    long = of(BETTER.replace("supcon is better", "x" * 300) * 50)
    assert len(long) < 8000
    assert "\n- … and more in the report\n" in long
    assert {len(line) for line in long.splitlines() if line.startswith("- x")} == {300 + len("- ; all agree")}


def test_without_a_report_there_is_none_and_with_one_it_is_shown(uri: str, report: Path) -> None:
    assert description.of_sweep({}) == ""
    (report / "tables" / "verdicts.csv").write_text(COLUMNS + BETTER)
    tracking.log_sweep(uri, "described", [SUPCON], {}, str(report))
    stored = Stored(uri, "described")
    note = stored.parent.data.tags["mlflow.note.content"]
    assert "- supcon is better; all agree" in note
    experiment = stored.client.get_experiment(stored.parent.info.experiment_id)
    assert "report/index.html" in experiment.tags["mlflow.note.content"]
    # While more is computed, what was found stands.
    tracking.log_sweep(uri, "described", [SUPCON], {}, status="RUNNING")
    assert Stored(uri, "described").parent.data.tags["mlflow.note.content"] == note
