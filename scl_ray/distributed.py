"""One network trained by several workers together: each sees its share of every batch, and all see the whole loss.

The workers are the processes of torch.distributed's default group; without one there is a single worker, and nothing
here changes anything. What the shares add up to is what one worker computes with the whole batch: batch-norm takes its
statistics of all of it, the loss compares all of it, and the gradients are those of that one loss.
"""

from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")


def rank_and_workers() -> tuple[int, int]:
    """This process's number among those that train together, from 0, and how many they are."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def of_the_first(value: Value, device: str) -> Value:
    """What the first of the workers has, on all of them; each computes on its *device*."""
    _, workers = rank_and_workers()
    if workers == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, device=torch.device(device))
    return told[0]


def shared(network: nn.Module, device: torch.device) -> nn.Module:
    """*network* as what one of several workers trains: its parameters get the mean of all workers' gradients.

    The batch-norms of *network* itself are changed to take their statistics of the whole batch; its parameters, buffers
    and their names stay as they are.
    """
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:  # SyncBatchNorm refuses a CPU's tensors
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.forward = MethodType(_normalised, module)  # type: ignore[method-assign]  # of this one alone
    # The graph is the same in every step. Told so, it waits for no gradient of weights that have none.
    return DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)


def whole(values: Tensor, views: int) -> Tensor:
    """The values (V·N, …) of a whole batch, from each worker's (V·n, …); both are view after view.

    Gradients flow back to every worker's own share. When all workers compute the same loss of the result, each gets
    the sum of as many equal gradients as there are workers, of which the mean that `shared` takes over the workers is
    the gradient of the one loss.
    """
    _, workers = rank_and_workers()
    if workers == 1:
        return values
    shares: Tensor = _Gathered.apply(values)
    by_view = shares.unflatten(1, (views, -1)).transpose(0, 1)
    return by_view.flatten(0, 2)


class _Gathered(torch.autograd.Function):
    """All workers' tensors (…) as one (workers, …), on each of them. The gradient is the sum of all workers'."""

    # torch.distributed.nn has this too, but it is deprecated there for a private module.

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        _, workers = rank_and_workers()
        gathered = values.new_empty(workers, *values.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), values.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        rank, _ = rank_and_workers()
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[rank]


def _normalised(module: _BatchNorm, inputs: Tensor) -> Tensor:
    """The forward pass of a batch-norm with the statistics of all workers' inputs (n, C, …), equally many on each."""
    if not module.training:
        return type(module).forward(module, inputs)
    values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    axes = [0, *range(2, values.ndim)]
    variances, means = torch.var_mean(values, axes, correction=0)
    gathered: Tensor = _Gathered.apply(torch.stack([means, variances]))
    # Around the mean of all, not as a difference of squares, which would lose digits where the mean is large.
    mean = gathered[:, 0].mean(dim=0)
    variance = gathered[:, 1].mean(dim=0) + (gathered[:, 0] - mean).square().mean(dim=0)
    if module.running_mean is not None and module.running_var is not None and module.num_batches_tracked is not None:
        with torch.no_grad():
            module.num_batches_tracked += 1
            weight = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            count = len(gathered) * values.numel() // values.shape[1]
            module.running_mean.lerp_(mean, weight)
            module.running_var.lerp_(variance * (count / (count - 1)), weight)
    shape = [1, -1] + [1] * (values.ndim - 2)
    normalised = (values - mean.view(shape)) * (variance + module.eps).rsqrt().view(shape)
    if module.affine:
        normalised = normalised * module.weight.view(shape) + module.bias.view(shape)
    return normalised.to(inputs.dtype)
