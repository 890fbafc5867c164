"""Two workers on the CPU compute what one process does with the same batches: losses, gradients and statistics."""

import dataclasses
import io
import math
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from scl_ray import datasets, distributed, training
from scl_ray.config import DatasetConfig, Trial
from scl_ray.datasets import Dataset
from scl_ray.training import fit

RATE = 0.01
OBJECTIVES = [
    {"name": "cross_entropy"},
    {"name": "supcon", "temperature": 0.1},
    {"name": "triplet"},
]
PROXIES = {"name": "ProxyAnchorLoss"}  # has weights of its own, and mixes no precisions


def point(objective: dict, *, workers: int = 1, epochs: int = 1, **settings: object) -> Trial:
    """One trial of plain gradient descent, so that a step's change of the weights is its gradient."""
    training = {"epochs": epochs, "batch_size": 48, "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0,
                "augmentation": "crop_flip", "workers": workers}  # fmt: skip
    return Trial(
        dataset=DatasetConfig(name="digits", image_size=16),
        objective=objective,
        backbone="resnet8",
        seed=0,
        training={**training, **settings},
    )


@pytest.fixture(scope="module")
def few() -> Dataset:
    """100 training images: two batches of 48, and four that are left out."""
    digits = datasets.load(DatasetConfig(name="digits", image_size=16))
    return dataclasses.replace(digits, train_images=digits.train_images[:100], train_labels=digits.train_labels[:100])


def _worker(rank: int, workers: int, folder: str, dataset: Dataset) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = dist.FileStore(f"{folder}/store", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=60))
    found: dict[str, object] = {}
    for objective in OBJECTIVES:
        found[objective["name"]] = list(fit(dataset, point(objective, workers=workers, epochs=2)))
    found["resumed"] = list(fit(dataset, point(OBJECTIVES[1], epochs=3), state=torch.load(f"{folder}/alone.pt")))
    found["whole"] = _gathered(rank)
    found["first"] = distributed.of_the_first(b"an epoch" if rank == 0 else None, "cpu")
    torch.set_default_dtype(torch.float32)
    found["proxies"] = list(fit(dataset, point(PROXIES)))
    found["norm"] = _norm(rank, workers)
    found["unused"] = _unused(distributed.shared, rank, workers)
    found["bfloat16"] = list(fit(dataset, point(OBJECTIVES[0], precision="bfloat16")))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _norm(rank: int, workers: int) -> dict[str, torch.Tensor]:
    """A batch-norm of shared inputs, far from zero, where a difference of squares would lose its digits."""
    inputs, norm = _norm_inputs()
    network = nn.Sequential(norm)
    trained = distributed.shared(network, torch.device("cpu"))
    own = inputs.chunk(workers)[rank].clone().requires_grad_()
    outputs = trained(own)
    outputs.pow(3).sum().backward()
    return {"outputs": outputs.detach(), "inputs": own.grad, **network.state_dict()}


