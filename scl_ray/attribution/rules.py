"""Runs a question's network with rules in place of its operations, so that gradients mean something else.

The network is rewritten to a graph (`scl_ray.attribution.rewriting`); the outputs stay what they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from scl_ray.attribution import rewriting
from scl_ray.attribution.question import Cosines, Features, Question


def rewritten(question: Question, method: str) -> fx.GraphModule:
    """The question's network, rewritten, for *method*; made once for a model.

    Raises ValueError when the network cannot be rewritten so that it gives the same outputs.
    """
    network = question.network
    if isinstance(network, Cosines):
        inner = _kept(question, network.embedding, method)
        return fx.symbolic_trace(Cosines(inner, network.directions))
    return _kept(question, network, method)


def _kept(question: Question, network: nn.Module, method: str) -> fx.GraphModule:
    # A target's network is the model or its embedding, which are the batch's own, so that at most two are kept.
    kept: dict[nn.Module, fx.GraphModule] = question.batch.kept.setdefault("rewritten", {})
    if network not in kept:
        refusal = f"{method} cannot explain {type(question.batch.model).__name__}"
        try:
            if isinstance(network, Features):
                graph = rewriting.rewritten(network.model, network.last)
            else:
                graph = rewriting.rewritten(network)
        except ValueError as error:
            raise ValueError(f"{refusal}: {error}") from error
        image = question.images[:1].detach()
        with torch.no_grad():
            wanted = network(image)
            if (graph(image) - wanted).norm() > 1e-3 * wanted.norm():
                raise ValueError(f"{refusal}: as a graph of operations it gives other outputs, as a network may that "
                                 "changes tensors in place or in a hook")  # fmt: skip
        kept[network] = graph
    return kept[network]


# What acts on each number by itself.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu,
    F.hardswish, F.hardsigmoid, F.softplus, torch.sigmoid, torch.tanh,
)  # fmt: skip


class Ruled(fx.Interpreter):
    """Runs a rewritten network with rules in place of some of its operations.

    rules: by a module's type or by function, ``rule(operation, *arguments)``, which gives what
    ``operation(*arguments)`` gives, and may give it another gradient. They are called in the order of the graph.
    """

    def __init__(self, network: fx.GraphModule, rules: Mapping[Any, Callable[..., Tensor]]) -> None:
        super().__init__(network)
        self.rules = rules

    def run_node(self, n: fx.Node) -> Any:
        operation: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target
        rule = self.rules.get(type(operation) if n.op == "call_module" else operation)
        if rule is None or n.op not in ("call_module", "call_function"):
            return super().run_node(n)
        arguments, keywords = self.fetch_args_kwargs_from_env(n)
        return rule(operation, *arguments, **keywords)


def with_gradient(
    output: Callable[[], Tensor], gradient: Callable[[Tensor], tuple[Tensor | None, ...]], *inputs: Tensor
) -> Tensor:
    """What *output* computes, as a function of *inputs* whose gradients are what *gradient* makes of its own."""
    given: Tensor = _WithGradient.apply(output, gradient, *inputs)
    return given


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Callable[[], Tensor], gradient: Callable[..., Any], *inputs: Tensor) -> Tensor:
        ctx.rule = gradient
        return output()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.rule(gradient)
