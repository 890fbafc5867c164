"""A cluster that grows and shrinks, as the driver sees it."""

import io
from pathlib import Path
from typing import Any

from clusters import TINY
from conftest import DEMO
from ray import tune
from rich.console import Console

from scl_ray import config, datasets, plan
from scl_ray.cluster.capacity import Following, Trials
from scl_ray.cluster.connection import slots_on
from scl_ray.cluster.progress import Progress
from scl_ray.hand_off import CHOSEN_AHEAD, Cost, HandOff, Order, Request, next_up
from scl_ray.store import open_store


def test_slots_are_what_each_node_has_room_for() -> None:
    def node(**resources: float) -> dict[str, Any]:
        return {"Resources": resources}

    nodes = [node(CPU=4, GPU=1), node(CPU=3), node(memory=1.0)]
    assert slots_on(nodes, {"num_cpus": 2, "num_gpus": 0}) == 2 + 1
    assert slots_on(nodes, {"num_cpus": 1, "num_gpus": 0.25}) == 4
    assert slots_on([], {"num_cpus": 1, "num_gpus": 0}) == 0


def test_there_are_as_many_coordinators_as_the_cluster_has_grown_to() -> None:
    trials = Trials(1)
    grid = {"trial": tune.grid_search(list(range(9)))}
    trials.add_configurations(tune.Experiment("sweep", run=lambda config: None, config=grid))

    def started() -> int:
        count = 0
        while trials.next_trial() is not None:
            count += 1
        return count

    assert started() == 2
    trials.resize(4)
    assert started() == 3
    trials.resize(1)
    assert started() == 0


def test_trials_are_chosen_when_they_are_about_to_start() -> None:
    trials, costs = Trials(9 * CHOSEN_AHEAD), {f"{n}": Cost(n, 0, n % 2) for n in range(1, 3 * CHOSEN_AHEAD + 1)}
    order = Order(costs)
    space = {"trial": tune.sample_from(lambda _: order.start())}
    every = tune.Experiment("sweep", run=lambda config: None, config=space, num_samples=len(costs))
    trials.add_configurations(every)
    chosen = []

    def choose() -> int:
        before = len(chosen)
        while (trial := trials.next_trial()) is not None:
            chosen.append(trial)
        return len(chosen) - before

    assert choose() == CHOSEN_AHEAD
    assert choose() == 0
    assert [trial.config["trial"] for trial in chosen[:4]] == ["96", "95", "94", "93"]
    following = Following({}, trials, None, Progress.__new__(Progress))
    following.on_trial_start(1, chosen, chosen[0])
    trials.on_trial_complete(chosen[1].trial_id, error=True)
    order.measured("96", 1, 1.0)
    order.measured("95", 1, 960.0)
    assert choose() == 2
    assert [trial.config["trial"] for trial in chosen[-2:]] == ["63", "61"]
    while not trials.is_finished():
        for trial in chosen:
            following.on_trial_start(1, chosen, trial)
        choose()
    assert sorted(trial.config["trial"] for trial in chosen) == sorted(costs)


def test_a_group_for_which_the_cluster_is_too_small_now_lets_others_go_on() -> None:
    group, single = Request("g", "one", "train", 3), Request("s", "two", "evaluate")
    room = {"train": 2, "evaluate": 2}
    assert next_up([group, single], {}, False, room) == [single]
    assert next_up([group, single], {}, False, {"train": 3, "evaluate": 3}) == [group]


def test_a_group_that_lost_a_slot_before_it_had_all_holds_nothing_up() -> None:
    group, single, other = Request("g", "one", "train", 3), Request("s", "two", "train"), Request("o", "two", "train")
    desk = HandOff({"train": 3, "evaluate": 3})
    assert desk.ask(group) == [group]
    assert desk.ask(single) == []
    assert desk.resize({"train": 2, "evaluate": 2}) == [single]
    assert desk.ask(other) == [other]
    assert desk.resize({"train": 3, "evaluate": 3}) == []
    assert desk.ask(Request("m", "three", "train")) == []  # the group waits for its slots again


def test_the_view_says_how_many_slots_there_are_and_who_waits_for_more(tmp_path: Path) -> None:
    objectives = "grid.objective=[cross_entropy, {name: supcon, training: {workers: 4}}]"
    sweep = config.load(DEMO, [*TINY, objectives, "grid.seed=0"])
    planned = plan.make(sweep, datasets.load(sweep.dataset), open_store(str(tmp_path), "demo"), 4)
    console = Console(file=io.StringIO(), width=200)
    with Progress(planned, 4, console) as progress:
        progress.started -= 10.0  # seconds
        progress.resize(2)
        progress.resize(0)
        assert progress.seconds_left() is None
        progress.resize(8)
    progress.seconds = 15.0
    progress.train_seconds = 40.0
    said = console.file.getvalue()
    assert "slots      2, 4 before; trials that wait until there are 4: 1" in said
    assert "slots      0, 2 before; trials that wait until there are 1: 2" in said
    assert said.rstrip().endswith("slots      8, 0 before")
    # Four slots for ten seconds, and eight for five.
    assert "on 0 to 8 slots: 50% training" in progress.usage()
