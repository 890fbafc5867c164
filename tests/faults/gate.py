"""An objective and a metric that halt where a test wants them to, so that it knows what it interrupts.

They are a sweep's own ``module:callable``. What they do when halted does not change what they compute.
"""

import os
import time
from pathlib import Path

import torch
from torch import Tensor

_calls = {"training": 0, "shard": 0}


def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The distance of each embedding from its class's mean, over the distance from the others' means."""
    _halt("training")
    embeddings = torch.nn.functional.normalize(embeddings)
    present = labels.unique()
    means = torch.stack([embeddings[labels == label].mean(0) for label in present])
    scores = -torch.cdist(embeddings, means).square() / 0.1
    return torch.nn.functional.cross_entropy(scores, torch.searchsorted(present, labels))


def metric(model: torch.nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
    """How unevenly a map (N,H,W) is spread."""
    _halt("shard")
    return maps.flatten(1).std(1)


def _halt(kind: str) -> None:
    """Wait here while ``hold-<kind>`` exists in the folder GATE and this process has made more calls than it says."""
    folder = os.environ.get("GATE")
    if folder is None:
        return
    _calls[kind] += 1
    with Path(folder, f"calls-{kind}").open("a") as log:  # a short line is appended whole
        log.write(f"{os.getpid()}\n")
    hold, here = Path(folder, f"hold-{kind}"), Path(folder, f"halted-{kind}-{os.getpid()}")
    while (after := _content(hold)) is not None and _calls[kind] > int(after):
        here.touch()
        time.sleep(0.05)
    here.unlink(missing_ok=True)


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
