"""Simulates sweeps on 1,000 GPUs: how near the hand-off comes to what no schedule undercuts, beside naive policies.

python tests/benchmarks/scale/policies.py  # writes figures/policies.json and figures/policies.png

10,000 trials of unequal length with shards of unequal cost, of which the policies know an estimate; without faults, and
with 5 % of the nodes of 8 GPUs preempted an hour, each replaced after five minutes. A makespan is told in units of the
lower bound: the longest trial with all its shards at once, or all work shared equally, whichever is longer. What it
takes to start coordinators and tasks counts in the makespan and not in the bound. Where estimates are wrong, they are
so by a factor that a backbone's trials share, which the hand-off measures, and by one of each trial, which nobody can
know before it runs: what is lost by either tell oracles, one that knows the factors, and one that knows every trial.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from simulation import Cluster, Conditions, Outcome, Trial, lower_bound

from scl_ray import hand_off
from scl_ray.hand_off import Cost

IMAGES = 10_000  # that are explained of each trial
MEAN_WORK = 2500.0  # seconds of a trial
BACKBONES = (1.0, 1.4, 2.7, 7.0, 12.0)  # what a pass costs
VIEWS_AND_EPOCHS = ((1, 100), (2, 100), (2, 200), (1, 400))


class Workload(NamedTuple):
    """Trials of a grid whose lengths follow from backbone, views and epochs, and from chance.

    evaluation: its share of the work. misjudged: by how much (σ of the logarithm) the estimate of a backbone's cost is
    wrong. noise: σ of the logarithm of what one trial or shard takes. tail: the longest trial's part of the makespan.
    """

    evaluation: float = 0.25
    misjudged: float = 0.3
    noise: float = 0.2
    backbones: Sequence[float] = BACKBONES
    tail: float = 0.0


WORKLOADS = {
    "a grid": Workload(),
    "much evaluation": Workload(evaluation=0.75),
    "trials alike": Workload(backbones=(1.0,), noise=0.05),
    "estimates wrong": Workload(misjudged=1.0, noise=0.6),
    "few very long": Workload(tail=0.95),
}


def trials(workload: Workload, count: int, slots: int, seed: int) -> list[Trial]:
    """*count* trials in the order of the grid."""
    rng = random.Random(seed)
    step = hand_off.shard_images(IMAGES, count, slots)
    cuts = [min(step, IMAGES - first) for first in range(0, IMAGES, step)]
    bias = {
        (kind, backbone): rng.lognormvariate(0, workload.misjudged)
        for kind in ("train", "evaluate") for backbone in workload.backbones
    }  # fmt: skip
    found = []
    for number in range(count):
        views, epochs = VIEWS_AND_EPOCHS[number * len(VIEWS_AND_EPOCHS) // count]
        backbone = workload.backbones[number * 7919 * len(workload.backbones) // count % len(workload.backbones)]
        train, evaluate = backbone * views * epochs, backbone * 250
        epoch = bias["train", backbone] * rng.lognormvariate(0, workload.noise) * train / epochs
        an_image = bias["evaluate", backbone] * evaluate / IMAGES
        shards = [cut * an_image * rng.lognormvariate(0, workload.noise) for cut in cuts]
        # The shares of both parts, and the trials' mean, are set below.
        found.append((f"{number}", epoch, epochs, shards, Cost(train, evaluate, backbone)))
    trained = sum(epoch * epochs for _, epoch, epochs, *_ in found) / count
    evaluated = sum(sum(shards) for *_, shards, _ in found) / count
    a, b = MEAN_WORK * (1 - workload.evaluation) / trained, MEAN_WORK * workload.evaluation / evaluated
    scaled = [
        Trial(name, a * epoch, epochs, tuple(b * shard for shard in shards),
              cost._replace(training=a * cost.training, evaluation=b * cost.evaluation))
        for name, epoch, epochs, shards, cost in found
    ]  # fmt: skip
    if workload.tail:
        long = workload.tail * MEAN_WORK * count / slots
        for number in rng.sample(range(count), max(1, slots // 200)):
            trial = scaled[number]
            factor = long / trial.training
            scaled[number] = trial._replace(epoch=trial.epoch * factor, cost=trial.cost._replace(
                training=trial.cost.training * factor))  # fmt: skip
    return scaled


def ours(work: Sequence[Trial], conditions: Conditions, seed: int) -> Outcome:
    """As the cluster code does it: the longest trials first, as far as known; shards go to whatever slot is free."""
    order = hand_off.Order({trial.name: trial.cost for trial in work})
    return Cluster(work, conditions, seed, order).run()


def knowing_groups(work: Sequence[Trial], conditions: Conditions, seed: int) -> Outcome:
    """As ours, if it were known beforehand how wrong the estimates of each group are."""
    order = hand_off.Order({trial.name: trial.cost for trial in work})
    for trial in work:
        order.measured(trial.name, 1.0, trial.training)
    return Cluster(work, conditions, seed, order).run()


def knowing_all(work: Sequence[Trial], conditions: Conditions, seed: int) -> Outcome:
    """As ours, if it were known beforehand what every trial takes."""
    true = [trial._replace(cost=Cost(trial.training, sum(trial.shards))) for trial in work]
    return Cluster(in_order(true), conditions, seed).run()


def inside(work: Sequence[Trial], conditions: Conditions, seed: int) -> Outcome:
    """A trial keeps its slot and evaluates there itself; what is lost of that is as little as of its training."""
    alone = [trial._replace(shards=(), epoch=trial.work / trial.epochs) for trial in work]
    return Cluster(alone, conditions, seed).run()


def at_the_end(work: Sequence[Trial], conditions: Conditions, seed: int) -> Outcome:
    """All trials are trained, and then all are evaluated."""
    first = Cluster([trial._replace(shards=()) for trial in work], conditions, seed).run()
    second = Cluster([trial._replace(epochs=0) for trial in work], conditions, seed + 1).run()
    return Outcome(*(a + b for a, b in zip(first, second, strict=True)))


def in_order(work: Sequence[Trial]) -> list[Trial]:
    by_name = {trial.name: trial for trial in work}
    return [by_name[name] for name in hand_off.longest_first({trial.name: trial.cost for trial in work})]


POLICIES: dict[str, Callable[[Sequence[Trial], Conditions, int], Outcome]] = {
    "hand-off": ours,
    "evaluate inside the trial": inside,
    "evaluate all at the end": at_the_end,
    "inside the trial, longest first": lambda work, *rest: inside(in_order(work), *rest),
    "at the end, longest first": lambda work, *rest: at_the_end(in_order(work), *rest),
    "by the estimates alone": lambda work, *rest: Cluster(in_order(work), *rest).run(),
    "an oracle that knows the groups": knowing_groups,
    "an oracle that knows every trial": knowing_all,
}

ALWAYS = ("hand-off", "evaluate inside the trial", "evaluate all at the end")  # under all conditions
CONDITIONS = {"without faults": 0.0, "5 % of nodes preempted an hour": 0.05}
BOUNDS = {"without faults": 1.05, "5 % of nodes preempted an hour": 1.15}
COUNT, NODES, SLOTS_A_NODE = 10_000, 125, 8
FIGURES = Path(__file__).parent / "figures"


def measure(seed: int) -> list[dict[str, Any]]:
    """The makespan of each policy on each workload under each of the conditions, in units of the lower bound."""
    found = []
    for name, workload in WORKLOADS.items():
        work = trials(workload, COUNT, NODES * SLOTS_A_NODE, seed)
        bound = lower_bound(work, NODES * SLOTS_A_NODE)
        for faults, share in CONDITIONS.items():
            for policy, run in POLICIES.items():
                if share and policy not in ALWAYS:
                    continue
                outcome = run(work, Conditions(NODES, SLOTS_A_NODE, share), seed)
                found.append({
                    "workload": name, "conditions": faults, "policy": policy, "seed": seed,
                    "makespan": round(outcome.makespan / bound, 4), "preempted": outcome.preempted,
                    "most_restarts": outcome.most,
                })  # fmt: skip
                print(*found[-1].values(), file=sys.stderr, flush=True)
    return found


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst over the seeds."""
    found: dict[str, Any] = {}
    for faults in CONDITIONS:
        for workload in WORKLOADS:
            for policy in POLICIES:
                key = faults, workload, policy
                spans = [run["makespan"] for run in runs if (run["conditions"], run["workload"], run["policy"]) == key]
                if spans:
                    here = found.setdefault(faults, {}).setdefault(workload, {})
                    here[policy] = {"median": statistics.median(spans), "worst": max(spans)}
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (faults, workloads) in zip(axes, found.items(), strict=True):
        policies = [policy for policy in POLICIES if all(policy in here for here in workloads.values())]
        width = 0.8 / len(policies)
        for place, policy in enumerate(policies):
            spans = [here[policy]["median"] for here in workloads.values()]
            centres = [number + (place - (len(policies) - 1) / 2) * width for number in range(len(workloads))]
            axis.bar(centres, [span - 1 for span in spans], width, bottom=1, label=policy)
        axis.axhline(BOUNDS[faults], color="black", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(workloads)), [name.replace(" ", "\n", 1) for name in workloads], fontsize=8)
        axis.set_title(f"{faults} (dashed: at most {BOUNDS[faults]} asked)", fontsize=9)
    axes[0].set_ylabel("makespan / lower bound")
    axes[0].legend(fontsize=8)
    figure.suptitle("10,000 simulated trials on 1,000 GPUs: 1 is what no schedule undercuts", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    command = " ".join(["python", "tests/benchmarks/scale/policies.py", *sys.argv[1:]])
    write([run for seed in options.seeds for run in measure(seed)], command, options.seeds)


def write(runs: Sequence[dict[str, Any]], command: str, seeds: Sequence[int]) -> None:
    """Write the figures of *runs*, which *command* made."""
    found = summary(runs)
    faulty = [run for run in runs if run["conditions"] != "without faults" and run["policy"] == "hand-off"]
    (FIGURES / "policies.json").write_text(json.dumps({
        "command": command,
        "python": platform.python_version(),
        "date": time.strftime("%F"),
        "gpus": NODES * SLOTS_A_NODE,
        "trials": COUNT,
        "seeds": seeds,
        "makespan_over_lower_bound": found,
        "preemptions": [min(run["preempted"] for run in faulty), max(run["preempted"] for run in faulty)],
        "most_restarts_of_a_coordinator": max(run["most_restarts"] for run in faulty),
        "runs": [" ".join(map(str, run.values())) for run in runs],
    }, indent=2) + "\n")  # fmt: skip
    draw(found, FIGURES / "policies.png")


if __name__ == "__main__":
    main()
