"""A run's log: one line of JSON an event, on a disk and in an object store, and never a reason to fail."""

import json
import logging
import os
import uuid
from pathlib import Path

import object_store
import pytest

from scl_ray import events
from scl_ray.store import Store, open_store


def lines(store: Store) -> list[dict[str, object]]:
    paths = sorted(store.fs.find(store.path("logs")))
    return [json.loads(line) for path in paths for line in store.fs.cat_file(path).decode().splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), "demo")


def test_each_event_is_a_line_at_once(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    events.say("before")
    with events.kept(store):
        events.say("shard", trial="abc", first=0, last=63, seconds=float("nan"), label="τ=0.07")
        *_, last = lines(store)
        assert last["event"] == "shard"
        assert (last["trial"], last["first"], last["last"], last["seconds"]) == ("abc", 0, 63, None)
        assert last["label"] == "τ=0.07"
        assert str(last["time"]).endswith("+00:00")
        logging.getLogger("scl_ray.storage").warning("storage: %s; trying again in %.1f s", "gone", 0.5)
    events.say("after")
    assert [line["event"] for line in lines(store)] == ["run started", "shard", "warning"]
    assert lines(store)[0]["process"] == os.getpid()
    warned = lines(store)[-1]
    assert (warned["level"], warned["module"]) == ("warning", "scl_ray.storage")
    assert warned["reason"] == "storage: gone; trying again in 0.5 s"
    assert not capfd.readouterr().out


def test_the_end_that_an_error_makes_is_logged(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), events.kept(store):
        1 / 0  # noqa: B018
    assert lines(store)[-1]["event"] == "run broken off"
    assert lines(store)[-1]["reason"] == "ZeroDivisionError: division by zero"


def test_no_password_and_nothing_of_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "seven-secrets")
    monkeypatch.setattr("sys.orig_argv", ["python", "full_grid.py", "--out", "s3://key:pass-word@host/runs"])
    with events.kept(store):
        pass
    assert lines(store)[0]["command"] == ["python", "full_grid.py", "--out", "s3://host/runs"]
    (path,) = Path(store.path("logs")).iterdir()
    assert "seven-secrets" not in path.read_text()
    assert "pass-word" not in path.read_text()


def test_what_coordinators_report_is_told_with_its_trial(store: Store) -> None:
    reports = [
        {"phase": "training", "reached": {}},
        {"phase": "training", "reached": {"earlier": []}},
        {"phase": "retry", "error": "training: node lost"},
        {"phase": "training", "reached": {"earlier": [{"epoch": 1}]}},
        {"phase": "training", "reached": {"epoch": 2, "loss": 0.5, "seconds": 3.0, "accuracy/knn": 0.9}},
        {"phase": "training", "reached": {"slot_seconds": 3.0}},
        {"phase": "trained"},
        {"phase": "evaluating", "first": 0, "last": 63, "shard_images": 64, "slot_seconds": 2.0, "node": "n"},
        {"phase": "done"},
        {"phase": "stopped", "reason": "hopeless"},
        {"phase": "failed", "error": "its loss is not finite"},
    ]
    with events.kept(store):
        for report in reports:
            events.say_of_trial("abc", "supcon", report)
    told = lines(store)[1:]
    assert all((line["trial"], line["label"]) == ("abc", "supcon") for line in told)
    about = [{k: v for k, v in line.items() if k not in ("time", "trial", "label")} for line in told]
    assert about == [
        {"level": "info", "event": "training started"},
        {"level": "warning", "event": "retry", "reason": "training: node lost"},
        {"level": "info", "event": "training resumed", "epochs": 1},
        {"level": "info", "event": "epoch", "epoch": 2, "loss": 0.5, "seconds": 3.0},
        {"level": "info", "event": "trained"},
        {"level": "info", "event": "shard", "first": 0, "last": 63, "node": "n", "seconds": 2.0},
        {"level": "info", "event": "evaluated"},
        {"level": "info", "event": "stopped", "reason": "hopeless"},
        {"level": "error", "event": "failed", "reason": "its loss is not finite"},
    ]


@pytest.mark.parametrize("kind", ["disk", "object store"])
def test_a_name_that_is_no_utf_8_is_a_line_too(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"Caf\xe9.yaml")
    monkeypatch.setattr("sys.orig_argv", ["python", "full_grid.py", "--config", name])
    store = open_store(str(tmp_path) if kind == "disk" else f"memory://{uuid.uuid4().hex}", "demo")
    with events.kept(store):
        pass
    assert lines(store)[0]["command"][-1] == name


def test_a_log_that_cannot_be_written_costs_its_lines_alone(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    store.write("logs", b"a file where the folder belongs")
    with events.kept(store):
        events.say("shard")
    assert not capfd.readouterr().err


def test_an_object_store_holds_every_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WRITE_EVERY", 0.02)
    monkeypatch.setattr(events, "FULL", 2000)
    with object_store.serving():
        store = open_store(object_store.new_bucket(), "demo")
        with events.kept(store):
            for number in range(150):
                events.say("epoch", number=number)
                if number % 50 == 49:
                    while not store.fs.find(store.path("logs")) or f'"number": {number}' not in _text(store):
                        pass
        assert len(store.fs.find(store.path("logs"))) > 1
        assert [line["number"] for line in lines(store)[1:]] == list(range(150))


def _text(store: Store) -> str:
    return "".join(store.fs.cat_file(path).decode() for path in store.fs.find(store.path("logs")))
