"""Other forms of a network with the same outputs: batch-norm folded into convolutions, every operation a node.

By symbolic tracing (Reed et al., torch.fx, MLSys 2022). A form shares nothing with the network it was made of.
"""

import copy
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What a forward pass raises that does with a symbol what only works on a tensor.
_NOT_TRACED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def folded(model: nn.Module) -> nn.Module:
    """A copy of *model* in evaluation mode, with batch-norm folded into the convolution before it.

    The outputs are the same to rounding. Raises ValueError for a model that cannot be traced.
    """
    return fold(traced(model))


def traced(model: nn.Module) -> fx.GraphModule:
    """A copy of *model* in evaluation mode, as a graph of its operations, whose weights need no gradient.

    Raises ValueError for a model that cannot be copied, or whose forward pass depends on what an image holds.
    """
    try:
        network = fx.symbolic_trace(copy.deepcopy(model).eval())
    except _NOT_TRACED as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be rewritten as a graph of operations, so it can be explained only by "
            f"methods that take a network as it is ({reason})"
        ) from error
    return network.requires_grad_(False)


def fold(network: fx.GraphModule) -> fx.GraphModule:
    """*network*, changed: batch-norm folded into the convolution before it, where that feeds nothing else."""
    for node in list(network.graph.nodes):
        layer = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(layer, fx.Node) or layer.op != "call_module":
            continue
        # Typed as anything: `_plain` says what they are.
        before: Any = network.get_submodule(str(layer.target))
        norm: Any = network.get_submodule(str(node.target))
        if not _plain(before, _FOLDABLE) or not _plain(norm, _BATCH_NORM) or norm.running_mean is None:
            continue
        if len(layer.users) > 1 or sum(other.target == layer.target for other in network.graph.nodes) > 1:
            continue
        network.set_submodule(str(layer.target), fuse_conv_bn_eval(before, norm, isinstance(before, _TRANSPOSED)))
        node.replace_all_uses_with(layer)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return network.requires_grad_(False)


def _plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    # A subclass may compute something else, and a hook may compute the weights anew at every pass.
    return type(module) in kinds and not module._forward_pre_hooks and not module._forward_hooks


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
