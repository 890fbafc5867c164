"""Networks in MLflow predict what their checkpoints predict."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import made
from torch import nn
from tracking.logged import CROSS_ENTROPY, PIXELS, SUPCON, TRAINED, TRIPLET, Stored, scores, write_store

from scl_ray import tracking
from scl_ray.given.checkpoint import GivenClassifier


class Choosy(nn.Module):
    """What it computes depends on the pixels, which no graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.mean((2, 3)) if images.mean() > 0 else images.amax((2, 3)))


def given(model: str, network: nn.Module) -> GivenClassifier:
    classes = tuple(map(str, range(10)))
    return GivenClassifier(model, {}, network.eval(), None, 2.0, classes, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_what_is_loaded_predicts_what_the_checkpoint_predicts(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import pyfunc, pytorch
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

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # MLflow refuses, then, whatever has to be unpickled.
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    for trial, network in ((CROSS_ENTROPY, own), (SUPCON, probe)):
        run = stored.trials[trial["trial"]]
        loaded = pytorch.load_model(f"runs:/{run.info.run_id}/network")
        # Sums of float32 in another order.
        assert torch.allclose(loaded(PIXELS), scores(network), atol=1e-5)
        assert torch.allclose(loaded(PIXELS[:1]), scores(network)[:1], atol=1e-5)

    served = pyfunc.load_model(run.data.tags["network"])
    assert np.allclose(served.predict(PIXELS.numpy()), scores(probe).numpy(), atol=1e-5)
    with pytest.raises(MlflowException, match="shape"):
        served.predict(PIXELS[:, :, 1:].numpy())
    assert served.metadata.metadata["classes"] == list(probe.classes)
    assert served.input_example.shape == (2, 3, 16, 16)
    assert stored.trials[choosy_trial].data.tags["network"].startswith("none: ")


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

    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with monkeypatch.context() as full:
        full.setattr(torch.export, "save", no_room)
        assert tracking.log_networks(uri, "crowded", store, [SUPCON]) == {SUPCON["trial"]}
    assert "network" not in Stored(uri, "crowded").trials[SUPCON["trial"]].data.tags
    assert tracking.log_networks(uri, "crowded", store, [SUPCON]) == set()
    assert Stored(uri, "crowded").trials[SUPCON["trial"]].data.tags["network"].startswith("models:/")
