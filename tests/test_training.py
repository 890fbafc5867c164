"""Training on real digits: it learns, it repeats itself, and an interrupted run ends where it would have."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch

from scl_ray import datasets, feed, training
from scl_ray.config import DatasetConfig, Trial
from scl_ray.datasets import Dataset
from scl_ray.finishing import finish
from scl_ray.training import Diverged, fit

TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The digits at a quarter of the usual number of pixels."""
    return datasets.load(DatasetConfig(name="digits", image_size=16))


@pytest.fixture(scope="module")
def few(digits) -> Dataset:
    """A hundred training images, for what does not need learning. Read-only, as from shared memory."""
    kept = {"train_images": digits.train_images[:100].copy(), "train_labels": digits.train_labels[:100].copy()}
    for array in kept.values():
        array.setflags(write=False)
    return dataclasses.replace(digits, **kept)


def trial(objective: dict | str, *, seed: int = 0, **settings) -> Trial:
    settings = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05, "augmentation": "crop"} | settings
    return Trial(
        dataset=DatasetConfig(name="digits"),
        objective={"name": objective} if isinstance(objective, str) else objective,
        backbone="resnet8",
        seed=seed,
        training=settings,
    )


def trained(dataset: Dataset, point: Trial, state=None):
    *_, (metrics, state) = fit(dataset, point, state=state)
    return metrics, state


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(state) -> dict[str, torch.Tensor]:
    return state["network"]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("objective", "read_out"),
    [
        ("cross_entropy", "own_layer"),
        ("triplet", "linear_probe"),
        ({"name": "supcon", "temperature": 0.1}, "linear_probe"),
    ],
)
def test_learns_digits(digits, objective, read_out):
    point = trial(objective, epochs=3)
    epochs = list(fit(digits, point))
    assert [metrics["epoch"] for metrics, _ in epochs] == [1, 2, 3]
    assert epochs[-1][0]["loss"] < epochs[0][0]["loss"]
    assert ("validation_accuracy" in epochs[0][0]) == (objective == "cross_entropy")
    checkpoint, metrics = finish(digits, point, epochs[-1][1])
    assert checkpoint.readout == read_out
    assert metrics[f"accuracy/{read_out}"] > 0.8
    assert metrics["accuracy/knn"] > 0.8
    assert metrics["accuracy/prototype"] > 0.6

    # What is explained is what was measured, on pixels normalised by the checkpoint's own mean and standard deviation.
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (checkpoint.mean, checkpoint.std))
    images = (torch.tensor(digits.test_images) / 255 - mean) / std
    with torch.no_grad():
        scores = checkpoint.explained("corrected")(images)
        published = checkpoint.explained("published")(images)
    accuracy = float((scores.argmax(dim=1).numpy() == digits.test_labels).mean())
    assert accuracy == pytest.approx(metrics[f"accuracy/{read_out}"], abs=1 / 360 + 1e-9)
    if read_out == "own_layer":
        assert torch.allclose(scores * checkpoint.temperature, published, atol=1e-4)
    assert not any(parameter.is_cuda for parameter in checkpoint.backbone.parameters())


RESUMED = [
    ("cross_entropy", {"optimizer": "sgd", "warmup_epochs": 1}),
    ("supcon", {"optimizer": "adamw", "learning_rate": 1e-3, "augmentation": "contrastive"}),
    ("triplet", {"optimizer": "radam", "learning_rate": 1e-3}),
    ("simclr", {"precision": "bfloat16", "augmentation": "contrastive_no_flip"}),
    ({"name": "ProxyAnchorLoss"}, {"augmentation": "crop_flip"}),
    ({"name": "TripletMarginLoss", "parameters": {"triplets_per_anchor": 5}}, {}),  # draws from the global generator
]


@pytest.mark.parametrize(("objective", "settings"), RESUMED)
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(few, objective, settings):
    point = trial(objective, **settings)
    torch.manual_seed(1)
    metrics, whole = trained(few, point)
    _, first = next(fit(few, point))
    torch.manual_seed(2)  # another process has other random numbers
    resumed_metrics, resumed = trained(few, point, saved_and_loaded(first))
    assert same(weights(whole), weights(resumed))
    assert {k: v for k, v in metrics.items() if k not in TIMES} == {
        k: v for k, v in resumed_metrics.items() if k not in TIMES
    }
    assert not same(weights(first), weights(whole))


