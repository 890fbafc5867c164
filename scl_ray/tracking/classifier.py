"""A checkpoint in the format of MLflow's models: from pixels to class scores, without a pickle."""

import io
import re
from typing import Any

import mlflow.pytorch
import numpy as np
import pyarrow.parquet as pq
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import Tensor, nn

from scl_ray import checkpoint, memory
from scl_ray.checkpoint import Checkpoint
from scl_ray.given.checkpoint import GivenClassifier
from scl_ray.store import Store


class Classifier(nn.Module):
    """Pixels in [0, 1] (N, C, S, S) to class scores (N, K): normalisation, then the network that is explained."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Checkpoint | GivenClassifier) -> None:
        super().__init__()
        self.network = trained.explained("corrected")
        self.register_buffer("mean", torch.tensor(trained.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.std).view(-1, 1, 1))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std)


def save(store: Store, trial: str, folder: str, about: Model) -> None:
    """Write the trial's network into *folder*, as the model that *about* describes, and complete *about*.

    Raises what torch.export raises where a network cannot be traced.
    """
    trained = checkpoint.from_files(store.read_checkpoint(trial))
    example, number = _example(store), np.dtype("float32")
    inputs = Schema([TensorSpec(number, (-1, *example.shape[1:]))])
    mlflow.pytorch.save_model(
        Classifier(trained),
        folder,
        mlflow_model=about,
        signature=ModelSignature(inputs, Schema([TensorSpec(number, (-1, len(trained.classes)))])),
        input_example=example,
        metadata={
            "input": "pixels in [0, 1]: images, channels, height, width",
            "output": "class scores, whose softmax is calibrated on validation images",
            "classes": list(trained.classes),
        },
        pip_requirements=[f"torch=={re.sub(r'[+].*', '', torch.__version__)}"],
        serialization_format="pt2",
    )


def untraceable(store: Store, trial: str) -> Exception | None:
    """What tracing the trial's network raises, if it is the network that cannot be traced: for lack of memory, or of
    room for what `save` writes, it may do so another time."""
    trained, example = checkpoint.from_files(store.read_checkpoint(trial)), torch.from_numpy(_example(store))
    try:
        torch.export.export(Classifier(trained), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # a network of the user's own may raise anything
        return None if memory.exhausted(error) else error
    return None


def _example(store: Store) -> NDArray[Any]:
    """Two images of the sample, float32 in [0, 1]: of a single one, torch.export would take the batch's size as fixed.

    In eighths, which JSON writes shortly; exact pixels would take as much storage as the weights of some networks.
    """
    rows = pq.read_table(io.BytesIO(store.read("samples/images.parquet") or b"")).slice(0, 2).to_pylist()
    images = [np.array(row["pixels"]).reshape(row["channels"], row["height"], row["width"]) for row in rows]
    return np.asarray(np.round(np.stack((images * 2)[:2]) / 255 * 8) / 8, np.float32)
