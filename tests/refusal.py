"""Datasets that are refused."""

import pytest

from scl_ray import datasets
from scl_ray.config import DatasetConfig, InputError


def refused(config: DatasetConfig) -> str:
    """The one line that says why."""
    with pytest.raises(InputError) as error:
        datasets.load(config)
    message = str(error.value)
    assert "\n" not in message
    return message
