"""Stopping somebody's running sweep with nothing but the store: a request beside the lock, which names its holder.

The holder looks for it now and then and stops as after Ctrl-C. A request names one holder, so none stops a later run.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from scl_ray import lock
from scl_ray.store import Store

REQUEST = ".cancel"
LOOK_EVERY = 2.0  # seconds between the holder's looks for a request
WITHIN = 60.0  # seconds that the holder has to stop: more than a look, ten seconds for stopping and a lease


@contextlib.contextmanager
def heeded(store: Store, token: str, stop: Callable[[str], None]) -> Iterator[None]:
    """Call *stop*, from another thread and with who asks, when somebody wants the holder *token* to stop."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            try:
                request = json.loads(store.read(REQUEST) or "{}")
            except (OSError, ValueError):  # a storage that is away for a moment, or a request that is being written
                continue
            if request.get("token") == token:
                stop(f"cancelled by process {request.get('pid')} on {request.get('host')}")
                return

    thread = threading.Thread(target=look, name="requests", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cancel(store: Store) -> str:
    """Have the sweep's running process stop, and wait for it. Returns what was done, in one sentence.

    Raises TimeoutError, saying what to do, when it does not stop in time.
    """
    holder = lock.holder(store)
    if holder is None:
        return f"{store.name}: nobody runs this sweep; nothing to stop"
    who, latest = lock.describe(holder), holder
    store.write_json(REQUEST, {"token": holder["token"], "pid": os.getpid(), "host": socket.gethostname()})
    try:
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            now = lock.holder(store)
            if now is None or now["token"] != holder["token"]:
                return f"{store.name}: stopped {who}; what is finished is kept, and the same command continues"
            latest = now
            time.sleep(0.5)
    finally:
        store.remove(REQUEST)
    if latest.get("renewed") == holder.get("renewed"):
        return f"{store.name}: {who} has died without a word; nobody runs this sweep, and the same command continues"
    raise TimeoutError(f"{store.name}: {who} is alive and did not stop within {WITHIN:.0f} s; "
                       "send it SIGTERM there, or SIGKILL: nothing that is finished is lost")  # fmt: skip
