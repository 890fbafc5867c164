"""The hand-off: nothing starves and nothing deadlocks, whatever asks for slots, in a simulated cluster."""

import asyncio
import random
from collections import Counter

import pytest

from scl_ray.cluster.permits import Permits
from scl_ray.hand_off import Request, next_up


def requests(*asked: tuple[str, int]) -> list[Request]:
    return [Request(f"{number}", f"trial {number}", kind, slots) for number, (kind, slots) in enumerate(asked)]


def test_as_much_is_given_as_the_cluster_runs_and_one_more():
    waiting = requests(*[("evaluate", 1)] * 9)
    assert next_up(waiting, [], False, {"train": 2, "evaluate": 4}) == waiting[:5]
    given = requests(("train", 1), ("evaluate", 1), ("evaluate", 1))
    assert next_up(waiting, given, False, {"train": 2, "evaluate": 4}) == waiting[:1]
    assert next_up(waiting, [*given, given[0]], False, {"train": 2, "evaluate": 4}) == []


def test_a_group_is_given_before_all_single_tasks_and_alone():
    single, group, other = requests(("train", 1), ("train", 3), ("train", 2))
    assert next_up([single, group, other], [], False, {"train": 4, "evaluate": 4}) == [group]
    # Also to a cluster that is full: its slots become free, since nothing else is given.
    assert next_up([single, group], [single] * 9, False, {"train": 4, "evaluate": 4}) == [group]


def test_nothing_is_given_while_a_group_waits_for_its_slots():
    group, *waiting = requests(("train", 2), ("evaluate", 1), ("train", 1), ("train", 2))
    assert next_up(waiting, [group], True, {"train": 4, "evaluate": 4}) == []
    assert next_up(waiting, [group], False, {"train": 4, "evaluate": 4}) == waiting[2:]
    # A group that has its slots leaves room for what fits beside it.
    assert next_up(waiting[:1], [group], False, {"train": 4, "evaluate": 4}) == waiting[:1]


@pytest.mark.parametrize("seed", range(20))
def test_every_sweep_ends_on_a_simulated_cluster(seed):
    """Coordinators that train, in groups or alone, and then evaluate; tasks take random times; some coordinators are
    lost in between and start anew. The cluster places tasks first come, first served, groups as a whole."""
    rng = random.Random(seed)
    slots = rng.randint(1, 5)
    capacity = {"train": slots, "evaluate": slots}
    todo = [
        [("train", rng.choice([1, 1, rng.randint(1, slots)])), *[("evaluate", 1)] * rng.randint(0, 6)]
        for _ in range(rng.randint(1, 12))
    ]
    seats: dict[int, None] = {}  # coordinators at work: a few more than slots, as Tune allows
    waiting: list[Request] = []
    queue: list[Request] = []  # what Ray has and has not placed
    running: dict[Request, int] = {}  # ends at
    free, number, idle = slots, 0, 0

    def drop(trial: str) -> None:
        nonlocal free
        waiting[:] = [r for r in waiting if r.trial != trial]
        queue[:] = [r for r in queue if r.trial != trial]
        for request in [r for r in running if r.trial == trial]:
            free += request.slots
            del running[request]

    for now in range(10_000):
        for index, work in enumerate(todo):
            if work and len(seats) <= slots:
                seats.setdefault(index)
        for index in seats:
            busy = {r.trial for r in [*waiting, *queue, *running]}
            if f"{index}" not in busy:
                waiting.append(Request(f"{number}", f"{index}", *todo[index][0]))
                number += 1
        if seats and rng.random() < 0.02:
            drop(str(rng.choice(list(seats))))  # it asks again for the same work
        placing = any(r.is_group for r in queue)
        for request in next_up(waiting, [*queue, *running], placing, capacity):
            # While a group waits for its slots, nothing else is given.
            assert not any(r.is_group for r in queue)
            waiting.remove(request)
            queue.append(request)
        assert sum(r.slots for r in queue if not r.is_group) <= slots + 1
        for request in list(queue):
            if request.slots <= free:
                queue.remove(request)
                running[request] = now + rng.randint(1, 9)
                free -= request.slots
        for request in [r for r, end in running.items() if end <= now]:
            del running[request]
            free += request.slots
            index = int(request.trial)
            todo[index].pop(0)
            if not todo[index]:
                del seats[index]
        assert 0 <= free <= slots
        idle = 0 if running else idle + 1
        assert idle < 3, "work waits and nothing runs"
        if not any(todo):
            return
    raise AssertionError("the sweep did not end")


def test_permits_follow_the_hand_off():
    """The actor's own logic, in this process."""

    async def story() -> list[str]:
        permits = Permits({"train": 2, "evaluate": 2})
        permits.looking = asyncio.create_task(asyncio.sleep(0))  # there is no Ray whose orphans could be looked for
        told: list[str] = []

        async def ask(key: str, trial: str, slots: int = 1) -> None:
            await permits.acquire(key, trial, "train", slots)
            told.append(key)

        asking = [asyncio.create_task(ask(key, key)) for key in ("a", "b", "c", "d")]
        await asyncio.sleep(0)
        asking += [asyncio.create_task(ask(key, key, slots)) for key, slots in (("group", 2), ("e", 1), ("lost", 2))]
        for step in (
            permits.release("a"),  # the group comes first, and while it waits for its slots nothing else
            permits.release("b"),
            permits.release("c"),
            permits.placed("group"),  # now the other group, which is lost before it has its slots
            permits.release("group"),
            permits.forget("lost"),
            permits.release("nobody has this"),
        ):
            await asyncio.sleep(0)
            told.append("|")
            await step
            await asyncio.sleep(0)
        await asyncio.gather(*asking)
        return told

    assert "".join(told if len(told) == 1 else f"[{told}]" for told in asyncio.run(story())) == (
        "abc[group]||||[lost]||de|"
    )


def test_what_a_lost_coordinator_waited_for_is_not_given():
    async def story() -> Counter[str]:
        permits = Permits({"train": 1, "evaluate": 1})
        held = [asyncio.create_task(permits.acquire(f"{n}", "lost", "evaluate")) for n in range(4)]
        await asyncio.sleep(0)
        await permits.forget("lost")
        await asyncio.gather(*held)
        await permits.acquire("new", "lost", "train")
        return Counter(request.key for request in permits.given.values())

    assert asyncio.run(story()) == {"new": 1}
