"""From a file of weights and the function that builds the network to the network; no code in the file is run."""

import inspect
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from scl_ray import plugins
from scl_ray.config import InputError

State = dict[str, Tensor]


def network_of(path: Path, model: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network that *model* builds with the weights of *path*, in evaluation mode, and what it was called with.

    It is called with nothing or, where the weights then do not fit, with ``num_classes``, as torchvision's functions
    take it. Raises InputError, with the first name that does not fit.
    """
    state = read(path)
    arguments: dict[str, Any] = {}
    network = build(model, arguments)
    problem = load_into(network, state)
    if problem and (classes := _classes(network, state)) and _takes_classes(model):
        arguments = {"num_classes": classes}
        network = build(model, arguments)
        problem = load_into(network, state)
    if problem:
        raise InputError(f"--checkpoint {path}: does not fit --model {model}: {problem}; "
                         "give the function that builds the network which was saved")  # fmt: skip
    return network.eval(), arguments


def read(path: Path) -> State:
    """The tensors of a ``.safetensors`` file, or of a ``.pt`` or ``.pth`` file that holds nothing but weights.

    Of a training checkpoint the one entry that is a network's weights is taken. No other object is ever built from a
    pickle. Raises InputError.
    """
    name = f"--checkpoint {path}"
    if not path.is_file():
        raise InputError(f"{name}: there is no such file; give the file that holds the network's weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused all the same
            loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{name}: holds more than weights, or is no checkpoint, and a pickled object could run code; "
                         "save model.state_dict() with safetensors.torch.save_file") from error  # fmt: skip
    except Exception as error:  # of bytes that are none of the formats, the readers raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{name}: cannot be read as weights ({reason}); save model.state_dict() again") from error
    state = _state(loaded)
    if isinstance(state, str):
        raise InputError(f"{name}: {state}; save the state_dict of one network alone")
    for prefix in ("module.", "_orig_mod."):  # what data-parallel training and torch.compile put before every name
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def _state(loaded: Any) -> State | str:
    """The weights in what a file holds, or what is wrong."""
    if _is_state(loaded):
        return dict(loaded)
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    found = {str(key): value for key, value in entries if _is_state(value)}
    if len(found) == 1:
        return dict(next(iter(found.values())))
    return f"holds the weights of several networks ({', '.join(found)})" if found else "holds no weights by name"


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def build(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What ``module:callable`` makes of *arguments*. Raises InputError when that is no network."""
    try:
        function = plugins.load(model)
    except ValueError as error:
        raise InputError(f"--model {error}") from error
    # Initial weights are drawn and thrown away; the caller keeps their own random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            network = function(**arguments)
        except Exception as error:  # a user's function may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"--model {model}: raised {reason}; give a function that builds the network when it is "
                             "called without arguments") from error  # fmt: skip
    if not isinstance(network, nn.Module):
        raise InputError(f"--model {model}: returned {type(network).__name__}; return a torch module")
    return network


def load_into(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Give *network* all the weights of *state*. Returns the first thing that does not fit, or None."""
    own = network.state_dict()
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            return f"{name} is {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the network"
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing:
        return f"{missing[0]} is not in the file"
    return f"{unexpected[0]} of the file is not in the network" if unexpected else None


def _classes(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many outputs the saved network has, by the last of the names that it shares with *network*'s own."""
    last = next(reversed(network.state_dict()), "")
    return len(state[last]) if last in state and state[last].ndim else None


def _takes_classes(model: str) -> bool:
    parameters = inspect.signature(plugins.load(model)).parameters
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