def test_a_state_is_not_changed_by_training_on(few):
    run = fit(few, trial("cross_entropy"))
    _, first = next(run)
    before = {name: tensor.clone() for name, tensor in weights(first).items()}
    moments = [entry["momentum_buffer"].clone() for entry in first["optimizer"]["state"].values()]
    list(run)
    assert same(before, weights(first))
    assert all(
        torch.equal(kept, entry["momentum_buffer"])
        for kept, entry in zip(moments, first["optimizer"]["state"].values(), strict=True)
    )


def test_a_finished_state_resumes_to_nothing(few):
    point = trial("cross_entropy", epochs=1)
    _, state = trained(few, point)
    assert list(fit(few, point, state=state)) == []


def test_the_seed_decides_and_nothing_else(few):
    torch.manual_seed(1)
    _, first = trained(few, trial("supcon", epochs=1))
    torch.manual_seed(2)
    _, second = trained(few, trial("supcon", epochs=1))
    _, other = trained(few, trial("supcon", epochs=1, seed=1))
    assert same(weights(first), weights(second))
    assert not torch.equal(weights(first)["backbone.conv1.weight"], weights(other)["backbone.conv1.weight"])


def test_the_callers_random_numbers_are_left_alone(few):
    state = torch.get_rng_state()
    point = trial("cross_entropy", epochs=1)
    finish(few, point, trained(few, point)[1])
    assert torch.equal(state, torch.get_rng_state())


def test_a_losss_own_weights_are_trained(few):
    point = trial({"name": "ProxyAnchorLoss"})
    states = [state for _, state in fit(few, point)]
    assert not torch.equal(weights(states[0])["objective.proxies"], weights(states[-1])["objective.proxies"])


def test_learning_rate_warms_up_from_a_tenth_and_falls_as_a_cosine():
    settings = trial("supcon", epochs=10, warmup_epochs=2, learning_rate=0.5).training
    rates = [training.learning_rate(settings, step, 7) for step in range(70)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[7] == pytest.approx(0.5 * 0.55)
    assert rates[14] == pytest.approx(0.5)
    assert rates[14 + 28] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.25 * (1 + math.cos(math.pi * 55 / 56)))
    assert np.all(np.diff(rates[:15]) > 0)
    assert np.all(np.diff(rates[14:]) < 0)


def test_metrics_of_an_epoch(few):
    point = trial("cross_entropy", epochs=2, learning_rate=0.2)
    (first, _), (second, _) = fit(few, point)
    assert first["learning_rate"] == pytest.approx(training.learning_rate(point.training, 2, 3))
    assert second["learning_rate"] == pytest.approx(training.learning_rate(point.training, 5, 3))
    assert 0 <= first["validation_accuracy"] <= 1
    assert first["images_per_second"] * first["seconds"] >= 96


def test_a_loss_that_is_not_finite_stops_the_trial(few):
    run = fit(few, trial("cross_entropy", epochs=20, learning_rate=1e18))
    with pytest.raises(Diverged, match=r"epoch \d+, step \d+ of 3"):
        list(run)


def test_weights_that_are_not_finite_make_no_checkpoint(few):
    point = trial("triplet", epochs=1)
    _, state = trained(few, point)
    weights(state)["backbone.conv1.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(Diverged, match="epoch 1"):
        finish(few, point, state)


def test_a_batch_larger_than_the_data_is_all_of_it(few):
    metrics, _ = trained(few, trial("supcon", epochs=1, batch_size=512))
    assert math.isfinite(metrics["loss"])


@pytest.mark.filterwarnings("error")
def test_shared_read_only_images_are_used_without_a_copy(few):
    tensor = feed.on_device(few.train_images, torch.device("cpu"))
    assert tensor.data_ptr() == few.train_images.ctypes.data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("objective", ["cross_entropy", "supcon", "triplet"])
def test_the_same_seed_gives_the_same_weights_on_a_gpu(few, objective):
    states = []
    for _ in range(2):
        *_, (_, state) = fit(few, trial(objective), device="cuda")
        states.append(weights(state))
    assert same(*states)
    finish(few, trial(objective), state, device="cuda")
