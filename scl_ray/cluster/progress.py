"""How far a sweep is: one live view on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scl_ray import events
from scl_ray.plan import Plan, total_images

ENDED = ("failed", "stopped")  # phases of trials that are not evaluated further
OTHER_LINES = 5  # of the live view than a trial's
LINE_EVERY = 30.0  # seconds between two plain lines when nothing notable happens


class Progress:
    """Follows the coordinators' reports and shows them while its ``with`` block lasts."""

    def __init__(self, plan: Plan, slots: int, console: Console) -> None:
        self.plan, self.slots, self.console = plan, slots, console
        # Slots change as nodes come and go: their least and most, and what they offered until the last change, at that
        # many seconds.
        self.slots_seen, self.offered, self.offered_until = {slots}, 0.0, 0.0
        self.phase = dict.fromkeys(plan.work, "waiting")
        self.epoch = dict.fromkeys(plan.work, 0)
        self.loss: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.nodes: set[str] = set()
        self.shards_left = {trial: len(work.shards) for trial, work in plan.work.items()}
        self.images_left = {trial: total_images(work.shards) for trial, work in plan.work.items()}
        self.shards = sum(self.shards_left.values())
        self.images = sum(self.images_left.values())
        self.train_seconds = self.evaluate_seconds = self.epoch_seconds = 0.0
        # Of each trial's last start: its epochs, and when it has trained to its end all that it took.
        self.start_seconds: dict[str, float] = {}
        self.epochs_seen = self.images_seen = 0
        self.started = self._last_line = time.monotonic()
        self._live = Live(console=console, get_renderable=self._view, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        events.say("plan", trials=len(self.plan.trials), to_run=len(self.plan.work), shards=self.shards,
                   images=self.images, slots=self.slots)  # fmt: skip
        if self.console.is_terminal:
            self._live.start()
        else:
            done = len(self.plan.trials) - len(self.plan.work)
            self.console.print(f"{len(self.plan.work)} trials to run on {self.slots} slots, {done} already done; "
                               f"{self.shards} shards to evaluate")  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()
        self.seconds = time.monotonic() - self.started

    def usage(self) -> str:
        """What became of the slots' time, once the trials have run."""
        offered = max(self.offered + (self.seconds - self.offered_until) * self.slots, 1e-9)
        trained = self.train_seconds + sum(self.start_seconds.values())
        train, evaluate = trained / offered, self.evaluate_seconds / offered
        nodes = f" of {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        idle = max(0.0, 1 - train - evaluate)
        least, most = min(self.slots_seen), max(self.slots_seen)
        slots = f"{most}" if least == most else f"{least} to {most}"
        return (f"{_clock(self.seconds)} on {slots} slots{nodes}: {train:.0%} training, {evaluate:.0%} evaluating, "
                f"{idle:.0%} idle or starting")  # fmt: skip

    def resize(self, slots: int) -> None:
        """The cluster has grown or shrunk to so many training slots."""
        now = time.monotonic() - self.started
        self.offered += (now - self.offered_until) * self.slots
        waiting = [work.trial.training.workers for trial, work in self.plan.work.items() if self._trains(trial)]
        too_large = [workers for workers in waiting if workers > slots]
        waits = f"; trials that wait until there are {min(too_large)}: {len(too_large)}" if too_large else ""
        self._say(f"slots      {slots}, {self.slots} before{waits}", style="yellow" if slots < self.slots else "")
        events.say("slots changed", slots=slots, before=self.slots)
        self.slots, self.offered_until = slots, now
        self.slots_seen.add(slots)

    def update(self, trial: str, report: Mapping[str, Any]) -> None:
        """Take one report of a trial's coordinator."""
        phase, label = report["phase"], self.plan.work[trial].trial.label
        if phase != "trained" or self.plan.work[trial].train:  # it may have been trained by an earlier run
            events.say_of_trial(trial, label, report)
        match phase:
            case "training" if "epoch" in report["reached"]:
                metrics = report["reached"]
                self.epoch[trial], self.loss[trial] = metrics["epoch"], metrics["loss"]
                seconds = metrics["seconds"] * self.plan.work[trial].trial.training.workers
                self.epoch_seconds += seconds
                self.start_seconds[trial] += seconds
                self.epochs_seen += 1
            case "training" if "slot_seconds" in report["reached"]:
                self.start_seconds[trial] = report["reached"]["slot_seconds"]
            case "training" if "earlier" in report["reached"]:
                self.epoch[trial] = len(report["reached"]["earlier"])
            case "training":
                self.train_seconds += self.start_seconds.pop(trial, 0.0)
                self.start_seconds[trial] = 0.0
            case "trained" if self.plan.work[trial].train:
                self.epoch[trial] = self.plan.work[trial].trial.training.epochs
            case "evaluating":
                self.shards_left[trial] -= 1
                self.images_left[trial] -= report["shard_images"]
                self.images_seen += report["shard_images"]
                self.evaluate_seconds += report["slot_seconds"]
                self.nodes.add(report["node"])
            case "failed":
                self.failures[trial] = report["error"]
                self._say(f"failed     {label}: {report['error']}", style="red")
            case "stopped":
                self._say(f"stopped    {label}: {report['reason']}")
            case "retry":
                self._say(f"again      {label}: {report['error']}", style="yellow")
        if phase == "trained" and self.plan.work[trial].train:
            self._say(f"trained    {label}" + (f" (loss {self.loss[trial]:.3f})" if trial in self.loss else ""))
        if phase == "done":
            self._say(f"evaluated  {label}")
        if phase != "retry":
            self.phase[trial] = "evaluating" if phase == "trained" else phase
        if not self.console.is_terminal and time.monotonic() - self._last_line > LINE_EVERY:
            self._say(self._sentence())

    def seconds_left(self) -> float | None:
        """An estimate of the time to the end, or None before anything was measured."""
        work_left = self.plan.work.items()
        epochs = sum(work.trial.training.epochs - self.epoch[trial] for trial, work in work_left if self._trains(trial))
        images = sum(left for trial, left in self.images_left.items() if self.phase[trial] not in ENDED)
        if (epochs and not self.epochs_seen) or (images and not self.images_seen and not self.epochs_seen):
            return None
        work = epochs * self.epoch_seconds / max(self.epochs_seen, 1)
        # Before the first shard is back, a sweep's evaluation is taken to cost about as much as its training.
        per_image = self.evaluate_seconds / self.images_seen if self.images_seen else None
        work += images * per_image if per_image is not None else work
        return work / self.slots if self.slots else None

    def _trains(self, trial: str) -> bool:
        return self.plan.work[trial].train and self.phase[trial] in ("waiting", "training")

    def counts(self) -> tuple[Counter[str], dict[str, int]]:
        """How many trials are in each phase, and how many shards wait, run and are done."""
        phases = Counter(self.phase.values())
        training = [work.trial for trial, work in self.plan.work.items() if self.phase[trial] == "training"]
        busy = min(self.slots, sum(trial.training.workers for trial in training))
        # A failed or stopped trial's shards are neither waiting nor done.
        left = {trial: count for trial, count in self.shards_left.items() if self.phase[trial] not in ENDED}
        ready = sum(count for trial, count in left.items() if self.phase[trial] == "evaluating")
        running = min(self.slots - busy, ready)
        waiting = sum(left.values()) - running
        return phases, {"waiting": waiting, "running": running, "done": self.shards - sum(self.shards_left.values())}

    def _sentence(self) -> str:
        phases, shards = self.counts()
        left = self.seconds_left()
        stopped = f", {phases['stopped']} stopped" if phases["stopped"] else ""
        return (
            f"trials: {phases['waiting']} waiting, {phases['training']} training, {phases['evaluating']} evaluating, "
            f"{phases['done']} done, {phases['failed']} failed{stopped}; shards: {shards['waiting']} waiting, "
            f"{shards['running']} running, {shards['done']} done; {self._rate():.1f} images/s; "
            f"{'time left not known yet' if left is None else f'about {_clock(left)} left'}"
        )

    def _rate(self) -> float:
        return self.images_seen / max(time.monotonic() - self.started, 1e-9)

    def _view(self) -> Group:
        phases, shards = self.counts()
        left = self.seconds_left()
        head = Table.grid(padding=(0, 2))
        shown = ["waiting", "training", "evaluating", "done", "failed", *(["stopped"] if phases["stopped"] else [])]
        head.add_row("trials", *(f"{phases[phase]} {phase}" for phase in shown))
        head.add_row("shards", *(f"{count} {state}" for state, count in shards.items()), f"{self._rate():.1f} images/s")
        total = len(self.plan.work) + self.shards
        finished = sum(p in ("evaluating", "done", *ENDED) for p in self.phase.values()) + shards["done"]
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(total, 1), completed=finished, width=50),
            f"{_clock(time.monotonic() - self.started)} so far",
            "time left not known yet" if left is None else f"about {_clock(left)} left",
        )
        busy = [trial for trial, phase in self.phase.items()
                if phase == "training" or (phase == "evaluating" and self.shards_left[trial])]  # fmt: skip
        # What a terminal has no lines for would push the bar off it, and cost the more the more slots there are.
        room = max(1, self.console.height - OTHER_LINES)
        rows = Table.grid(padding=(0, 2))
        for trial in busy[:room]:
            run = self.plan.work[trial].trial
            if self.phase[trial] == "training":
                rows.add_row("training", run.label, f"epoch {self.epoch[trial]}/{run.training.epochs}",
                             f"loss {self.loss[trial]:.3f}" if trial in self.loss else "")  # fmt: skip
            else:
                rows.add_row("evaluating", run.label, f"{self.shards_left[trial]} shards left", "")
        if len(busy) > room:
            rows.add_row("", f"and {len(busy) - room} more", "", "")
        return Group(head, rows, bar)

    def _say(self, line: str, style: str = "") -> None:
        self._last_line = time.monotonic()
        clock = _clock(self._last_line - self.started)
        self.console.print(Text.assemble((f"{clock}  ", "dim"), (line, style)), soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
