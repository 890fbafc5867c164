import dataclasses

import pyarrow as pa
import pytest
import torch
from conftest import DEMO
from torch import nn

from scl_ray import config, plan
from scl_ray.config import InputError
from scl_ray.parts import evaluation
from scl_ray.store import open_store


class OneSize(nn.Module):
    """A backbone that looks at whole images, of 32x32 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.cam_layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU())
        self.last = nn.Linear(4 * 32 * 32, 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.cam_layer(images).flatten(1))


@pytest.fixture
def planned(digits, tmp_path, monkeypatch):
    def make(*overrides):
        sweep = config.load(DEMO, ["grid.objective=cross_entropy", "grid.seed=0", *overrides])
        return plan.make(sweep, digits, open_store(str(tmp_path), "planned"), slots=2)

    return make


class Tokens(nn.Module):
    """A backbone with an operation that no rule of DeepLIFT or LRP knows."""

    def __init__(self) -> None:
        super().__init__()
        self.cam_layer = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.cam_layer(images).flatten(2).mT).mean(1)


@pytest.mark.parametrize("method", ["deep_lift", "lrp"])
def test_a_backbone_whose_shares_do_not_add_up_is_refused_before_any_work(planned, monkeypatch, method):
    monkeypatch.setattr("scl_ray.backbones.build", lambda name, size: Tokens())
    with pytest.raises(InputError, match="does not add up to the score"):
        plan.check_backbones(planned(f"evaluation.methods={method}"), ["resnet8"])


@pytest.mark.parametrize(
    ("method", "metric", "reason"),
    [
        ("guided_backprop", "complexity", "has none; use saliency"),
        ("saliency", "grid_pointing_game", "takes only images of 32x32"),
    ],
)
def test_what_a_backbone_does_not_suit_is_refused_before_any_work(planned, monkeypatch, method, metric, reason):
    monkeypatch.setattr("scl_ray.backbones.build", lambda name, size: OneSize())
    found = planned(f"evaluation.methods={method}", f"evaluation.metrics={metric}")
    with pytest.raises(InputError, match=f"grid.backbone: resnet8 .*{reason}.*; change"):
        plan.check_backbones(found, ["resnet8"])


def test_every_method_and_metric_suits_a_resnet(planned):
    from scl_ray.attribution import METHODS
    from scl_ray.metrics import METRICS

    found = planned(f"evaluation.methods={list(METHODS)}", f"evaluation.metrics={list(METRICS)}",
                    "evaluation.target=[class_score, prototype, label_free, corpus]")  # fmt: skip
    plan.check_backbones(found, ["resnet8"])
    methods = {versioned.cell.method for versioned in found.cells}
    assert {"grad_cam", "grad_cam[target=corpus]", "lrp[target=label_free]", "edge"} <= methods
    # What explains no class is not contrasted, and the digits have no masks.
    left_out = {(cell.method, cell.metric) for cell, _ in found.not_cells}
    assert ("saliency[target=label_free]", "ssim_contrastivity") in left_out
    assert ("edge", "random_logit") in left_out
    assert ("saliency", "pointing_game") in left_out
    assert dataclasses.asdict(found)["images"] == 160


def test_a_metric_whose_definition_changes_is_computed_again_and_its_old_values_go(planned, tmp_path, monkeypatch):
    from scl_ray.metrics import METRICS

    asked = ["evaluation.methods=saliency", "evaluation.metrics=[complexity, sparseness]", "evaluation.images=64"]
    store, first = open_store(str(tmp_path), "planned"), planned(*asked)
    (trial,) = first.trials

    def evaluated(shards):
        for cells, readouts in ((shard.cells, shard.readouts) for shard in shards):
            rows = [(image, *v.cell, 0.5) for v in cells for image in range(64)]
            table = pa.table(dict(zip(("image", "method", "metric", "value"), zip(*rows, strict=True), strict=True)))
            store.write_part("scores", trial, evaluation(cells), 0, 63, table, cells)
            for readout in readouts:
                store.write_part("predictions", trial, readout, 0, 63, table.select(["image"]))

    def held():
        return sorted((*v.cell, v.version) for part in store.parts("scores", trial) for v in store.cells(part))

    evaluated(first.work[trial].shards)
    assert planned(*asked).work[trial].shards == ()
    monkeypatch.setitem(METRICS, "complexity", dataclasses.replace(METRICS["complexity"], version=7))
    second = planned(*asked)
    (shard,) = second.work[trial].shards
    assert [(v.cell.metric, v.version) for v in shard.cells] == [("complexity", "1-7")]
    evaluated([shard])
    store.remove_superseded([trial], second.cells)
    assert held() == [("saliency", "complexity", "1-7"), ("saliency", "sparseness", "1-1")]
    assert planned(*asked).work[trial].shards == ()
