"""The cluster's head, watched from the driver: a cluster is over without it, and a new one at its place is another.

Left alone, Ray would end the driver with lines for its own developers: a minute later, or as soon as it meets the other
cluster.
"""

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray import _raylet

from scl_ray import interruption
from scl_ray.cluster import connection

LOOK_EVERY = 1.0
PATIENCE = 30.0  # seconds; less than Ray has, more than a head is only busy for


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End this process, with one sentence and the exit code 1, when the cluster that it is connected to loses its head
    during the block."""
    address = ray.get_runtime_context().gcs_address
    ours = _cluster(address)
    over = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not over.wait(LOOK_EVERY):
            if connection.answers(address):
                try:
                    other = _cluster(address) != ours
                except ray.exceptions.RayError:  # it went between the two questions
                    continue
                if other:
                    _end(f"the cluster's head at {address} was started again, and what ran there is gone")
                answered = time.monotonic()
            elif time.monotonic() - answered > PATIENCE and not over.is_set():
                _end(f"the cluster's head at {address} has not answered for {PATIENCE:.0f} s")

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _cluster(address: str) -> str:
    """The identity of the cluster whose head is at *address*; Ray has no public call that tells it."""
    untyped: Any = _raylet
    return str(untyped.GcsClient(address=address).cluster_id.hex())


def _end(why: str) -> None:
    # The cluster's tasks end with it, and whatever else is still said to it would wait for an answer.
    print(f"failed: {why}; what is finished is kept, and on a cluster that works the same command continues: "
          f"{shlex.join(sys.orig_argv)}", file=sys.stderr, flush=True)  # fmt: skip
    interruption.end_at_once(1)
