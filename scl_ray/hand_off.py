"""The hand-off: what of a sweep's work runs next, and how it is cut.

Three kinds of work meet: a trial's training on one slot, its training by a group of workers on a slot each, and the
shards of its evaluation. The cluster itself places what it is given, first come, first served; a group, which needs
several slots at once, would never find them free among single tasks that take each slot as it becomes free. So no more
is given to the cluster than it can run, and nothing while a group waits.

Why nothing waits for ever:

1. A single task, once given, waits for one slot and for nothing else, and ends by itself.
2. A group takes its slots all at once or none, and of those that the cluster has slots for only one at a time is being
   placed: groups never hold parts of what each other waits for.
3. While a group waits, nothing else is given, so tasks only end, and its slots become free.
4. Whoever asks does so for one piece of work at a time, and there are hardly more who ask than slots. A trial trains in
   a group once, so single tasks wait behind a bounded number of groups.
5. What was given is given back when it has ended, when its trial's coordinator starts anew, and when the trial is over;
   of these at least one happens, whatever is lost.

Why slots are seldom idle: while there are trials to start, every coordinator has work that runs or waits, and there are
more of them than slots. Then only the last trials' work is left; so the trials that train longest start first, and
evaluation is cut finely enough for the last shards to be shared. What trials take is estimated before, and corrected by
what epochs really take. How far that goes, tests/benchmarks/scale/simulation.py measures.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from math import isfinite, prod
from typing import Literal, NamedTuple

Kind = Literal["train", "evaluate"]

EXTRA_COORDINATORS = 1  # more than slots, so that the next trial's training waits when a slot becomes free
CHOSEN_AHEAD = 32  # trials whose coordinators are being started; who comes next is told by what is measured meanwhile
GRANULE = 64  # shards are cut on multiples of it


class Request(NamedTuple):
    """Work that waits for slots, or has them: *slots* of the kind *kind*, more than one for a group."""

    key: str
    trial: str
    kind: Kind
    slots: int = 1

    @property
    def is_group(self) -> bool:
        return self.slots > 1


class Cost(NamedTuple):
    """What a trial is estimated to take, in any unit: its training, whose epochs follow each other, and its evaluation,
    whose shards all slots share. Of the trials of one *group* the estimate is wrong by about the same factor."""

    training: float
    evaluation: float
    group: Hashable = None


def longest_first(costs: Mapping[str, Cost]) -> list[str]:
    """The trials as they start if the estimates are right: by what cannot be shared, and then by what can."""
    return sorted(costs, key=lambda trial: costs[trial][:2], reverse=True)


def shard_images(images: int, trials: int, slots: int) -> int:
    """How many images of a trial's *images* a shard holds.

    Few enough that every slot has some of the last trials' work, or that what the last shards make others wait is a
    small part of the sweep: a smaller shard would cost more than it saves. A multiple of `GRANULE`, at most 1,024, so
    that a lost shard costs little.
    """
    of_the_last = images * min(trials, 2) / (4 * slots)
    of_the_sweep = images * trials / (64 * slots)
    return min(1024, max(1, round(max(of_the_last, of_the_sweep) / GRANULE)) * GRANULE)


class Order:
    """The order in which trials start: that first which trains longest, as far as it is known.

    How long epochs took corrects what was estimated of their group. A group of which none was measured counts as the
    longest, and such groups take turns, so that all are known soon.

    No change takes time that grows with how many trials there are.
    """

    def __init__(self, costs: Mapping[str, Cost]) -> None:
        self.costs = dict(costs)
        self._waiting: dict[Hashable, deque[str]] = {}
        for trial in longest_first(costs):
            self._waiting.setdefault(costs[trial].group, deque()).append(trial)
        self._started: Counter[Hashable] = Counter()
        self._measured: dict[Hashable, tuple[float, float]] = {}  # of each group: seconds, and what was estimated

    def start(self) -> str:
        """The next trial, which then waits no longer. Raises ValueError when none waits."""
        group = max(self._waiting, key=self._urgency)
        trial = self._waiting[group].popleft()
        if not self._waiting[group]:
            del self._waiting[group]
        self._started[group] += 1
        return trial

    def measured(self, trial: str, share: float, seconds: float) -> None:
        """That *share* of the training of *trial* took so many *seconds*."""
        cost = self.costs[trial]
        # What could not be estimated stays the longest; and of what was not to be trained nothing was estimated: a
        # trial whose checkpoint is found damaged trains all the same.
        if cost.training and isfinite(cost.training):
            before, estimated = self._measured.get(cost.group, (0.0, 0.0))
            self._measured[cost.group] = before + seconds, estimated + share * cost.training

    def _urgency(self, group: Hashable) -> tuple[bool, float, float, float]:
        training, evaluation, _ = self.costs[self._waiting[group][0]]
        if training and group not in self._measured:
            return True, -self._started[group], training, evaluation
        seconds, estimated = self._measured.get(group, (0.0, 1.0))
        return False, 0.0, training * seconds / estimated, evaluation


def next_up(
    waiting: Iterable[Request], taken: Mapping[Kind, int], placing: bool, capacity: Mapping[Kind, int]
) -> list[Request]:
    """What of *waiting* is to be given to the cluster now.

    *waiting*: groups, and after them all else, each in the order of asking. *taken*: slots of what was given and has
    not ended, but for groups that still wait for theirs. *placing*: whether such a group waits. *capacity*: how many
    slots of each kind there are, if all are of that kind; where there are none, one is asked for all the same, which a
    cluster that grows with what it is asked for needs to see.
    """
    if placing:
        return []
    of_kind = {kind: max(1, slots) for kind, slots in capacity.items()}
    room = prod(of_kind.values())  # in the smallest unit, of which a slot of each kind is a whole number
    load = sum(slots * room // of_kind[kind] for kind, slots in taken.items())
    chosen = []
    for request in waiting:
        if request.is_group:
            # One for which the cluster has become too small lets others go on until it has grown again.
            if request.slots > capacity[request.kind]:
                continue
            return [request]
        # One more than there is room for, so that a slot that becomes free is taken at once.
        if load > room:
            break
        chosen.append(request)
        load += room // of_kind[request.kind]
    return chosen


class HandOff:
    """What waits for slots and what was given, by its key. Whatever changes returns what is to be given now.

    No change takes time that grows with how much waits or was given.
    """

    def __init__(self, capacity: Mapping[Kind, int]) -> None:
        self.capacity = dict(capacity)
        self.given: dict[str, Request] = {}
        self.placing: set[str] = set()  # groups that were given and have not their slots yet
        self._groups: dict[str, Request] = {}
        self._singles: dict[str, Request] = {}
        self._taken: Counter[Kind] = Counter()
        self._keys: defaultdict[str, set[str]] = defaultdict(set)  # of each trial

    def ask(self, request: Request) -> list[Request]:
        (self._groups if request.is_group else self._singles)[request.key] = request
        self._keys[request.trial].add(request.key)
        return self._next_up()

    def placed(self, key: str) -> list[Request]:
        """The group *key* has all its slots."""
        if key in self.placing:
            self.placing.remove(key)
            self._take(self.given[key], 1)
        return self._next_up()

    def drop(self, keys: Iterable[str]) -> list[Request]:
        """The work *keys* has ended, or nobody waits for it any more."""
        for key in keys:
            request = self.given.pop(key, None)
            if request is not None and key not in self.placing:
                self._take(request, -1)
            self.placing.discard(key)
            request = request or self._groups.pop(key, None) or self._singles.pop(key, None)
            if request is not None:
                self._keys[request.trial].remove(key)
                if not self._keys[request.trial]:
                    del self._keys[request.trial]
        return self._next_up()

    def keys(self, trial: str) -> list[str]:
        """Of all work of *trial* that waits or was given."""
        return list(self._keys.get(trial, ()))

    def resize(self, capacity: Mapping[Kind, int]) -> list[Request]:
        """The cluster has other slots than before."""
        self.capacity = dict(capacity)
        return self._next_up()

    def _next_up(self) -> list[Request]:
        chosen = next_up(self._waiting(), self._taken, self._is_placing(), self.capacity)
        for request in chosen:
            del (self._groups if request.is_group else self._singles)[request.key]
            self.given[request.key] = request
            if request.is_group:
                self.placing.add(request.key)
            else:
                self._take(request, 1)
        return chosen

    def _take(self, request: Request, times: int) -> None:
        self._taken[request.kind] += times * request.slots

    def _is_placing(self) -> bool:
        """Whether a group takes all slots that become free; not while there are fewer than it needs."""
        groups = map(self.given.__getitem__, self.placing)
        return any(group.slots <= self.capacity[group.kind] for group in groups)

    def _waiting(self) -> Iterator[Request]:
        return chain(self._groups.values(), self._singles.values())
