"""A checkpoint's two files hold all that rebuilding the explained network takes."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from scl_ray import backbones, checkpoint
from scl_ray.checkpoint import Checkpoint


def made(readout: str = "linear_probe", backbone: str = "resnet8", features: int = 64) -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = backbones.build(backbone, 16)
        # Batch-norm with statistics of its own, as after training.
        network.train()(torch.randn(32, 3, 16, 16))
        return Checkpoint(
            backbone_name=backbone,
            backbone=network.to(memory_format=torch.channels_last).eval(),
            readout=readout,
            weight=torch.randn(10, features),
            bias=torch.randn(10),
            temperature=1.7,
            prototypes=functional.normalize(torch.randn(10, features), dim=1),
            classes=tuple(f"class {number}" for number in range(10)),
            image_size=16,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
        )


IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_corrected_and_published_probe():
    point = made("linear_probe")
    features = point.backbone(IMAGES)
    unit = features / features.norm(dim=1, keepdim=True)
    corrected, published = (point.explained(protocol)(IMAGES) for protocol in ("corrected", "published"))
    assert torch.allclose(corrected, (unit @ point.weight.T + point.bias) / 1.7, atol=1e-5)
    assert torch.allclose(published, features @ point.weight.T + point.bias, atol=1e-5)
    assert point.readout_name("corrected") == "linear_probe"
    assert point.readout_name("published") == "linear_probe_published"


@torch.no_grad()
def test_corrected_and_published_own_layer():
    point = made("own_layer")
    scores = point.backbone(IMAGES) @ point.weight.T + point.bias
    assert torch.allclose(point.explained("corrected")(IMAGES), scores / 1.7, atol=1e-5)
    assert torch.allclose(point.explained("published")(IMAGES), scores, atol=1e-5)
    assert point.readout_name("corrected") == "own_layer"
    assert point.readout_name("published") == "own_layer_published"


def test_the_explained_network_is_in_evaluation_mode_and_knows_its_cam_layer():
    point = made()
    point.backbone.train()
    network = point.explained()
    assert not any(module.training for module in network.modules())
    assert network.cam_layer is point.backbone.layer3[-1]


@pytest.mark.parametrize("readout", ["linear_probe", "own_layer"])
def test_files_bring_back_the_same_network(readout):
    point = made(readout)
    files = checkpoint.to_files(point)
    assert set(files) == {"weights.safetensors", "checkpoint.json"}
    state = torch.get_rng_state()
    again = checkpoint.from_files(files)
    assert torch.equal(torch.get_rng_state(), state)
    for field in dataclasses.fields(Checkpoint):
        if field.name != "backbone":
            first, second = getattr(point, field.name), getattr(again, field.name)
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    for protocol in ("corrected", "published"):
        with torch.no_grad():
            assert torch.allclose(point.explained(protocol)(IMAGES), again.explained(protocol)(IMAGES), atol=1e-5)
    assert checkpoint.to_files(again) == files


def test_files_are_enough_in_another_process(tmp_path):
    point = made()
    for name, data in checkpoint.to_files(point).items():
        (tmp_path / name).write_bytes(data)
    program = f"""
import sys, torch
from pathlib import Path
from scl_ray.checkpoint import from_files
files = {{name: (Path({str(tmp_path)!r}) / name).read_bytes() for name in ("weights.safetensors", "checkpoint.json")}}
images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
print(from_files(files).explained("corrected")(images).argmax(dim=1).tolist())
assert "ray" not in sys.modules and "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == point.explained()(IMAGES).argmax(dim=1).tolist()


def test_a_users_own_backbone_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from scl_ray.backbones import CifarResNet\ndef deeper(image_size): return CifarResNet(14, image_size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = made(backbone="own_net:deeper")
    again = checkpoint.from_files(checkpoint.to_files(point))
    assert len(again.backbone.layer1) == 2
    with torch.no_grad():
        assert torch.allclose(point.explained()(IMAGES), again.explained()(IMAGES), atol=1e-5)
    sys.modules.pop("own_net")


def test_files_that_do_not_belong_together_are_refused():
    files = checkpoint.to_files(made())
    record = json.loads(files["checkpoint.json"]) | {"backbone": "resnet20"}
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        checkpoint.from_files(files | {"checkpoint.json": json.dumps(record).encode()})
    record["format"] = 99
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.from_files(files | {"checkpoint.json": json.dumps(record).encode()})
