"""Other forms of a network, with the same outputs: batch-norm folded away, every ReLU a module of its own.

A form shares nothing with the network it was made of. By symbolic tracing (Reed et al., torch.fx, MLSys 2022).
"""

import copy
import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What a forward pass raises that does with a symbol what only works on a tensor.
_NOT_TRACED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def folded(model: nn.Module) -> fx.GraphModule:
    """A copy of *model* in evaluation mode, with batch-norm folded into the convolution before it.

    The outputs are the same to rounding. Raises ValueError for a model that cannot be traced.
    """
    return _fold(_traced(model))


def rewritten(model: nn.Module, before: nn.Module | None = None) -> fx.GraphModule:
    """A copy of *model* as `folded`, in which nothing works in place and every call of a ReLU is a module of its own.

    before: a layer of *model* whose input is then the output. Raises ValueError for a model that cannot be traced.
    """
    network = _traced(model)
    if before is not None:
        _end_before(network, next(name for name, module in model.named_modules() if module is before))
    _separate(network)
    return _fold(network)


def _traced(model: nn.Module) -> fx.GraphModule:
    """A copy of *model* in evaluation mode, as a graph of its operations.

    Raises ValueError for a model that cannot be copied, or whose forward pass depends on what an image holds.
    """
    try:
        return fx.symbolic_trace(copy.deepcopy(model).eval())
    except _NOT_TRACED as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the network cannot be traced to a graph of operations ({reason})") from error


def _end_before(network: fx.GraphModule, layer: str) -> None:
    """Make the input of *layer* the output of *network*."""
    last = next(node for node in network.graph.nodes if node.op == "call_module" and node.target == layer)
    end = network.graph.output_node()
    end.args = (last.args[0],)
    network.graph.eliminate_dead_code()


def _fold(network: fx.GraphModule) -> fx.GraphModule:
    """*network*, changed: batch-norm folded into the convolution before it, where that feeds nothing else."""
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        layer = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(layer, fx.Node) or layer.op != "call_module":
            continue
        # Typed as anything: `_plain` says what they are.
        before: Any = network.get_submodule(str(layer.target))
        norm: Any = network.get_submodule(str(node.target))
        if not _plain(before, _CONVOLUTION) or not _plain(norm, _BATCH_NORM) or norm.running_mean is None:
            continue
        if len(layer.users) > 1 or calls.count(layer.target) > 1:
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


def _separate(network: fx.GraphModule) -> None:
    """Change *network*: no operation overwrites its input, and every call of a ReLU is a module of its own."""
    order = {node: position for position, node in enumerate(network.graph.nodes)}
    for node in [node for node in network.graph.nodes if _overwrites(network, node)]:
        # Whatever came later read what was written.
        node.args[0].replace_all_uses_with(node, lambda user, written=order[node]: order[user] > written)
        node.target = _ELSEWHERE.get(node.target, node.target)
        if (call := _call(node)) is not None:
            call.arguments["inplace"] = False
            node.args, node.kwargs = call.args, call.kwargs
    for module in network.modules():
        if "inplace" in vars(module):
            vars(module)["inplace"] = False
    for position, node in enumerate(network.graph.nodes):
        if _is_relu(network, node):
            name = f"relu_{position}"
            while hasattr(network, name):
                name += "_"
            network.add_submodule(name, nn.ReLU())
            node.op, node.target, node.args, node.kwargs = "call_module", name, (node.all_input_nodes[0],), {}


def _overwrites(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    call = _call(node)
    asked = call is not None and bool(call.arguments.get("inplace"))
    return asked or (node.op != "placeholder" and node.target in (torch.relu_, "relu_", *_ELSEWHERE))


def _call(node: fx.Node) -> inspect.BoundArguments | None:
    """The arguments by name of a call of a function written in Python, as those that may work in place are."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    return inspect.signature(node.target).bind(*node.args, **node.kwargs)


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU
    return node.op != "placeholder" and node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_")


# What works in place, and what gives the same elsewhere.
_ELSEWHERE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
