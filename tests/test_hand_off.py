"""The hand-off: nothing starves and nothing deadlocks, whatever asks for slots, in a simulated cluster."""

import asyncio
import math
import random
from collections import Counter

import pytest
from benchmarks.scale import policies
from benchmarks.scale.simulation import Cluster, Conditions, Trial, lower_bound

from scl_ray.cluster.permits import Permits
from scl_ray.hand_off import Cost, HandOff, Order, Request, next_up, shard_images


def requests(*asked: tuple[str, int]) -> list[Request]:
    return [Request(f"{number}", f"trial {number}", kind, slots) for number, (kind, slots) in enumerate(asked)]


def test_as_much_is_given_as_the_cluster_runs_and_one_more():
    waiting = requests(*[("evaluate", 1)] * 9)
    assert next_up(waiting, {}, False, {"train": 2, "evaluate": 4}) == waiting[:5]
    assert next_up(waiting, {"train": 1, "evaluate": 2}, False, {"train": 2, "evaluate": 4}) == waiting[:1]
    assert next_up(waiting, {"train": 2, "evaluate": 2}, False, {"train": 2, "evaluate": 4}) == []


def test_a_cluster_without_slots_is_asked_for_one():
    """For it to grow; and no more, since what it will have is not known."""
    waiting = requests(*[("train", 1)] * 9)
    given = next_up(waiting, {}, False, {"train": 0, "evaluate": 0})
    assert given == waiting[:2]
    assert next_up(waiting[2:], {"train": 2}, False, {"train": 0, "evaluate": 0}) == []


def test_a_group_is_given_before_all_single_tasks_and_alone():
    group, other, single = requests(("train", 3), ("train", 2), ("train", 1))
    assert next_up([group, other, single], {}, False, {"train": 4, "evaluate": 4}) == [group]
    # Also to a cluster that is full: its slots become free, since nothing else is given.
    assert next_up([group, single], {"train": 9}, False, {"train": 4, "evaluate": 4}) == [group]
    # However early others have asked.
    desk = HandOff({"train": 2, "evaluate": 2})
    *first, waits, pair = requests(*[("train", 1)] * 4, ("train", 2))
    assert [desk.ask(request) for request in (*first, waits, pair)] == [[each] for each in first] + [[], [pair]]
    assert desk.drop([each.key for each in first]) == []
    assert desk.placed(pair.key) == [waits]


def test_nothing_is_given_while_a_group_waits_for_its_slots():
    waiting = requests(("train", 2), ("evaluate", 1), ("train", 1))
    assert next_up(waiting, {"train": 2}, True, {"train": 4, "evaluate": 4}) == []
    assert next_up(waiting, {"train": 2}, False, {"train": 4, "evaluate": 4}) == waiting[:1]
    # A group that has its slots leaves room for what fits beside it.
    assert next_up(waiting[1:2], {"train": 2}, False, {"train": 4, "evaluate": 4}) == waiting[1:2]


def test_a_group_that_the_cluster_has_become_too_small_for_holds_nothing_up():
    desk = HandOff({"train": 4, "evaluate": 4})
    large, small, single, other = requests(("train", 4), ("train", 2), ("train", 1), ("train", 1))
    assert desk.ask(large) == [large]
    assert desk.ask(single) == []
    assert desk.resize({"train": 3, "evaluate": 3}) == [single]
    assert desk.ask(small) == [small]
    assert desk.placed(small.key) == []
    # The cluster has grown again, and its slots are kept for the large one.
    assert desk.resize({"train": 4, "evaluate": 4}) == desk.drop([single.key]) == desk.ask(other) == []
    assert desk.drop([small.key]) == []
    assert desk.placed(large.key) == [other]


def test_trials_start_longest_first_as_estimated_while_nothing_else_is_known():
    costs = {"short": Cost(1, 9), "long": Cost(5, 1), "evaluated": Cost(0, 3), "longest": Cost(5, 2)}
    order = Order(costs)
    assert [order.start() for _ in costs] == ["longest", "long", "short", "evaluated"]
    with pytest.raises(ValueError, match="empty"):
        order.start()


def test_groups_that_were_not_measured_take_turns():
    order = Order({f"{group}{number}": Cost(seconds, 1, group)
                   for group, seconds in (("a", 9), ("b", 1)) for number in range(3)})  # fmt: skip
    assert [order.start() for _ in range(3)] == ["a0", "b0", "a1"]
    order.measured("a0", 0.1, 1.0)
    assert [order.start() for _ in range(3)] == ["b1", "b2", "a2"]


