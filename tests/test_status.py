"""--status: what it says of a store whose every part is known."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import object_store
import pytest
from conftest import DEMO, Outcome
from report import known_sweep as known

from scl_ray import lock
from scl_ray.store import FAILURES, Store

CELLS = len(known.cells(("corrected",)))
EACH = CELLS * known.IMAGES  # scores of one trial

Status = Callable[[], str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A sweep of twelve trials that lacks nothing."""
    store = known.write(tmp_path)
    for trial in store.read_json("plan.json")["trials"]:
        store.write(f"checkpoints/{trial}/checkpoint.json", b"{}")
    store.write("report/index.html", b"<html>")
    return store


@pytest.fixture
def status(run: Callable[..., Outcome], store: Store, tmp_path: Path) -> Status:
    """Runs the command and gives what it prints."""

    def command() -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        done = run("--config", DEMO, "--out", tmp_path, "--status")
        assert done.code == 0, done.error
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return done.out

    return command


def test_a_complete_sweep(status: Status, store: Store) -> None:
    said = status()
    assert f"{store.root}: nobody runs it" in said
    assert "trials  12: 12 done" in said
    assert f"scores  {12 * EACH:,} of {12 * EACH:,}" in said
    assert "UTC, for the last time" in said
    assert "missing nothing" in said


def test_every_state_of_a_trial(status: Status, store: Store) -> None:
    waiting, training, evaluating, failed, stopped, lost, *_ = trials = store.read_json("plan.json")["trials"]
    for trial in (waiting, training, failed, stopped, lost):
        store.remove(f"checkpoints/{trial}")
    for trial in (waiting, training):
        store.remove(f"trials/{trial}.json")
    store.write(f"checkpoints/{training}/resume.pt", b"not read")
    for trial, status_of, why in ((failed, "failed", {"error": "its loss"}), (stopped, "stopped", {"reason": "early"})):
        store.write_record(trial, {**store.record(trial), "status": status_of, **why})
    parts = store.parts("scores", evaluating)
    absent = (parts[0].last - parts[0].first + 1) * len(store.cells(parts[0]))
    Path(parts[0].path).unlink()
    shutil.rmtree(store.path("report"))
    labels = {trial: (store.record(trial) or {}).get("label") for trial in trials}

    said = status()
    assert "trials  12: 2 waiting, 1 training, 1 evaluating, 6 done, 1 failed, 1 stopped" in said
    # A trial whose checkpoint was lost keeps its scores; of one that was stopped none are wanted.
    lacking = 3 * EACH + absent
    assert f"scores  {11 * EACH - lacking:,} of {11 * EACH:,}" in said
    assert f"training    a trial without a record ({training})" in said
    assert f"evaluating  {labels[evaluating]} ({evaluating}): {EACH - absent:,} of {EACH:,} scores" in said
    assert f"failed      {labels[failed]} ({failed}): its loss" in said
    assert f"stopped     {labels[stopped]} ({stopped}): early" in said
    assert f"missing the training of 4 trials, {lacking:,} scores, the report" in said
    assert "go on   by the command that started it" in said


def test_what_failed_when_it_was_last_run(status: Status, store: Store) -> None:
    lost, unscored, made_up_for, *_ = store.read_json("plan.json")["trials"]
    store.write_json(FAILURES, {lost: "its coordinator was lost", unscored: "a metric", made_up_for: "a metric"})
    store.remove(f"checkpoints/{lost}")
    store.remove(f"trials/{lost}.json")
    Path(store.parts("scores", unscored)[0].path).unlink()

    said = status()
    assert "trials  12: 10 done, 2 failed" in said
    assert f"failed      a trial without a record ({lost}): its coordinator was lost" in said
    assert f"failed      {store.record(unscored)['label']} ({unscored}): a metric" in said
    assert "missing the training of 1 trial, " in said


def test_who_runs_it(status: Status, store: Store) -> None:
    with lock.held(store, lost=print):
        holder = lock.describe(json.loads(Path(store.path(".lock")).read_text()))
        assert f"{store.root}: run by {holder}" in status()
    assert "nobody runs it" in status()


def test_an_object_store(run: Callable[..., Outcome]) -> None:
    with object_store.serving():
        out = object_store.new_bucket()
        store = known.write(out, seeds=(0,))
        trials = store.read_json("plan.json")["trials"]
        for trial in trials[1:]:
            store.write(f"checkpoints/{trial}/checkpoint.json", b"{}")
        with lock.held(store, lost=print):
            done = run("--config", DEMO, "--out", out, "--status")
    assert done.code == 0, done.error
    assert f"{out}/demo: run by process {os.getpid()}" in done.out
    assert "trials  4: 1 waiting, 3 done" in done.out
    assert f"scores  {4 * EACH:,} of {4 * EACH:,}" in done.out
    assert "UTC, for the last time" in done.out
    assert "missing the training of 1 trial, the report" in done.out


def test_a_sweep_that_is_not_there_is_refused(run: Callable[..., Outcome], tmp_path: Path) -> None:
    refused = run("--config", DEMO, "--out", tmp_path / "runs", "--status")
    assert refused.code == 2
    assert refused.error.startswith("refused: ")
    assert "holds no sweep" in refused.error
    assert len(refused.error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [["--dry-run"], ["--address", "auto"], ["--cancel"], ["--prune"]])
def test_it_goes_with_nothing_else(run: Callable[..., Outcome], tmp_path: Path, other: list[str]) -> None:
    refused = run("--config", DEMO, "--out", tmp_path / "runs", "--status", *other)
    assert refused.code == 2
    assert refused.error.startswith("refused: --status: ")
    assert not list(tmp_path.iterdir())
