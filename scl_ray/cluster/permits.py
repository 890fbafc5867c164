"""Permits to give work to the cluster: one actor hands them to the coordinators as `hand_off.next_up` decides.

The actor knows of the work what the coordinators tell it. Should it be lost, it starts again and knows nothing of what
was given before: then the cluster may for a while have more than it can run at once, which delays a group and loses
nothing.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scl_ray.hand_off import Kind, Request, next_up

ORPHANS_EVERY = 5.0  # seconds between two looks for slots that a lost coordinator's group still has


class Permits:
    """Who has work asks, waits until it may be given to the cluster, and says when it has ended."""

    def __init__(self, capacity: Mapping[Kind, int]) -> None:
        self.capacity = capacity
        self.waiting: dict[str, tuple[Request, asyncio.Future[None]]] = {}
        self.given: dict[str, Request] = {}
        self.placing: str | None = None
        self.looking: asyncio.Task[None] | None = None

    async def acquire(self, key: str, trial: str, kind: Kind, slots: int = 1) -> None:
        """Return when the work *key* may be given to the cluster; a group says `placed` when it has its slots."""
        if slots > 1 and self.looking is None:
            self.looking = asyncio.create_task(_look_for_orphans())
        allowed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[key] = Request(key, trial, kind, slots), allowed
        self._hand_out()
        await allowed

    async def placed(self, key: str) -> None:
        """The group *key* has all its slots."""
        if self.placing == key:
            self.placing = None
            self._hand_out()

    async def release(self, key: str) -> None:
        """The work *key* has ended, in whatever way."""
        self._drop([key])

    async def forget(self, trial: str) -> None:
        """Nobody cares any more for the work of *trial*: it is over, or its coordinator was lost and starts anew."""
        requests = [*self.given.values(), *(request for request, _ in self.waiting.values())]
        self._drop([request.key for request in requests if request.trial == trial])

    def _drop(self, keys: list[str]) -> None:
        for key in keys:
            self.given.pop(key, None)
            if key in self.waiting:
                self.waiting.pop(key)[1].set_result(None)
            if self.placing == key:
                self.placing = None
        self._hand_out()

    def _hand_out(self) -> None:
        waiting, given = [request for request, _ in self.waiting.values()], list(self.given.values())
        for request in next_up(waiting, given, self.placing is not None, self.capacity):
            _, allowed = self.waiting.pop(request.key)
            self.given[request.key] = request
            if request.is_group:
                self.placing = request.key
            allowed.set_result(None)


def start(capacity: Mapping[Kind, int]) -> Any:
    """The actor, beside the driver. *capacity*: slots of each kind, if all of the cluster are of that kind."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Permits)
    # Waiting costs it nothing, so there is no bound on how many wait.
    options = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1_000_000}
    return actor.options(num_cpus=0, scheduling_strategy=here, **options).remote(capacity)


@contextlib.contextmanager
def permit(permits: Any, trial: str, kind: Kind, slots: int = 1) -> Iterator[str]:
    """Wait for a permit and hold it for the time of the block."""
    key = new_key()
    ray.get(permits.acquire.remote(key, trial, kind, slots))
    try:
        yield key
    finally:
        permits.release.remote(key)


def new_key() -> str:
    return uuid.uuid4().hex


async def _look_for_orphans() -> None:
    while True:
        remove_orphans()
        await asyncio.sleep(ORPHANS_EVERY)


def remove_orphans() -> None:
    """Free the slots that groups of this job's lost coordinators still have, or still wait for.

    Ray keeps what an actor has reserved until the whole job ends, and Ray Train clears up after a lost group only where
    a dashboard runs, and only what was already placed.
    """
    # Ray has no public call that tells who reserved what.
    table: Any = gcs_pb2
    job = ray.get_runtime_context().get_job_id()
    for data in state._connect_and_get_accessor().get_placement_group_table():
        found = table.PlacementGroupTableData.FromString(data)
        by_an_actor = found.creator_actor_id not in (b"", ray.ActorID.nil().binary())
        is_there = found.state != table.PlacementGroupTableData.REMOVED
        if is_there and by_an_actor and found.creator_actor_dead and found.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))
