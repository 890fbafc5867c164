"""Networks in MLflow predict what their checkpoints predict."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import made
from torch import nn
from tracking.logged import CROSS_ENTROPY, PIXELS, SUPCON, TRAINED, TRIPLET, Stored, scores, write_store

from scl_ray import tracking
from scl_ray.checkpoint import Checkpoint
from scl_ray.given.checkpoint import GivenClassifier


class Choosy(nn.Module):
    """What it computes depends on the pixels, which no graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.mean((2, 3)) if images.mean() > 0 else images.amax((2, 3)))


class Gated(nn.Module):
    """What it computes depends on its weights, as they were when they were loaded."""

    def __init__(self, offset: float = -1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)
        nn.init.constant_(self.layer.bias, offset)
        self.register_load_state_dict_post_hook(lambda module, _: module.choose())
        self.choose()

    def choose(self) -> None:
        self.bright = bool(self.layer.bias.sum() > 0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.amax((2, 3)) if self.bright else images.mean((2, 3)))


def given(model: str, network: nn.Module) -> GivenClassifier:
    classes = tuple(map(str, range(10)))
    return GivenClassifier(model, {}, network.eval(), None, 2.0, classes, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is traced in a test, before which nothing was."""
    from scl_ray.tracking import classifier

    modules: list[nn.Module] = []
    export = torch.export.export

    def listed(module: nn.Module, *arguments: Any, **options: Any) -> torch.export.ExportedProgram:
        modules.append(module)
        return export(module, *arguments, **options)

    monkeypatch.setattr(torch.export, "export", listed)
    monkeypatch.setattr(classifier, "_traced", {})
    return modules


def assert_predicts(stored: Stored, trial: str, network: Checkpoint | GivenClassifier) -> None:
    """The trial's model, loaded without pickles, predicts what *network* predicts, for one image and for more."""
    from mlflow import pytorch

    loaded = pytorch.load_model(f"runs:/{stored.trials[trial].info.run_id}/network")
    # Sums of float32 in another order.
    assert torch.allclose(loaded(PIXELS), scores(network), atol=1e-5)
    assert torch.allclose(loaded(PIXELS[:1]), scores(network)[:1], atol=1e-5)


@pytest.fixture
def loadable(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded from *uri*, and MLflow refuses whatever has to be unpickled."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@pytest.mark.usefixtures("loadable")
def test_what_is_loaded_predicts_what_the_checkpoint_predicts(uri: str, tmp_path: Path) -> None:
    from mlflow import pyfunc
    from mlflow.exceptions import MlflowException

    own, probe, choosy = made("own_layer"), made("linear_probe"), given("tracking.test_networks:Choosy", Choosy())
    choosy_trial = TRIPLET["trial"]
    store = write_store(tmp_path, "nets", {CROSS_ENTROPY["trial"]: own, SUPCON["trial"]: probe, choosy_trial: choosy})
    records = [CROSS_ENTROPY, SUPCON, TRIPLET]
    tracking.log_sweep(uri, "nets", records, TRAINED)
    # Each call logs one at least, so that many short ones come to an end.
    assert tracking.log_networks(uri, "nets", store, records, go_on=lambda: False) == {SUPCON["trial"], choosy_trial}
    assert tracking.log_networks(uri, "nets", store, records) == set()
    stored = Stored(uri, "nets")
    assert len(stored.client.search_logged_models([stored.parent.info.experiment_id])) == 2

    for trial, network in ((CROSS_ENTROPY, own), (SUPCON, probe)):
        assert_predicts(stored, trial["trial"], network)

    served = pyfunc.load_model(stored.trials[SUPCON["trial"]].data.tags["network"])
    assert np.allclose(served.predict(PIXELS.numpy()), scores(probe).numpy(), atol=1e-5)
    with pytest.raises(MlflowException, match="shape"):
        served.predict(PIXELS[:, :, 1:].numpy())
    assert served.metadata.metadata["classes"] == list(probe.classes)
    assert served.input_example.shape == (2, 3, 16, 16)
    assert stored.trials[choosy_trial].data.tags["network"].startswith("none: ")


@pytest.mark.usefixtures("loadable")
def test_networks_of_one_architecture_are_traced_once(uri: str, tmp_path: Path, traced: list[nn.Module]) -> None:
    from mlflow import models

    one, other = made(), made()
    for tensor in [*other.backbone.parameters(), other.weight, other.bias]:
        tensor.data = tensor * 1.5
    other = replace(other, temperature=0.6)
    networks = {CROSS_ENTROPY["trial"]: one, SUPCON["trial"]: other, TRIPLET["trial"]: made("own_layer")}
    store, records = write_store(tmp_path, "alike", networks), [CROSS_ENTROPY, SUPCON, TRIPLET]
    tracking.log_sweep(uri, "alike", records, TRAINED)
    assert tracking.log_networks(uri, "alike", store, records) == set()
    assert len(traced) == 2

    stored = Stored(uri, "alike")
    for trial, network in networks.items():
        assert_predicts(stored, trial, network)
    first, second = (models.get_model_info(stored.trials[r["trial"]].data.tags["network"]) for r in records[:2])
    for part in ("signature", "metadata", "flavors", "saved_input_example_info"):
        assert getattr(first, part) == getattr(second, part) is not None
    assert (first.run_id, first.model_id, first.model_uuid) != (second.run_id, second.model_id, second.model_uuid)
    assert second.run_id == stored.trials[SUPCON["trial"]].info.run_id


@pytest.mark.usefixtures("loadable")
def test_a_network_whose_graph_depends_on_its_weights_has_its_own(
    uri: str, tmp_path: Path, traced: list[nn.Module]
) -> None:
    trials = [record["trial"] for record in (CROSS_ENTROPY, SUPCON, TRIPLET)]
    made_gated = [given("tracking.test_networks:Gated", Gated(offset)) for offset in (-1.0, 1.0, 2.0)]
    networks = dict(zip(trials, made_gated, strict=True))
    store, records = write_store(tmp_path, "gated", networks), [CROSS_ENTROPY, SUPCON, TRIPLET]
    tracking.log_sweep(uri, "gated", records, TRAINED)
    assert tracking.log_networks(uri, "gated", store, records) == set()
    assert len(traced) == 2
    for trial, network in networks.items():
        assert_predicts(Stored(uri, "gated"), trial, network)


@pytest.mark.usefixtures("traced")
def test_a_network_whose_graph_cannot_be_read_again_has_no_model(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path, "unreadable", {SUPCON["trial"]: made()})
    tracking.log_sweep(uri, "unreadable", [SUPCON], TRAINED)

    def unreadable(_: object) -> None:
        raise ValueError("unknown operator")

    monkeypatch.setattr(torch.export, "load", unreadable)
    assert tracking.log_networks(uri, "unreadable", store, [SUPCON]) == set()
    tags = Stored(uri, "unreadable").trials[SUPCON["trial"]].data.tags
    assert tags["network"] == "none: ValueError: unknown operator"


@pytest.mark.usefixtures("traced")
def test_few_graphs_are_kept_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.models import Model

    from scl_ray.tracking import classifier

    monkeypatch.setattr(classifier, "KEPT", 1)
    networks = {"one": made(), "two": made("own_layer"), "three": made("own_layer")}
    store = write_store(tmp_path, "few", networks)
    for trial in networks:
        classifier.save(store, trial, tmp_path / trial, Model())
        (kept,) = classifier._traced.values()
        assert not kept.program.state_dict


def test_again_logs_no_second_network_and_a_new_training_replaces_it(uri: str, tmp_path: Path) -> None:
    store = write_store(tmp_path, "twice", {SUPCON["trial"]: made()})
    tracking.log_sweep(uri, "twice", [SUPCON], TRAINED)

    def networks(finished: str) -> list[tuple[str, int]]:
        tracking.log_networks(uri, "twice", store, [SUPCON | {"finished": finished}])
        stored = Stored(uri, "twice")
        models = stored.client.search_logged_models([stored.parent.info.experiment_id])
        return [(model.model_uri, model.last_updated_timestamp) for model in models]

    (first,) = networks("2026-01-01T00:00:00Z")
    (again,) = networks("2026-01-01T00:00:00Z")
    (replaced,) = networks("2026-01-02T00:00:00Z")
    assert first == again
    assert replaced[0] == first[0]
    assert replaced[1] > first[1]


def test_a_network_that_cannot_be_written_just_now_is_written_another_time(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path, "crowded", {SUPCON["trial"]: made()})
    tracking.log_sweep(uri, "crowded", [SUPCON], TRAINED)

    save = torch.export.save

    def no_room(program: torch.export.ExportedProgram, file: object) -> None:
        if not isinstance(file, io.BytesIO):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(program, file)

    with monkeypatch.context() as full:
        full.setattr(torch.export, "save", no_room)
        assert tracking.log_networks(uri, "crowded", store, [SUPCON]) == {SUPCON["trial"]}
    assert "network" not in Stored(uri, "crowded").trials[SUPCON["trial"]].data.tags
    assert tracking.log_networks(uri, "crowded", store, [SUPCON]) == set()
    assert Stored(uri, "crowded").trials[SUPCON["trial"]].data.tags["network"].startswith("models:/")
