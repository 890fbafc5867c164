"""A cluster in simulated time, whose coordinators are handed work by the very functions that hand it out on a real one.

What is simulated is what surrounds those functions: Tune, which starts a few more coordinators than there are slots;
coordinators, which ask for one piece of work at a time; Ray, which places what it is given first come, first served;
tasks, which take as long as they like; and nodes that are taken away, with all that runs on them, and replaced.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scl_ray.hand_off import CHOSEN_AHEAD, EXTRA_COORDINATORS, Cost, HandOff, Order, Request


class Trial(NamedTuple):
    """What a trial really takes: *epochs* of *epoch* seconds each on all of *workers* slots, then its shards' seconds.

    *cost* is what it was estimated to take."""

    name: str
    epoch: float
    epochs: int
    shards: tuple[float, ...]
    cost: Cost
    workers: int = 1

    @property
    def training(self) -> float:
        return self.epoch * self.epochs

    @property
    def work(self) -> float:
        """Seconds of slots."""
        return self.workers * self.training + sum(self.shards)


class Conditions(NamedTuple):
    """Of the cluster; times in seconds."""

    nodes: int
    slots_a_node: int
    preempted_an_hour: float = 0.0  # the share of nodes
    replaced_after: float = 300.0
    noticed_after: float = 10.0  # until a coordinator that was lost starts anew
    starts_every: float = 0.35  # what Tune takes to start a coordinator
    task_start: float = 0.2  # in a worker process that is warm

    @property
    def slots(self) -> int:
        return self.nodes * self.slots_a_node


class Outcome(NamedTuple):
    makespan: float
    lost: float  # seconds of slots
    preempted: int
    restarts: int  # of coordinators
    most: int  # times that one trial's coordinator was lost


def lower_bound(trials: Sequence[Trial], slots: int) -> float:
    """Seconds that no schedule undercuts: the longest trial, its shards all at once, or all work shared equally."""
    longest = max(trial.training + max(trial.shards, default=0.0) for trial in trials)
    return max(longest, sum(trial.work for trial in trials) / slots)


@dataclass
class _Task:
    request: Request
    shard: int | None  # None: training
    nodes: list[int] = field(default_factory=list)
    started: float = 0.0
    is_lost: bool = False


@dataclass
class _Coordinator:
    trial: Trial
    node: int
    epochs: int  # done
    shards: deque[int]  # that are to be started
    asked: str | None = None
    tasks: dict[str, _Task] = field(default_factory=dict)


class Cluster:
    """Runs *trials* to their end: as *order* chooses them, which learns of how long epochs took, or one by one."""

    def __init__(self, trials: Sequence[Trial], conditions: Conditions, seed: int, order: Order | None = None) -> None:
        self.conditions, self.rng = conditions, random.Random(seed)
        self.now, self.number, self.lost, self.preempted = 0.0, 0, 0.0, 0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.free = dict.fromkeys(range(conditions.nodes), conditions.slots_a_node)  # of living nodes
        self.vacant = dict.fromkeys(self.free)  # living nodes with a free slot
        self.free_slots = conditions.slots
        self.desk = HandOff({"train": conditions.slots, "evaluate": conditions.slots})
        self.trials = {trial.name: trial for trial in trials}
        self.order, self.one_by_one = order, iter(self.trials)
        self.to_choose, self.chosen = len(trials), deque[Trial]()
        self.left = {trial.name: (trial.epochs, set(range(len(trial.shards)))) for trial in trials}
        self.coordinators: dict[str, _Coordinator] = {}
        self.running: dict[int, dict[str, _Task]] = {node: {} for node in self.free}
        self.queue: deque[_Task] = deque()  # what Ray was given and has not placed
        self.restarts: Counter[str] = Counter()
        self.is_starting = False

    def run(self) -> Outcome:
        if self.conditions.preempted_an_hour:
            for node in self.free:
                self._await_preemption(node)
        self._start_next()
        while self.left:
            assert self.events, "work waits and nothing runs"
            self.now, _, act, arguments = heapq.heappop(self.events)
            act(*arguments)
        return Outcome(
            self.now, self.lost, self.preempted, self.restarts.total(), max(self.restarts.values(), default=0)
        )

    def _at(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, act, arguments))

    # -- Tune and its coordinators --------------------------------------------------------------------------------

    def _start_next(self) -> None:
        seats = self.conditions.slots + EXTRA_COORDINATORS - len(self.coordinators)
        while self.to_choose and len(self.chosen) < min(seats, CHOSEN_AHEAD):
            name = self.order.start() if self.order else next(self.one_by_one)
            self.chosen.append(self.trials[name])
            self.to_choose -= 1
        if self.chosen and not self.is_starting:
            self.is_starting = True
            # It has its seat at once.
            trial = self.chosen.popleft()
            self.coordinators[trial.name] = _Coordinator(trial, -1, 0, deque())
            self._at(self.conditions.starts_every, self._started, trial)

    def _started(self, trial: Trial) -> None:
        self.is_starting = False
        self._coordinate(trial)
        self._start_next()

    def _coordinate(self, trial: Trial) -> None:
        """A coordinator starts, for the first time or anew: what is finished is what is on disk."""
        if not self.free:
            self._at(self.conditions.noticed_after, self._coordinate, trial)
            return
        self._give(self.desk.drop(self.desk.keys(trial.name)))
        epochs, shards = self.left[trial.name]
        coordinator = _Coordinator(
            trial, self.rng.choice(list(self.free)), trial.epochs - epochs, deque(sorted(shards))
        )
        self.coordinators[trial.name] = coordinator
        self._ask(coordinator)

    def _ask(self, coordinator: _Coordinator) -> None:
        trial = coordinator.trial
        is_trained = coordinator.epochs == trial.epochs
        if coordinator.asked or (is_trained and not coordinator.shards) or (coordinator.tasks and not is_trained):
            return
        self.number += 1
        coordinator.asked = str(self.number)
        kind, slots = ("evaluate", 1) if is_trained else ("train", trial.workers)
        self._give(self.desk.ask(Request(coordinator.asked, trial.name, kind, slots)))

    # -- Ray --------------------------------------------------------------------------------------------------------

    def _give(self, given: list[Request]) -> None:
        for request in given:
            waits = [task for task in self.queue if task.request.is_group and task.request.slots <= self.slots]
            assert not waits, "something is given while a group waits"
            coordinator = self.coordinators[request.trial]
            assert coordinator.asked == request.key
            if coordinator.node < 0:  # it was lost, and takes no permit
                continue
            coordinator.asked = None
            shard = coordinator.shards.popleft() if request.kind == "evaluate" else None
            task = coordinator.tasks[request.key] = _Task(request, shard)
            self.queue.append(task)
            if shard is not None:
                self._ask(coordinator)
        self._place()

    def _place(self) -> None:
        # What does not fit lets what comes after it go first, as Ray does.
        for task in list(self.queue):
            if task.request.slots > self.free_slots:
                continue
            self.queue.remove(task)
            for _ in range(task.request.slots):
                node = next(iter(self.vacant))
                task.nodes.append(node)
                self._occupy(node, -1)
            for node in task.nodes:
                self.running[node][task.request.key] = task
            task.started = self.now + self.conditions.task_start
            coordinator = self.coordinators[task.request.trial]
            trial = coordinator.trial
            seconds = trial.shards[task.shard] if task.shard is not None else (
                trial.epoch * (trial.epochs - coordinator.epochs))  # fmt: skip
            self._at(self.conditions.task_start + seconds, self._ended, task)
            if task.shard is None:
                self._at(self.conditions.task_start + trial.epoch, self._measured, task, 1)
            if task.request.is_group:
                self._at(0.0, lambda key=task.request.key: self._give(self.desk.placed(key)))

    def _measured(self, task: _Task, epochs: int) -> None:
        if self.order and epochs and not task.is_lost:
            trial = self.trials[task.request.trial]
            self.order.measured(trial.name, epochs / trial.epochs, epochs * trial.epoch)

    def _occupy(self, node: int, slots: int) -> None:
        """Of *node*, that many slots more are free."""
        self.free[node] += slots
        self.free_slots += slots
        if self.free[node]:
            self.vacant[node] = None
        else:
            del self.vacant[node]

    def _vacate(self, task: _Task) -> None:
        """What *task* has of nodes that live is free."""
        for node in task.nodes:
            self.running.get(node, {}).pop(task.request.key, None)
            if node in self.free:
                self._occupy(node, 1)

    def _ended(self, task: _Task) -> None:
        if task.is_lost:
            return
        self._vacate(task)
        coordinator = self.coordinators[task.request.trial]
        del coordinator.tasks[task.request.key]
        name = coordinator.trial.name
        _, shards = self.left[name]
        if task.shard is None:
            # At once, what a real one says after each epoch.
            self._measured(task, coordinator.trial.epochs - coordinator.epochs - 1)
            coordinator.epochs = coordinator.trial.epochs
            self.left[name] = 0, shards
        else:
            shards.remove(task.shard)
        given = self.desk.drop([task.request.key])
        if not self.left[name][1] and coordinator.epochs == coordinator.trial.epochs:
            del self.left[name], self.coordinators[name]
        self._give(given)
        if name in self.left:
            self._ask(coordinator)
        else:
            self._start_next()

    # -- preemption -------------------------------------------------------------------------------------------------

    def _await_preemption(self, node: int) -> None:
        self._at(self.rng.expovariate(self.conditions.preempted_an_hour / 3600), self._preempt, node)

    def _preempt(self, node: int) -> None:
        self.preempted += 1
        self.free_slots -= self.free.pop(node)
        self.vacant.pop(node, None)
        gone = [c for c in self.coordinators.values() if c.node == node]
        for task in list(self.running.pop(node).values()):
            self._lose(task)
            coordinator = self.coordinators[task.request.trial]
            del coordinator.tasks[task.request.key]
            if coordinator not in gone:
                self._at(self.conditions.noticed_after, self._again, coordinator, task)
        for coordinator in gone:
            for task in coordinator.tasks.values():
                if task in self.queue:
                    self.queue.remove(task)
                else:
                    self._lose(task)
            self.restarts[coordinator.trial.name] += 1
            coordinator.node = -1
            self._at(self.conditions.noticed_after, self._coordinate, coordinator.trial)
        self._resize()
        self._at(self.conditions.replaced_after, self._replace, node)

    def _lose(self, task: _Task) -> None:
        """What a task has done since its last whole epoch is gone; a shard's work is gone altogether."""
        task.is_lost = True
        spent = max(0.0, self.now - task.started)
        name = task.request.trial
        trial = self.coordinators[name].trial
        if task.shard is None:
            epochs, shards = self.left[name]
            done = min(int(spent / trial.epoch), epochs - 1)
            self.left[name] = epochs - done, shards
            self.coordinators[name].epochs = trial.epochs - self.left[name][0]
            spent -= done * trial.epoch
        self.lost += spent * task.request.slots
        self._vacate(task)

    def _again(self, coordinator: _Coordinator, task: _Task) -> None:
        """The coordinator has noticed that *task* was lost."""
        if self.coordinators.get(coordinator.trial.name) is not coordinator or coordinator.node < 0:
            return  # it was lost itself meanwhile
        if task.shard is not None:
            coordinator.shards.appendleft(task.shard)
        self._give(self.desk.drop([task.request.key]))
        self._ask(coordinator)

    def _replace(self, node: int) -> None:
        self.free[node], self.running[node] = 0, {}
        self._occupy(node, self.conditions.slots_a_node)
        self._resize()
        self._place()
        self._await_preemption(node)

    @property
    def slots(self) -> int:
        return len(self.free) * self.conditions.slots_a_node

    def _resize(self) -> None:
        self._give(self.desk.resize({"train": self.slots, "evaluate": self.slots}))