class Unused(nn.Linear):
    """A network with weights that nothing of its output depends on."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.unused = nn.Linear(4, 3)


def _unused(shared: Callable[[nn.Module, torch.device], nn.Module], rank: int, workers: int) -> torch.Tensor:
    """The weights of such a network after three steps, of which DDP without further ado refuses the second."""
    torch.manual_seed(0)
    network, inputs = Unused(), torch.randn(8, 4)
    trained = shared(network, torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        outputs = distributed.whole(trained(inputs.chunk(workers)[rank]), 1)
        optimizer.zero_grad()
        outputs.square().mean().backward()
        optimizer.step()
    return network.weight.detach()


def _norm_inputs() -> tuple[torch.Tensor, nn.BatchNorm2d]:
    inputs = 100 + torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(3, momentum=None)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, 1.0]))
    return inputs, norm


def _gathered(rank: int) -> dict[str, torch.Tensor]:
    """Two views of three images on each of two workers; the loss weights each value differently."""
    own = torch.arange(6.0).view(2, 3) + 10 * rank
    own = own.flatten().requires_grad_()
    values = distributed.whole(own, 2)
    (values * torch.arange(12.0)).sum().backward()
    return {"values": values.detach(), "gradient": own.grad}


def test_all_workers_resume_from_what_the_first_one_found(together: list[dict]) -> None:
    assert [found["first"] for found in together] == [b"an epoch"] * 2
    assert distributed.of_the_first(None, "cpu") is None  # a single worker


@pytest.fixture(scope="module")
def alone(few: Dataset) -> dict[str, list]:
    """What one process computes, in float64, so that no unit is switched on or off by rounding alone."""
    torch.set_default_dtype(torch.float64)
    found: dict[str, list] = {o["name"]: list(fit(few, point(o, epochs=2))) for o in OBJECTIVES}
    found["resumed"] = list(fit(few, point(OBJECTIVES[1], epochs=3)))
    torch.set_default_dtype(torch.float32)
    found["proxies"] = list(fit(few, point(PROXIES)))
    return found


@pytest.fixture(scope="module")
def together(alone, few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes does with its half of the same batches."""
    folder: Path = tmp_path_factory.mktemp("workers")
    torch.save(alone["resumed"][0][1], folder / "alone.pt")
    # What takes seconds to import is imported once, not by each of them.
    multiprocessing.set_forkserver_preload(["scl_ray.training", "torch._dynamo", "pytorch_metric_learning.losses"])
    torch.multiprocessing.start_processes(_worker, (2, str(folder), few), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("objective", [o["name"] for o in OBJECTIVES])
def test_loss_gradient_and_statistics_are_those_of_one_process(alone, together, objective):
    # The network computes in float64 and the loss in float32, whose rounding is 6e-8 of the gradients' sum.
    for (metrics, state), (own_metrics, own_state) in zip(alone[objective], together[0][objective], strict=True):
        assert own_metrics["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
        assert own_metrics.keys() == metrics.keys()
        assert list(own_state["network"]) == list(state["network"])
        for name, tensor in state["network"].items():
            # Both began with the same weights, so what one step made of them differs as its gradients do.
            scale = RATE if tensor.is_floating_point() and "running" not in name else 1
            assert ((own_state["network"][name] - tensor) / scale).abs().max() < 1e-5, name


def test_a_losss_own_weights_get_their_gradient_once(alone, together, few):
    name = "objective.proxies"
    start = training.build(few, point(PROXIES), torch.device("cpu"))[0].state_dict()[name]
    steps = [start - found["proxies"][0][1]["network"][name] for found in (alone, together[0])]
    assert steps[0].abs().max() > 0
    # In float32, where a unit near zero may be on in one run and off in the other.
    assert (steps[1] - steps[0]).norm() < 0.02 * steps[0].norm()


def test_weights_that_are_not_used_do_not_stop_the_others(together):
    alone = _unused(lambda network, device: network, 0, 1)
    for found in together:
        assert torch.allclose(found["unused"], alone, rtol=0, atol=1e-6)  # float32's rounding, of weights of about 0.5


def test_workers_end_alike_and_only_the_first_yields_a_state(together):
    losses = [[metrics["loss"] for metrics, _ in found["supcon"]] for found in together]
    assert losses[0] == losses[1]
    assert all(state == {} for _, state in together[1]["supcon"])
    assert "validation_accuracy" in together[0]["cross_entropy"][0][0]
    assert "validation_accuracy" not in together[1]["cross_entropy"][0][0]


def test_a_trial_begun_by_one_worker_is_ended_by_two(alone, together, few):
    """And what they end with is saved and read as any other state."""
    resumed = together[0]["resumed"]
    assert [metrics["epoch"] for metrics, _ in resumed] == [2, 3]
    file = io.BytesIO()
    torch.save(resumed[-1][1], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for name, tensor in alone["resumed"][-1][1]["network"].items():
        assert torch.allclose(state["network"][name], tensor, rtol=0, atol=1e-6), name
    assert list(fit(few, point(OBJECTIVES[1], epochs=3), state=state)) == []


def test_bfloat16_trains_with_synchronised_statistics(together):
    (metrics, state), = together[0]["bfloat16"]  # fmt: skip
    assert math.isfinite(metrics["loss"])
    assert state["network"]["backbone.bn1.running_mean"].dtype == torch.float32


def test_batch_norm_takes_its_statistics_of_the_whole_batch(together):
    inputs, norm = _norm_inputs()
    inputs.requires_grad_()
    outputs = norm(inputs)
    outputs.pow(3).sum().backward()
    halves = [found["norm"] for found in together]
    # The inputs' own rounding at 100 is 4e-6 of their spread of one.
    assert torch.allclose(torch.cat([half["outputs"] for half in halves]), outputs.detach(), atol=1e-4)
    assert torch.allclose(torch.cat([half["inputs"] for half in halves]), inputs.grad, atol=1e-2, rtol=1e-4)
    for half in halves:
        assert torch.allclose(half["0.running_mean"], norm.running_mean, rtol=1e-6)
        assert torch.allclose(half["0.running_var"], norm.running_var, rtol=1e-4)
        assert half["0.num_batches_tracked"] == 1


def test_gathered_values_are_in_the_order_of_the_batch_with_every_workers_gradient(together):
    for rank, found in enumerate(found["whole"] for found in together):
        assert found["values"].tolist() == [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15]
        # Each of the two workers computes the same loss, so each position's weight comes twice.
        places = np.array([0, 1, 2, 6, 7, 8]) + 3 * rank
        assert found["gradient"].tolist() == (2 * places).tolist()


def test_alone_everything_stays_as_it_is():
    values = torch.randn(6, 2)
    assert distributed.rank_and_workers() == (0, 1)
    assert distributed.whole(values, 2) is values
