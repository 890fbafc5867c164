"""What took remote work, and whether it is started again."""

from collections.abc import Generator
from itertools import pairwise

import pytest
from ray import exceptions

from scl_ray.cluster import coordinator, tasks
from scl_ray.cluster.coordinator import SHARDS_NAMED, SMALLER, _given_up
from scl_ray.cluster.failures import ATTEMPTS, NODES, Exhausted, Failed, Losses, Lost, NodeLost, told_apart


def raised(cause: Exception) -> exceptions.RayTaskError:
    return exceptions.RayTaskError("evaluate", f"a traceback\n{cause}", cause)


class Unpicklable(Exception):
    """What a user's own code may raise; Ray puts a RayError in its place."""

    def __reduce__(self) -> str:
        raise TypeError("it holds an open file")


def actor_died(why: str, preempted: bool = False) -> exceptions.RayActorError:
    said = f"The actor died unexpectedly before finishing this task.\n\tclass_name: A\n{why}"
    return exceptions.RayActorError("aa", said, preempted=preempted)


@pytest.mark.parametrize(("error", "kind", "said"), [
    (raised(ValueError("no such layer\nand more")), Failed, "ValueError: no such layer"),
    (raised(MemoryError("not even one image fits")), Exhausted, "MemoryError: not even one image fits"),
    (raised(exceptions.NodeDiedError("Task failed because the node …")), NodeLost, "its node was lost"),
    (exceptions.WorkerCrashedError(), Lost, "its process was killed or crashed"),
    (exceptions.OutOfMemoryError("Task was killed …\n\nsee the docs"), Exhausted, "its node ran out of memory"),
    (exceptions.NodeDiedError("Task failed because the node …"), NodeLost, "its node was lost"),
    (actor_died("The actor died because its node has died.\n\tno heartbeats"), NodeLost, "its node was lost"),
    (actor_died("The node drained.", preempted=True), NodeLost, "its node was lost"),
    (actor_died("The worker process has died."), Lost, "The worker process has died."),
    (raised(Unpicklable("no such layer")), Failed, "no such layer"),
    (exceptions.UnserializableException("Traceback …\nmine.NoPairs: no pairs"), Failed, "mine.NoPairs: no pairs"),
])  # fmt: skip
def test_what_took_the_work_is_told_from_the_error_it_left(error: Exception, kind: type, said: str) -> None:
    with pytest.raises(kind, match=said) as caught, told_apart():
        raise error
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_nodes_that_go_do_not_count_as_attempts_and_neither_goes_on_for_ever() -> None:
    losses, starts = Losses(), 1
    for _ in range(5):
        losses = losses.and_by(NodeLost("its node was lost"))
    assert losses.next_start() == "attempt 1 of 3, 5 lost with their nodes not counted"
    while not losses.are_enough:
        losses, starts = losses.and_by(Lost("its process was killed")), starts + 1
    assert starts == 1 + ATTEMPTS
    assert losses.total() == "3 times"

    losses = Losses()
    while not losses.are_enough:
        losses = losses.and_by(NodeLost("its node was lost"))
    assert losses == Losses(with_a_node=NODES)
    assert losses.total() == f"with {NODES} nodes"


def test_training_that_is_lost_at_the_same_place_has_an_end_though_it_trains_epochs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No epoch is kept, as where writing it takes too long."""
    monkeypatch.setattr(coordinator.tune, "report", lambda report: None)
    starts: list[int] = []

    def train(last: int) -> Generator[dict[str, int]]:
        starts.append(last)
        assert len(starts) < 10
        for epoch in range(1, last + 1):
            yield {"epoch": epoch}
        raise Lost("its process was killed")

    said = coordinator._trained(lambda: train(5), lambda: False, 10, None)
    assert said == "training was lost 3 times (its process was killed)"
    assert len(starts) == ATTEMPTS
    # As long as it gets further, it goes on.
    starts.clear()
    reached = iter([2, 3, 4, 4, 4])
    assert coordinator._trained(lambda: train(next(reached)), lambda: False, 10, None) == said
    assert starts == [2, 3, 4, 4, 4]


def test_many_shards_that_failed_are_named_in_a_line_that_can_be_read() -> None:
    assert coordinator._named(["a: raised"]) == "a: raised"
    said = coordinator._named([f"images {n}: raised" for n in range(100)])
    assert said.count("raised") == SHARDS_NAMED
    assert said.endswith(f"; and {100 - SHARDS_NAMED} more shards")


def test_a_shard_that_is_given_up_says_what_was_tried_and_what_may_help() -> None:
    tried = f"the last time with {SMALLER**2} times fewer images at once than the first"
    said = _given_up(Lost("its process was killed"), Losses(alone=3))
    assert said.startswith(f"lost 3 times (its process was killed), {tried}")
    assert "resources.evaluate.memory" in said
    assert _given_up(Exhausted("no room"), Losses(alone=3)) == f"did not fit into memory, {tried} (no room)"
    assert _given_up(NodeLost("its node was lost"), Losses(with_a_node=20)) == "lost with 20 nodes (its node was lost)"


def test_what_resuming_needs_is_written_for_a_twentieth_of_the_time_at_most() -> None:
    """Epochs of a second, of which each would take 0.2 to write down, and epochs of a minute."""
    now = writing = 0.0
    written = []
    for epoch in range(1, 201):
        now += 1.0
        if tasks._is_worth_keeping(writing, 0.2 if written else 0.0, now):
            written.append(epoch)
            writing, now = writing + 0.2, now + 0.2
    assert written[:3] == [1, 2, 3]
    assert writing < 1.0 + now / 20
    assert max(b - a for a, b in pairwise(written)) <= 4
    assert all(tasks._is_worth_keeping(0.2 * epoch, 0.2, 60.0 * epoch) for epoch in range(1, 100))
