"""How much the cluster can run, which changes while a sweep runs: nodes join, are lost, or get notice of their end.

The driver looks now and then and tells those who go by it: the hand-off's permits, and Tune, which bounds how many
coordinators there are.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray._private.state import state
from ray.tune.search import BasicVariantGenerator

from scl_ray.cluster.connection import slots_on
from scl_ray.cluster.failures import NODES, is_of_a_node
from scl_ray.cluster.progress import Progress
from scl_ray.hand_off import CHOSEN_AHEAD, EXTRA_COORDINATORS, Kind

LOOK_EVERY = 2.0  # seconds between two looks at the nodes


class Trials(BasicVariantGenerator):
    """The sweep's trials as Tune asks for them, about as many at once as there are slots, which may change.

    Tune would ask at once for as many as there are seats, before anything is known of how long they take.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.starting: set[str] = set()  # Tune's names
        self.resize(slots)

    def next_trial(self) -> Any:
        trial = super().next_trial() if len(self.starting) < CHOSEN_AHEAD else None
        if trial is not None:
            self.starting.add(trial.trial_id)
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.starting.discard(trial_id)
        super().on_trial_complete(trial_id, result, error)

    def resize(self, slots: int) -> None:
        self.max_concurrent = slots + EXTRA_COORDINATORS


class Following(tune.Callback):
    """Has permits, Tune and the progress view follow the cluster as it grows and shrinks.

    options: of a remote task of each kind.
    """

    def __init__(
        self, options: Mapping[Kind, Mapping[str, Any]], trials: Trials, permits: Any, progress: Progress
    ) -> None:
        self.options, self.trials, self.permits, self.progress = options, trials, permits, progress
        self.looked = time.monotonic()
        self.with_a_node: Counter[str] = Counter()  # how often each trial's coordinator was lost with its node

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that a sweep never makes.
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self.looked < LOOK_EVERY:
            return
        self.looked = time.monotonic()
        try:
            slots = slots_now(self.options)
        except ray.exceptions.RayError:  # the head is away; what becomes of that is not decided here
            return
        # Said each time, since the actor knows only what it was started with should it be lost.
        self.permits.resize.remote(slots)
        if slots["train"] != self.progress.slots:
            self.trials.resize(slots["train"])
            self.progress.resize(slots["train"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.trials.starting.discard(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A coordinator was lost and starts again, `NODES` times at most with its node; else Tune counts."""
        error = trial.get_pickled_error()
        # A node that had notice of its end is not counted by Tune itself.
        if is_of_a_node(error) and not getattr(error, "preempted", False):
            self.with_a_node[trial.trial_id] += 1
            if self.with_a_node[trial.trial_id] <= NODES:
                trial.run_metadata.num_failures -= 1


def slots_now(options: Mapping[Kind, Mapping[str, Any]]) -> dict[Kind, int]:
    """How many tasks of each kind the cluster's nodes run at once, but for those that will soon be gone."""
    leaving = state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return {kind: slots_on(nodes, asked) for kind, asked in options.items()}
