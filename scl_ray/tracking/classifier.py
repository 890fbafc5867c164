"""A checkpoint in the format of MLflow's models: from pixels to class scores, without a pickle."""

import io
import json
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pyarrow.parquet as pq
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from scl_ray import checkpoint, memory
from scl_ray.checkpoint import Checkpoint
from scl_ray.given.checkpoint import GivenClassifier
from scl_ray.store import Store

KEPT = 8  # architectures whose graphs are kept

_traced: dict[tuple[str, bytes], "_Traced"] = {}  # by architecture and example
_in_use = threading.Lock()  # the thread that logs networks during a sweep may still do so when the sweep does itself


class Classifier(nn.Module):
    """Pixels in [0, 1] (N, C, S, S) to class scores (N, K): normalisation, then the network that is explained.

    All that training decides, the temperature too, is in its state, so that networks of one architecture share a graph.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, trained: Checkpoint | GivenClassifier) -> None:
        super().__init__()
        self.network = replace(trained, temperature=1.0).explained("corrected")
        self.register_buffer("mean", torch.tensor(trained.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.std).view(-1, 1, 1))
        self.register_buffer("temperature", torch.tensor(float(trained.temperature)))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std) / self.temperature


@dataclass(frozen=True, eq=False)
class _Traced:
    """What the models of one architecture share: the graph, without weights, and the files that MLflow adds to it."""

    program: ExportedProgram
    about: Model
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path, about: Model) -> "_Traced":
        program = torch.export.load(folder / "data/model.pt2")
        program.state_dict.clear()
        return cls(program, about, {path.name: path.read_bytes() for path in folder.glob("*.*")})  # all but MLmodel

    def write(self, classifier: Classifier, example: Tensor, folder: Path, about: Model) -> bool:
        """Write *classifier* into *folder* with this graph. Returns False, and writes nothing, where the graph gives
        other scores (2, K) for *example* (2, C, S, S): a network of the user's own may compute by its weights."""
        self.program.state_dict.update(classifier.state_dict(keep_vars=True))
        try:
            with torch.no_grad():
                scores = self.program.module(check_guards=False)(example)
                if not torch.allclose(scores, classifier(example), rtol=1e-5, atol=1e-5):
                    return False
            (folder / "data").mkdir(parents=True)
            torch.export.save(self.program, folder / "data/model.pt2")
        finally:
            self.program.state_dict.clear()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for part in ("signature", "metadata", "flavors", "saved_input_example_info", "model_size_bytes"):
            setattr(about, part, getattr(self.about, part))
        return True


def save(store: Store, trial: str, folder: Path, about: Model) -> None:
    """Write the trial's network into *folder*, as the model that *about* describes, and complete *about*.

    A network is traced where none of its architecture was, which takes most of the time. Raises what torch.export
    raises where it cannot be traced.
    """
    files, example = store.read_checkpoint(trial), _example(store)
    classifier = Classifier(checkpoint.from_files(files))
    record = json.loads(files["checkpoint.json"])
    architecture = json.dumps({**record, "weights_sha256": None, "temperature": None})
    key = architecture, example.tobytes()
    with _in_use:
        traced = _traced.get(key)
        if traced and traced.write(classifier, torch.from_numpy(example), folder, about):
            return
        _trace(classifier, record["classes"], example, folder, about)
        _traced[key] = _Traced.read(folder, about)
        if len(_traced) > KEPT:
            del _traced[next(iter(_traced))]


def _trace(classifier: Classifier, classes: list[str], example: NDArray[Any], folder: Path, about: Model) -> None:
    number = np.dtype("float32")
    inputs = Schema([TensorSpec(number, (-1, *example.shape[1:]))])
    mlflow.pytorch.save_model(
        classifier,
        str(folder),
        mlflow_model=about,
        signature=ModelSignature(inputs, Schema([TensorSpec(number, (-1, len(classes)))])),
        input_example=example,
        metadata={
            "input": "pixels in [0, 1]: images, channels, height, width",
            "output": "class scores, whose softmax is calibrated on validation images",
            "classes": classes,
        },
        pip_requirements=[f"torch=={re.sub(r'[+].*', '', torch.__version__)}"],
        serialization_format="pt2",
    )


def untraceable(store: Store, trial: str) -> Exception | None:
    """What tracing the trial's network, or reading its graph again, raises, if it is the network that cannot be traced:
    for lack of memory, or of room for what `save` writes, it may do so another time."""
    trained, example = checkpoint.from_files(store.read_checkpoint(trial)), torch.from_numpy(_example(store))
    written = io.BytesIO()
    try:
        program = torch.export.export(Classifier(trained), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, written)
        torch.export.load(written)
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
