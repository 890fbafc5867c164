"""Batches that fit into memory, and what becomes of those that do not."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from scl_ray import memory
from scl_ray.config import Cell
from scl_ray.evaluation import evaluate
from scl_ray.memory import Size, activations, fitting, in_batches

CELLS = [Cell("grad_cam", "pixel_flipping_auc"), Cell("saliency", "ssim_continuity[noise=0.1]")]
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class _Small(nn.Module):
    """A backbone on a device where no more than *most* images fit."""

    def __init__(self, backbone, most, error):
        super().__init__()
        self.backbone, self.most, self.error, self.cam_layer = backbone, most, error, backbone.cam_layer
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise self.error
        return self.backbone(images)


def on_small_device(trained, most, error):
    return dataclasses.replace(trained, backbone=_Small(trained.backbone, most, error))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_and_values_stay(trained, digits, error):
    whole = evaluate(trained, digits, 0, 19, CELLS).scores.to_pandas().sort_values(["method", "image"])
    small = on_small_device(trained, 6, error)
    found = evaluate(small, digits, 0, 19, CELLS, batch_size=20).scores.to_pandas().sort_values(["method", "image"])
    assert found.image.tolist() == whole.image.tolist()
    difference = np.abs(found.value.to_numpy() - whole.value.to_numpy())
    assert (difference < 1e-5).mean() >= 0.97  # a ranked metric may differ on an image
    # 20 images, then 10, then 5, and 5 from then on.
    first = small.backbone.seen.index(5)
    assert set(small.backbone.seen[:first]) == {1, 20, 10}
    assert max(small.backbone.seen[first:]) <= 16


def test_one_image_that_does_not_fit_is_refused_in_one_sentence():
    with pytest.raises(MemoryError, match=r"^not even one image fits .*resources\.evaluate\.memory.*$") as caught:
        list(in_batches(0, 9, Size(4, 64), lambda start, stop, copies: torch.empty(2**60)))
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_it():
    def wrong(start, stop, copies):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(in_batches(0, 9, Size(4, 64), wrong))


def test_batches_cover_the_ranks_once_whatever_does_not_fit():
    asked = []

    def work(start, stop, copies):
        asked.append((start, stop, copies))
        if copies > 8:
            raise MemoryError
        return start, stop

    assert list(in_batches(2, 9, Size(5, 16), work)) == [(2, 4), (4, 6), (6, 8), (8, 10)]
    assert asked[:3] == [(2, 7, 16), (2, 4, 8), (4, 6, 8)]


def test_activations_are_those_that_a_backward_pass_reads():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 900, 10)).eval()
    # The image, which the convolution reads, and the output of the ReLU, which both it and the linear layer read.
    assert activations(network, torch.zeros(1, 3, 32, 32)) == 4 * (3 * 32 * 32 + 8 * 30 * 30)


def test_size_keeps_to_the_bound_and_to_what_is_worth_taking(monkeypatch, network, images):
    one = images[:1]
    taken = activations(network, one) / memory.GIB
    assert fitting(network, one, 1000, 1) == Size(64, 64)
    size = fitting(network, one, 40.5 * taken, 1)
    assert size == Size(10, 10)
    assert fitting(network, one, taken / 2, 1) == Size(1, 1)
    large = images.new_zeros(1, 3, 224, 224)
    assert max(fitting(network, large, 1000, 1)) < 64
    monkeypatch.setattr(memory, "free", lambda device: int(81 * taken * memory.GIB))
    assert fitting(network, one, None, 1) == Size(10, 10)
    assert fitting(network, one, None, 5) == Size(2, 2)


def test_what_is_free_is_less_than_there_is():
    assert 0 < memory.free(torch.device("cpu")) < 2**50


def test_files_that_a_container_keeps_in_memory_count_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    for limit, expected in (("9000\n", 9000 - 8000 + 5000), ("7000", 4000), ("2000", 0)):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("8000\n")
        (tmp_path / "memory.stat").write_text("anon 900\nactive_file 2000\ninactive_file 3000\nworkingset_file 7\n")
        assert memory.free(torch.device("cpu")) == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(torch.device("cpu")) > 9000


PEAK = """
import torch
torch.set_num_threads(1)
from scl_ray import datasets
from scl_ray.backbones import build
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import Cell, DatasetConfig
from scl_ray.evaluation import evaluate

digits = datasets.load(DatasetConfig(name="digits", image_size=64))
trained = Checkpoint("resnet8", build("resnet8", 32).eval(), "own_layer", torch.randn(10, 64), torch.zeros(10), 1.0,
                     torch.randn(10, 64), tuple("0123456789"), 64, (0.5,) * 3, (0.5,) * 3)
cells = [Cell("saliency", "pixel_flipping_auc[features_per_step=1024]"),
         Cell("integrated_gradients[steps=2]", "ssim_continuity[noise=0.1]")]

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

evaluate(trained, digits, 0, 1, cells)
before = peak()
evaluate(trained, digits, 0, 63, cells, memory=0.1)
bounded = peak()
evaluate(trained, digits, 0, 63, cells)
print(bounded - before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_bound_holds():
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    bounded, free = map(float, done.stdout.split())
    assert bounded < 0.1 < free
