"""Read-outs against scikit-learn, numpy and their definitions, on the pixels of real digits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from scl_ray import datasets, readout
from scl_ray.config import DatasetConfig


@pytest.fixture(scope="module")
def digits():
    """Pixels as features: training and test, with labels."""
    dataset = datasets.load(DatasetConfig(name="digits", image_size=8))

    def flat(images):
        return torch.tensor(images[:, 0]).flatten(1) / 255

    return (
        functional.normalize(flat(dataset.train_images), dim=1),
        torch.tensor(dataset.train_labels),
        functional.normalize(flat(dataset.test_images), dim=1),
        torch.tensor(dataset.test_labels),
    )


class TestLinearProbe:
    def test_is_scikit_learns_logistic_regression(self, digits):
        x, y, queries, _ = digits
        weight, bias = readout.linear_probe(x, y, 10)
        strength = 1 / (len(x) * readout.PENALTY)  # scikit-learn sums the losses where they are averaged here
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=20_000).fit(x.double().numpy(), y.numpy())
        ours = functional.linear(queries, weight, bias).softmax(dim=1)
        assert np.abs(ours.numpy() - theirs.predict_proba(queries.double().numpy())).max() < 1e-4

    def test_has_converged(self, digits):
        x, y, _, _ = digits
        weight, bias = (t.double().requires_grad_() for t in readout.linear_probe(x, y, 10))
        loss = functional.cross_entropy(functional.linear(x.double(), weight, bias), y)
        (loss + readout.PENALTY / 2 * weight.square().sum()).backward()
        assert weight.grad.abs().max() < 1e-6
        assert bias.grad.abs().max() < 1e-6

    def test_is_deterministic_and_leaves_the_random_state_alone(self, digits):
        x, y, _, _ = digits
        first = readout.linear_probe(x, y, 10)
        torch.rand(3)
        state = torch.get_rng_state()
        second = readout.linear_probe(x, y, 10)
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_of_separable_classes_is_finite(self):
        x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        y = torch.tensor([0, 0, 1, 1])
        weight, bias = readout.linear_probe(x, y, 2)
        assert weight.isfinite().all()
        assert torch.equal(functional.linear(x, weight, bias).argmax(dim=1), y)


def test_prototypes_are_the_directions_of_the_class_means(digits):
    x, y, _, _ = digits
    scaled = x * torch.linspace(1, 9, len(x))[:, None]  # a feature's length does not matter
    ours = readout.prototypes(scaled, y, 10)
    for label in range(10):
        mean = x[y == label].double().mean(dim=0)
        assert torch.allclose(ours[label].double(), mean / mean.norm(), atol=1e-6)


@pytest.mark.parametrize("k", [1, 20, 10_000])
def test_nearest_neighbours_are_scikit_learns(digits, k):
    x, y, queries, _ = digits
    ours = readout.nearest_neighbours(x * 3, y, queries * 5, 10, k)
    theirs = KNeighborsClassifier(min(k, len(x)), metric="cosine").fit(x.numpy(), y.numpy()).predict(queries.numpy())
    assert (ours.numpy() == theirs).mean() > 0.995  # of equally distant neighbours either may count


def test_read_out_layer():
    weight, bias, x = torch.randn(4, 6), torch.randn(4), torch.randn(5, 6)
    plain = readout.ReadOut(weight, bias, normalise=False)
    assert torch.allclose(plain(x), x @ weight.T + bias, atol=1e-6)
    scaled = readout.ReadOut(weight, bias, normalise=True, temperature=2.0)
    assert torch.allclose(scaled(x), (x / x.norm(dim=1, keepdim=True) @ weight.T + bias) / 2, atol=1e-6)
