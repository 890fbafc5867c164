"""Permits to give work to the cluster: one actor hands them to the coordinators as `hand_off.HandOff` decides.

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

from scl_ray.hand_off import HandOff, Kind, Request

ORPHANS_EVERY = 5.0  # seconds between two looks for slots that a lost coordinator's group still has


class Permits:
    """Who has work asks, waits until it may be given to the cluster, and says when it has ended."""

    def __init__(self, capacity: Mapping[Kind, int]) -> None:
        self.desk = HandOff(capacity)
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.looking: asyncio.Task[None] | None = None

    async def acquire(self, key: str, trial: str, kind: Kind, slots: int = 1) -> None:
        """Return when the work *key* may be given to the cluster; a group says `placed` when it has its slots."""
        if slots > 1 and self.looking is None:
            self.looking = asyncio.create_task(_look_for_orphans())
        if key in self.desk.given:
            return  # asked once more, by Ray itself, since the answer was lost on its way
        allowed = self.waiting.setdefault(key, asyncio.get_running_loop().create_future())
        self._permit(self.desk.ask(Request(key, trial, kind, slots)))
        await allowed

    async def resize(self, capacity: Mapping[Kind, int]) -> None:
        """The cluster has grown or shrunk."""
        self._permit(self.desk.resize(capacity))

    async def placed(self, key: str) -> None:
        """The group *key* has all its slots."""
        self._permit(self.desk.placed(key))

    async def release(self, key: str) -> None:
        """The work *key* has ended, in whatever way."""
        self._drop([key])

    async def forget(self, trial: str) -> None:
        """Nobody cares any more for the work of *trial*: it is over, or its coordinator was lost and starts anew."""
        self._drop(self.desk.keys(trial))

    def _drop(self, keys: list[str]) -> None:
        for key in keys:
            if key in self.waiting:
                self.waiting.pop(key).set_result(None)
        self._permit(self.desk.drop(keys))

    def _permit(self, given: list[Request]) -> None:
        for request in given:
            self.waiting.pop(request.key).set_result(None)


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
        with contextlib.suppress(ray.exceptions.RayError):  # the head is away; there is a next look
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
