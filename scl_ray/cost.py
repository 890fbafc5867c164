"""What training and evaluating a trial are estimated to cost, told from the configuration alone."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scl_ray import backbones, objectives, plan
from scl_ray.config import Trial
from scl_ray.hand_off import Cost
from scl_ray.plan import Plan


def training_passes(trial: Trial, images: int, classes: int) -> int:
    """Forward passes of one image that training on *images* takes: three for each view, as a backward costs two."""
    return 3 * objectives.build(trial.objective, classes).views * trial.training.epochs * images


def operations(network: nn.Module, images: Tensor) -> float:
    """Floating-point operations of a forward pass of one image; *images* (N,C,H,W) are passed."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() / len(images)


def of_trials(found: Plan[Trial], train_images: int) -> dict[str, Cost]:
    """What each trial of *found* that lacks something is estimated to take, in a unit of no meaning by itself.

    How fast a pass's operations are done differs from backbone to backbone, and how well workers share a training with
    their number; by these trials are grouped. A trial whose backbone cannot be built here is taken for the longest:
    should it fail, that is known soonest.
    """
    size, classes = found.dataset["image_size"], len(found.dataset["classes"])
    names = {work.trial.backbone for work in found.work.values()}
    # Of one backbone every pass costs the same.
    a_pass = {name: _a_pass(name, size) if len(names) > 1 else 1.0 for name in names}
    an_image = cache(lambda cells: plan.forward_passes([v.cell for v in cells], size))
    costs = {}
    for trial_id, (trial, train, shards) in found.work.items():
        training = training_passes(trial, train_images, classes) / trial.training.workers if train else 0.0
        evaluation = float(sum(shard.images * an_image(shard.cells) for shard in shards))
        each, group = a_pass[trial.backbone], (trial.backbone, trial.training.workers)
        # What is nothing stays so, also where a pass may take for ever.
        costs[trial_id] = Cost(training and training * each, evaluation and evaluation * each, group)
    return costs


def _a_pass(backbone: str, size: int) -> float:
    try:
        return operations(backbones.build(backbone, size).eval(), torch.zeros(1, 3, size, size))
    except backbones.BuildError:
        return math.inf
