"""The hand-off: which of the work that waits for a slot is given to the cluster next.

Three kinds of work meet: a trial's training on one slot, its training by a group of workers on a slot each, and the
shards of its evaluation. The cluster itself places what it is given, first come, first served; a group, which needs
several slots at once, would never find them free among single tasks that take each slot as it becomes free. So no more
is given to the cluster than it can run, and nothing while a group waits.

Why nothing waits for ever:

1. A single task, once given, waits for one slot and for nothing else, and ends by itself.
2. A group takes its slots all at once or none, and only one group at a time is being placed: groups never hold parts of
   what each other waits for.
3. While a group waits, nothing else is given, so tasks only end, and its slots become free.
4. Whoever asks does so for one piece of work at a time, and there are hardly more who ask than slots. A trial trains in
   a group once, so single tasks wait behind a bounded number of groups.
5. What was given is given back when it has ended, when its trial's coordinator starts anew, and when the trial is over;
   of these at least one happens, whatever is lost.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

Kind = Literal["train", "evaluate"]


class Request(NamedTuple):
    """Work that waits for slots, or has them: *slots* of the kind *kind*, more than one for a group."""

    key: str
    trial: str
    kind: Kind
    slots: int = 1

    @property
    def is_group(self) -> bool:
        return self.slots > 1


def next_up(
    waiting: Sequence[Request], given: Sequence[Request], placing: bool, capacity: Mapping[Kind, int]
) -> list[Request]:
    """What of *waiting*, in the order of asking, is to be given to the cluster now.

    *given*: what it was given and has not ended. *placing*: whether a group among that still waits for its slots.
    *capacity*: how many slots of each kind there are, if all are of that kind.
    """
    if placing:
        return []
    groups = [request for request in waiting if request.is_group]
    if groups:
        return groups[:1]
    load = sum((Fraction(request.slots, capacity[request.kind]) for request in given), start=Fraction(0))
    chosen = []
    for request in waiting:
        # One more than there is room for, so that a slot that becomes free is taken at once.
        if load > 1:
            break
        chosen.append(request)
        load += Fraction(1, capacity[request.kind])
    return chosen