def test_what_was_measured_corrects_its_group():
    costs = {f"{group}{seconds}": Cost(seconds, 1, group) for group in "ab" for seconds in (4, 5, 6, 7)}
    order = Order(costs)
    assert {order.start(), order.start()} == {"a7", "b7"}
    order.measured("a7", 0.5, 7.0)  # it takes 2 seconds a unit
    order.measured("b7", 0.5, 4.2)  # 1.2 seconds
    assert [order.start() for _ in range(3)] == ["a6", "a5", "a4"]
    order = Order(costs)
    assert {order.start(), order.start()} == {"a7", "b7"}
    order.measured("a7", 0.5, 7.0)
    order.measured("b7", 0.5, 4.2)
    assert order.start() == "a6"
    order.measured("b7", 0.5, 21.0)  # and later more: 3.6 altogether
    assert [order.start() for _ in range(5)] == ["b6", "b5", "b4", "a5", "a4"]


def test_a_finished_trial_that_trains_again_corrects_nothing():
    """Its checkpoint was found damaged, so no training was foreseen."""
    order = Order({"a": Cost(0, 5, "g"), "b": Cost(0, 4, "g"), "c": Cost(2, 1, "g"), "d": Cost(1, 1, "g")})
    assert order.start() == "c"
    order.measured("a", 0.5, 3.0)
    assert order.start() == "d"
    order.measured("a", 0.5, 3.0)
    assert [order.start(), order.start()] == ["a", "b"]


def test_what_could_not_be_estimated_comes_first_and_what_is_trained_last():
    order = Order({"trained": Cost(0, math.inf, "a"), "a": Cost(1, 1, "a"), "b1": Cost(math.inf, 1, "b"),
                   "b2": Cost(math.inf, 1, "b"), "c": Cost(2, 1, "c"), "other": Cost(0, 4, "c")})  # fmt: skip
    assert [order.start() for _ in range(3)] == ["b1", "c", "a"]
    for trial, seconds in (("b1", 1.0), ("a", 9.0), ("c", 9.0)):
        order.measured(trial, 0.5, seconds)
    assert [order.start() for _ in range(3)] == ["b2", "trained", "other"]


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_measuring_mends_what_was_estimated_wrongly(seed):
    """Estimates that are wrong by a factor of each backbone: with them alone the bounds are not kept."""
    work = policies.trials(policies.Workload(misjudged=1.0), 2000, 200, seed)
    conditions, bound = policies.Conditions(25, 8), policies.lower_bound(work, 200)
    assert policies.ours(work, conditions, 1).makespan <= 1.05 * bound
    assert policies.knowing_all(work, conditions, 1).makespan <= 1.05 * bound


@pytest.mark.parametrize("seed", range(20))
def test_every_sweep_ends_on_a_simulated_cluster(seed):
    """Trials of one worker and of several, on nodes that are taken away every few seconds with their coordinators.
    The simulation itself checks that nothing is given while a group waits, and that work does not wait for ever."""
    rng = random.Random(seed)
    slots = rng.randint(1, 5)
    trials = [
        Trial(f"{number}", rng.uniform(0.1, 2), rng.randint(1, 5), tuple(rng.choices(range(1, 9), k=rng.randint(0, 6))),
              Cost(rng.random(), rng.random(), rng.choice("ab")), workers=rng.choice([1, 1, rng.randint(1, slots)]))
        for number in range(rng.randint(1, 12))
    ]  # fmt: skip
    often = Conditions(slots, 1, preempted_an_hour=60, replaced_after=5, noticed_after=1)
    outcome = Cluster(trials, often, seed, Order({trial.name: trial.cost for trial in trials})).run()
    assert outcome.makespan >= lower_bound(trials, slots)


@pytest.mark.parametrize("name", policies.WORKLOADS)
def test_a_sweep_takes_hardly_longer_than_it_must(name):
    """The benchmark in small: 400 trials on 40 GPUs."""
    work = policies.trials(policies.WORKLOADS[name], 400, 40, seed=0)
    bound = policies.lower_bound(work, 40)
    for preempted_an_hour, most in ((0.0, 1.05), (0.05, 1.15)):
        conditions = policies.Conditions(5, 8, preempted_an_hour)
        span = policies.ours(work, conditions, 1).makespan
        assert bound <= span <= most * bound
        naive = [policies.inside(work, conditions, 1).makespan, policies.at_the_end(work, conditions, 1).makespan]
        assert span < min(naive)


@pytest.mark.parametrize(("images", "trials", "slots", "expected"), [
    (10_000, 10_000, 1000, 1024),  # a shard is a small part of what each slot does
    (10_000, 24, 8, 640),  # every slot has a part of the last trials' work
    (10_000, 1, 8, 320),
    (160, 8, 2, 64),
])  # fmt: skip
def test_shards_are_as_large_as_the_sweep_allows(images, trials, slots, expected):
    assert shard_images(images, trials, slots) == expected


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
        return Counter(request.key for request in permits.desk.given.values())

    assert asyncio.run(story()) == {"new": 1}
