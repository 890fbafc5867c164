"""Weights from files: what is read, what is refused, and how the network is built that they fit."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scl_ray.config import InputError
from scl_ray.given import weights

RESNET = "torchvision.models:resnet18"


def resnet(classes: int = 1000) -> nn.Module:
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(num_classes=classes)
    return network.eval()


def refused(path: Path, model: str = RESNET) -> str:
    with pytest.raises(InputError) as caught:
        weights.network_of(path, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def test_the_network_scores_as_the_saved_one_and_has_its_number_of_classes(tmp_path: Path) -> None:
    saved = resnet(7)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = saved.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    # A training checkpoint, of data-parallel training.
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "model": parallel, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "c.pth")
    random = torch.get_rng_state()
    for path in sorted(tmp_path.iterdir()):
        network, arguments = weights.network_of(path, RESNET)
        assert arguments == {"num_classes": 7}
        assert not network.training
        assert torch.equal(network(images), saved(images))
    assert torch.equal(torch.get_rng_state(), random)


class Harmful:
    """Unpickled freely, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_nothing_but_tensors_is_ever_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weights": torch.zeros(1), "harm": Harmful(trace)}, tmp_path / "harm.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    for name in ("harm.pt", "plain.pth", "whole.pt"):
        assert "holds more than weights" in refused(tmp_path / name)
    assert not trace.exists()


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "other.pt").write_bytes(b"hello")
    (tmp_path / "odd.pt").write_bytes(b"\x80\x02a")  # a pickle that takes from an empty stack
    for name in ("cut.safetensors", "empty.pt", "other.pt", "odd.pt"):
        assert "cannot be read as weights" in refused(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds no weights" in refused(tmp_path / "list.pt")
    one = {"weight": torch.zeros(2)}
    torch.save({"student": one, "teacher": one}, tmp_path / "two.pt")
    assert "student, teacher" in refused(tmp_path / "two.pt")


def test_the_first_name_that_does_not_fit_is_told(tmp_path: Path) -> None:
    state = resnet(10).state_dict()
    cases = {
        "layer1.0.conv1.weight is not in the file": {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"},
        "head.weight of the file is not in the network": {**state, "head.weight": torch.zeros(1)},
        "conv1.weight is (64, 3, 3, 3) in the file and (64, 3, 7, 7) in the network": {
            **state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
    }  # fmt: skip
    for expected, wrong in cases.items():
        save_file(wrong, tmp_path / "wrong.safetensors")
        assert expected in refused(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("no_such_module:build", "cannot be imported"),
        ("torchvision.models:resnet19", "cannot be imported"),
        ("torchvision.models:ResNet", "raised TypeError"),
        ("torch:get_num_threads", "returned int"),
    ],
)
def test_what_builds_no_network_is_refused(model: str, expected: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors", model)
    assert message.startswith(f"--model {model}: ")
    assert expected in message
