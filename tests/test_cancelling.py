"""--cancel: what it asks of whom, and what it says."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import DEMO, Outcome

from scl_ray import cancelling, lock
from scl_ray.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(cancelling, "LOOK_EVERY", 0.05)
    return open_store(str(tmp_path), "demo")


def never(holder: str) -> None:
    raise AssertionError(holder)


def test_the_holder_stops_and_leaves_no_request(store: Store) -> None:
    asked = threading.Event()
    said: list[str] = []
    with ExitStack() as running:
        token = running.enter_context(lock.held(store, lost=never))
        running.enter_context(cancelling.heeded(store, token, stop=lambda who: (said.append(who), asked.set())))
        cancelled: list[str] = []
        thread = threading.Thread(target=lambda: cancelled.append(cancelling.cancel(store)))
        thread.start()
        assert asked.wait(60)
        assert not cancelled
        running.close()
        thread.join(60)
    assert "cancelled by process" in said[0]
    assert "stopped process" in cancelled[0]
    assert store.read(cancelling.REQUEST) is None
    assert "nobody runs this sweep" in cancelling.cancel(store)


def test_a_stale_request_stops_nobody(store: Store) -> None:
    with lock.held(store, lost=never) as token:
        store.write_json(cancelling.REQUEST, {"token": token})
    with lock.held(store, lost=never) as token, cancelling.heeded(store, token, stop=never):
        time.sleep(0.3)  # several looks; one that heeded it would be an error of this test's thread
        assert threading.active_count() >= 2
        assert "requests" in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_holder_that_does_not_answer(store: Store, monkeypatch: pytest.MonkeyPatch, is_alive: bool) -> None:
    """One that renews its lease is named as alive; one that does not has died on its host."""
    monkeypatch.setattr(cancelling, "WITHIN", 1.5)
    path = Path(store.path(".lock"))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "another-host", "pid": 7, "token": "abc", "since": "yesterday", "place": "x"}))
    if not is_alive:
        assert "has died without a word" in cancelling.cancel(store)
        return
    renewing = threading.Timer(0.5, lambda: path.touch())
    renewing.start()
    with pytest.raises(TimeoutError, match=r"process 7 on another-host since yesterday is alive"):
        cancelling.cancel(store)
    renewing.join()


@pytest.mark.parametrize("other", [["--dry-run"], ["--address", "auto"]])
def test_it_goes_with_nothing_else(run: Callable[..., Outcome], tmp_path: Path, other: list[str]) -> None:
    refused = run("--config", DEMO, "--out", tmp_path / "runs", "--cancel", *other)
    assert refused.code == 2
    assert refused.error.startswith("refused: --cancel: ")
    assert not list(tmp_path.iterdir())
