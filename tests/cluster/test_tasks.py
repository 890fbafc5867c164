"""What runs on a slot, without Ray."""

from pathlib import Path

import pytest
import torch
from conftest import DEMO

from scl_ray import config, training
from scl_ray.cluster import tasks
from scl_ray.config import Trial
from scl_ray.datasets import Dataset
from scl_ray.store import open_store


def test_training_that_lacks_memory_says_so_by_a_name_known_without_torch(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(training, "fit", short_of_memory)
    trial = config.load(DEMO).trials()[0]
    assert isinstance(trial, Trial)
    steps = tasks.train(open_store(str(tmp_path), "demo"), "0" * 12, trial, {}, digits, {}, torch.get_num_threads())
    assert [next(steps), next(steps)] == [{}, {"earlier": []}]
    with pytest.raises(MemoryError, match=r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\.$"):
        next(steps)
