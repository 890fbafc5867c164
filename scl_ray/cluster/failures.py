"""Remote work that did not end well: what went wrong by itself is not tried again, what was lost on its way is.

How often it is depends on what took it. Work that loses its own process may be what kills it, so it is started a few
times only; a node that goes, as spot nodes do, says nothing against the work that it had.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import ray

from scl_ray.storage import StorageError

ATTEMPTS = 3  # starts of the same piece of work that got no further
# Nodes that the same piece of work may outlive without getting further: more than chance takes, so that work which
# brings down the very nodes that it runs on ends too.
NODES = 20


class Failed(Exception):
    """The work itself went wrong, and would again. The message is one clause."""


class Lost(Exception):
    """The work was lost through no fault of its own that is known. The message is one clause."""


class NodeLost(Lost):
    """The node that it ran on is gone."""


class Exhausted(Lost):
    """Memory did not suffice for it."""


class Unwritten(Lost):
    """The storage did not take what it gave."""


class Losses(NamedTuple):
    """How often a piece of work was lost since it last got further: by itself, with a node, and for want of storage."""

    alone: int = 0
    with_a_node: int = 0
    unwritten: int = 0

    def and_by(self, error: Lost) -> "Losses":
        if isinstance(error, NodeLost):
            return self._replace(with_a_node=self.with_a_node + 1)
        if isinstance(error, Unwritten):
            return self._replace(unwritten=self.unwritten + 1)
        return self._replace(alone=self.alone + 1)

    @property
    def are_enough(self) -> bool:
        """Whether the work is given up."""
        return self.alone + self.unwritten >= ATTEMPTS or self.with_a_node >= NODES

    def next_start(self) -> str:
        """Of the start that follows: which one it is of how many."""
        attempt = f"attempt {self.alone + self.unwritten + 1} of {ATTEMPTS}"
        if self.with_a_node:
            return f"{attempt}, {self.with_a_node} lost with their nodes not counted"
        return attempt

    def total(self) -> str:
        alone = self.alone + self.unwritten
        return f"{alone} times" if alone >= ATTEMPTS else f"with {self.with_a_node} nodes"


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Turns the errors of remote tasks into Failed and Lost."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if is_stand_in(error.cause):
            raise Failed(clause(error.cause)) from error
        if isinstance(error.cause, MemoryError):
            raise Exhausted(clause(error.cause)) from error
        if isinstance(error.cause, StorageError):
            raise Unwritten(str(error.cause)) from error
        if isinstance(error.cause, ray.exceptions.RayError):  # what the task itself asked Ray for was lost
            raise lost(error.cause) from error
        raise Failed(clause(error.cause)) from error
    except ray.exceptions.RayError as error:
        raise (Failed(clause(error)) if is_stand_in(error) else lost(error)) from error


def is_stand_in(error: BaseException) -> bool:
    """Whether *error* is what Ray gives for one of the work's own: that cannot be pickled, or whose class is known only
    where the work was done, since it is a user's."""
    return type(error) is ray.exceptions.RayError or isinstance(error, ray.exceptions.UnserializableException)


def lost(error: BaseException) -> Lost:
    """What took the work, by the *error* that it left."""
    kind = NodeLost if is_of_a_node(error) else Exhausted if _is_of_memory(error) else Lost
    return kind(clause(error))


def is_of_a_node(error: BaseException) -> bool:
    """Whether *error* says that a whole node went."""
    if isinstance(error, ray.exceptions.RayActorError):  # which has no kind of its own for this
        return error.preempted or "its node has died" in str(error)
    return isinstance(error, ray.exceptions.NodeDiedError)


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, ray.exceptions.OutOfMemoryError)


def clause(error: BaseException) -> str:
    """*error* in one line; Ray's own say last what matters, or say it at length."""
    if is_of_a_node(error):
        return "its node was lost"
    if _is_of_memory(error):
        return "its node ran out of memory, and Ray stopped its process"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return "its process was killed or crashed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if isinstance(error, ray.exceptions.RayError) else f"{type(error).__name__}: {lines[0]}"
