"""What is estimated of trials orders them as what they take would."""

import math

import pytest
import torch
from conftest import DEMO
from torch import nn

from scl_ray import backbones, config, cost, hand_off, plan
from scl_ray.store import open_store


@pytest.fixture
def costs(digits, tmp_path):
    def estimate(*overrides: str) -> dict[str, hand_off.Cost]:
        """By the trials' labels."""
        sweep = config.load(DEMO, ["grid.seed=0", *overrides])
        planned = plan.make(sweep, digits, open_store(str(tmp_path), "costs"), slots=2)
        found = cost.of_trials(planned, len(digits.train_labels))
        return {planned.trials[trial].label: found[trial] for trial in hand_off.longest_first(found)}

    return estimate


def test_larger_backbones_and_more_views_cost_more(costs):
    both = "grid.objective=[cross_entropy, {name: supcon, temperature: 0.07}]"
    found = costs(both, "grid.backbone=[resnet8, resnet20]", "evaluation.images=20")
    assert [label.replace(" · seed 0", "") for label in found] == [
        "supcon τ=0.07 · resnet20", "cross_entropy · resnet20", "supcon τ=0.07 · resnet8", "cross_entropy · resnet8",
    ]  # fmt: skip
    network, image = backbones.build("resnet8", 32).eval(), torch.zeros(1, 3, 32, 32)
    network(image)
    weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    assert cost.operations(network, image) > 2 * weights  # each weight is used at least once, in a product and a sum


def test_workers_share_a_training(costs):
    one = "grid.objective=[{name: cross_entropy, label_smoothing: 0.1, training: {workers: 2}}, cross_entropy]"
    alone, together = costs(one, "evaluation.images=20", "evaluation.methods=grad_cam", "evaluation.metrics=complexity")
    assert "label_smoothing" not in alone
    assert "label_smoothing" in together


def test_what_cannot_be_built_here_comes_first(costs, monkeypatch):
    def build(name: str, size: int) -> nn.Module:
        if name == "resnet8":
            raise backbones.BuildError("resnet8 is not for this machine")
        return genuine(name, size)

    genuine = backbones.build
    monkeypatch.setattr(backbones, "build", build)
    found = costs("grid.objective=cross_entropy", "grid.backbone=[resnet20, resnet8]")
    assert next(iter(found.values()))[:2] == (math.inf, math.inf)
    assert "resnet8" in next(iter(found))
