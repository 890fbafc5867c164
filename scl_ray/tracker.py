"""Logging a sweep to MLflow while it runs, without ever waiting for MLflow."""

import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Self

from scl_ray.config import InputError
from scl_ray.store import Store
from scl_ray.tracking import Record, TrackingError, log_networks, log_sweep

FLUSH_SECONDS = 2.0  # what happens within this time is written together
SHARE = 0.01  # of a processor that writing takes at most, while what waits is no more than is written within:
SHARED_SECONDS = 10.0  # between two writes, at most for the sake of SHARE
RETRY_SECONDS = 60.0  # the longest pause between two attempts, while MLflow is away or slow
NETWORKS_SECONDS = 1.0  # for which networks are written though other things wait: of a large sweep, some always do
AT_ONCE = 20  # networks of those that wait, of which MLflow is asked what it has
CLOSE_SECONDS = 60.0  # a network of 100 MB that has been begun gets through a line of 20 Mbit/s meanwhile
STOP_SECONDS = 1.5  # the same when the sweep is stopped


class Tracker:
    """Logs a sweep while it runs, from one thread, so that a slow or absent MLflow never holds anything up.

    Only the latest state of each trial waits to be written, so what waits is bounded. Networks, from *store*, are
    written between two writes of that, and longer when nothing else waits. While MLflow is away, *warn* is called once
    and the thread keeps trying; `log_sweep` and `log_networks` later add whatever is still missing. To be used by one
    process at a time, and closed before that process calls those.
    """

    def __init__(self, uri: str, name: str, store: Store, warn: Callable[[str], object]) -> None:
        self._uri, self._name, self._store, self._warn = uri, name, store, warn
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._trials: dict[str, Record] = {}
        self._networks: dict[str, Record] = {}  # of the thread alone
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def trial(self, record: Record) -> None:
        """A trial's *record*, as it is now: with its epochs so far while it trains, whole when it is trained or has
        failed."""
        with self._lock:
            self._trials[record["trial"]] = {**record, "epochs": tuple(record.get("epochs", ()))}

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Write what waits, networks excepted, for at most *timeout* seconds. Returns whether nothing of it is left and
        the thread has ended."""
        self._closing.set()
        self._thread.join(timeout)
        return not (self._thread.is_alive() or self._trials)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(CLOSE_SECONDS if kind is None else STOP_SECONDS)

    def _run(self) -> None:
        pause, warned = FLUSH_SECONDS, False
        while not self._closing.wait(pause):
            start, computed = time.monotonic(), time.thread_time()
            error = self._flush()
            # What it takes is the driver's time too.
            spared = min((time.thread_time() - computed) / SHARE, SHARED_SECONDS)
            usual = min(max(FLUSH_SECONDS, 3 * (time.monotonic() - start), spared), RETRY_SECONDS)
            error = error or self._log_networks()
            pause = min(2 * pause, RETRY_SECONDS) if error else usual
            warned = self._told(error, warned)
        self._told(self._flush(), warned)

    def _told(self, error: TrackingError | InputError | None, warned: bool) -> bool:
        """Warn of *error*, if nobody has been *warned* yet. Returns whether somebody has."""
        if error and not warned:
            self._warn(f"{error}; the sweep goes on, and its log is completed when MLflow can be used again")
        return warned or error is not None

    def _flush(self) -> TrackingError | InputError | None:
        with self._lock:
            trials, self._trials = self._trials, {}
        if not trials:
            return None
        try:
            log_sweep(self._uri, self._name, trials.values(), {}, status="RUNNING")
        except (TrackingError, InputError) as error:
            with self._lock:
                self._trials = trials | self._trials
            return error
        # Epochs are written now; of thousands of networks that wait they would be much.
        trained = {trial: record for trial, record in trials.items() if record.get("status") == "trained"}
        self._networks |= {trial: {**record, "epochs": ()} for trial, record in trained.items()}
        return None

    def _log_networks(self) -> TrackingError | InputError | None:
        """Log networks that wait: for `NETWORKS_SECONDS`, and on while nothing else has happened."""
        if not self._networks or self._closing.is_set():
            return None
        end = time.monotonic() + NETWORKS_SECONDS
        some = dict(islice(self._networks.items(), AT_ONCE))
        try:
            lacking = log_networks(
                self._uri, self._name, self._store, some.values(),
                lambda: not self._closing.is_set() and (not self._trials or time.monotonic() < end),
            )  # fmt: skip
        except (TrackingError, InputError) as error:  # InputError: a checkpoint that is damaged
            return error
        for trial in some:
            record = self._networks.pop(trial)
            if trial in lacking:  # it lets the others pass, should it go on lacking
                self._networks[trial] = record
        return None
