"""The network in the form that is fastest where no gradient is wanted: for the passes of perturbed copies.

Batch-norm is folded, images and weights lie channels last where that is faster, and in bfloat16 all but the read-out
is computed in it. Nothing is compiled: TorchScript's CPU kernels are a tenth faster than this form, but take seconds to
make.
"""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from scl_ray import memory
from scl_ray.attribution.rewriting import folded

Network = Callable[[Tensor], Tensor]

# From how many images on a form pays: tracing ResNet-18 and trying it takes as long as ten of its forward passes at
# 32x32, and the form saves 5 % (ResNet-18) to 30 % (ResNet-8) of each.
WORTHWHILE = 256

# How far rounding may take the folded network from the original, of its largest score.
TOLERANCE = 1e-5

_LINEAR = (F.linear, torch.matmul, operator.matmul, torch.addmm)


def build(model: nn.Module, images: Tensor, precision: str) -> Network:
    """A function from normalised images (M,C,H,W), in any memory format, to the scores (M,K) float32 of *model*.

    It stands for *model* as it is now, and is to be called without gradients. ``float32``: equal to *model* to 1e-5 of
    its largest score, which is tried on two of *images*; *model* itself where it cannot be traced, has hooks, or is
    another after folding. ``bfloat16``: features in bfloat16, their pooling and the read-out in float32; by autocast
    where the network cannot be rewritten so.
    """
    network = _traced(model, images[:2])
    if precision == "float32":
        return model if network is None else _in_float32(network, images.device)
    return (network and _in_bfloat16(network, images[:2])) or _autocast(model)


def _traced(model: nn.Module, images: Tensor) -> fx.GraphModule | None:
    """A copy of *model* with batch-norm folded, or None where that is not the same network."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None  # they are to see every pass
    try:
        network = folded(model)
    except ValueError:
        return None
    wanted, found = model(images), network(images)
    return network if (wanted - found).abs().max() <= TOLERANCE * wanted.abs().max() else None


def _in_float32(network: nn.Module, device: torch.device) -> Network:
    # oneDNN is faster with channels last; cuDNN's kernels for full float32 are made for channels first.
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    _lay_out(network, layout)
    return lambda images: network(images.to(memory_format=layout))


def _in_bfloat16(network: fx.GraphModule, images: Tensor) -> Network | None:
    """*network* with its features in bfloat16, or None where they cannot be told from the read-out."""
    parts = _split(network)
    if parts is None:
        return None
    features, read_out = parts
    _lay_out(features.to(torch.bfloat16), torch.channels_last)

    def scores(images: Tensor) -> Tensor:
        return read_out(features(images.to(torch.bfloat16, memory_format=torch.channels_last)).float())

    try:
        scores(images)
    except RuntimeError as error:
        if memory.exhausted(error):
            raise
        return None  # it makes tensors of float32 on its way
    return scores


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    # Module.to asks it of tensors with five axes too, for which channels last is another format.
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def _autocast(model: nn.Module) -> Network:
    def scores(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return model(images).float()

    return scores


def _split(network: fx.GraphModule) -> tuple[nn.Module, nn.Module] | None:
    """*network* as what makes the features and what reads them; None where it is not one after the other."""
    boundary = _features(network)
    if boundary is None:
        return None
    nodes = list(network.graph.nodes)
    cut = nodes.index(boundary) + 1
    before = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in nodes[:cut]:
        copied[node] = before.node_copy(node, copied.__getitem__)
    before.output(copied[boundary])
    after = fx.Graph()
    copied = {boundary: after.placeholder("features")}
    for node in nodes[cut:]:
        if not copied.keys() >= set(node.all_input_nodes):
            return None
        copied[node] = after.node_copy(node, copied.__getitem__)
    features, read_out = fx.GraphModule(network, before), fx.GraphModule(network, after)
    shared = set(features.parameters()) & set(read_out.parameters())
    return None if shared else (features, read_out)


def _features(network: fx.GraphModule) -> fx.Node | None:
    """What the last linear layer reads, before it was pooled, flattened or normalised."""
    linear = [node for node in network.graph.nodes if _is_linear(network, node)]
    if not linear:
        return None
    node = linear[-1].all_input_nodes[0]
    while len(node.all_input_nodes) == 1 and not _has_weights(network, node):
        node = node.all_input_nodes[0]
    return node if node.all_input_nodes else None


def _is_linear(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.Linear)
    return node.op == "call_function" and node.target in _LINEAR


def _has_weights(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and bool(network.get_submodule(str(node.target)).state_dict())
