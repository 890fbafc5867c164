"""Geometry of embeddings against scikit-learn, scipy and the papers' formulas written with whole matrices."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import silhouette_score
from torch.nn import functional

from scl_ray import geometry

CLASSES, SIZE = 5, 12


@pytest.fixture(params=["balanced", "unbalanced"])
def clusters(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clusters, float32, none at the origin, and labels 0, 2, 4, … of which some may have few images."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(120) % CLASSES if request.param == "balanced" else torch.arange(120).sqrt().long() // 2 % CLASSES
    means = 2 * torch.randn(CLASSES, SIZE, generator=generator) + 3
    return means[own] + torch.randn(120, SIZE, generator=generator), 2 * own


def unit(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.double(), dim=1)


def simplex(classes: int, size: int) -> torch.Tensor:
    """A simplex equiangular tight frame: (K, d) float64."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    rotation = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(1)).double()).Q
    return functional.pad(corners, (0, size - classes)) @ rotation


class TestSilhouette:
    def test_is_scikit_learns(self, clusters):
        features, labels = clusters
        expected = silhouette_score(features.double().numpy(), labels.numpy(), metric="cosine")
        assert geometry.silhouette(unit(features), labels) == pytest.approx(expected, abs=1e-12)

    def test_of_an_image_alone_in_its_class_is_zero(self, clusters):
        features, labels = clusters
        labels[0] = 1
        expected = silhouette_score(features.double().numpy(), labels.numpy(), metric="cosine")
        assert geometry.silhouette(unit(features), labels) == pytest.approx(expected, abs=1e-12)

    def test_of_features_that_are_zero(self, clusters):
        features, labels = clusters
        features[:3] = 0  # their cosine with anything, even with themselves, is taken as 0; with itself it counts not
        expected = silhouette_score(features.double().numpy(), labels.numpy(), metric="cosine")
        assert geometry.silhouette(unit(features), labels) == pytest.approx(expected, abs=1e-12)

    def test_of_collapsed_classes_is_one_and_of_one_point_zero(self):
        labels = torch.arange(30) % 3
        assert geometry.silhouette(unit(simplex(3, 8)[labels]), labels) == pytest.approx(1, abs=1e-12)
        assert geometry.silhouette(unit(torch.full((30, 8), 0.3)), labels) == 0

    def test_is_undefined_of_one_class_and_of_images_that_are_all_alone(self):
        features = unit(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
        assert geometry.silhouette(features, torch.zeros(6, dtype=torch.long)) is None
        assert geometry.silhouette(features, torch.arange(6)) is None


def scatter(features: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Within- and between-class covariance (d, d), classes weighing the same, and centred means (K, d)."""
    x, y = features.double().numpy(), labels.numpy()
    groups = [x[y == label] for label in np.unique(y)]
    within = np.mean([np.cov(group.T, bias=True) for group in groups], axis=0)
    means = np.stack([group.mean(axis=0) for group in groups])
    return within, np.cov(means.T, bias=True), means - means.mean(axis=0)


def test_within_between_ratio_is_that_of_the_traces(clusters):
    within, between, _ = scatter(*clusters)
    expected = np.trace(within) / np.trace(between)
    assert geometry.within_between_ratio(*clusters) == pytest.approx(expected, rel=1e-10)


def test_alignment_is_the_mean_over_all_pairs_of_one_class(clusters):
    features, labels = clusters
    features[0] = 0
    x, y = unit(features).numpy(), labels.numpy()
    squares = np.concatenate([pdist(x[y == label], "sqeuclidean") for label in np.unique(y)])
    assert geometry.alignment(unit(features), labels) == pytest.approx(squares.mean(), rel=1e-12)


def test_uniformity_is_that_of_all_pairs(clusters, monkeypatch):
    features, _ = clusters
    features[0] = 0
    expected = np.log(np.exp(-2 * pdist(unit(features).numpy(), "sqeuclidean")).mean())
    assert geometry.uniformity(unit(features)) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(geometry, "CHUNK", 7)
    assert geometry.uniformity(unit(features)) == pytest.approx(expected, rel=1e-12)


def test_uniformity_reaches_its_bounds():
    ends = unit(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert geometry.uniformity(ends) == pytest.approx(-8)
    assert geometry.uniformity(ends[[0, 0]]) == pytest.approx(0)
    assert geometry.uniformity(ends[:1]) is None


class TestEffectiveRank:
    @pytest.mark.parametrize("rank", [1, 2, 5])
    def test_of_equal_singular_values_is_their_number(self, rank):
        axes = torch.eye(7, dtype=torch.float64)[:rank]
        assert geometry.effective_rank(torch.cat([axes, -axes]) + 10) == pytest.approx(rank, rel=1e-9)

    def test_is_the_formulas(self, clusters):
        features = clusters[0].double().numpy()
        values = np.sqrt(np.linalg.eigvalsh(np.cov(features.T)))
        shares = values / values.sum()
        expected = math.exp(-sum(p * math.log(p) for p in shares))
        assert geometry.effective_rank(clusters[0]) == pytest.approx(expected, rel=1e-9)

    def test_of_equal_features_is_undefined(self):
        assert geometry.effective_rank(torch.full((9, 4), 0.1)) is None


class TestNeuralCollapse:
    def test_is_papyans_formulas(self, clusters):
        features, labels = clusters
        weight = torch.randn(2 * CLASSES, SIZE, generator=torch.Generator().manual_seed(2))
        predictions = labels.clone()
        predictions[::3] = 0
        found = geometry.neural_collapse(features, labels, weight, predictions)
        within, between, centred = scatter(features, labels)
        assert found["nc1"] == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / CLASSES)
        norms = np.linalg.norm(centred, axis=1)
        cosines = [
            centred[i] @ centred[j] / norms[i] / norms[j] for i in range(CLASSES) for j in range(CLASSES) if i != j
        ]
        assert found["nc2_equinorm"] == pytest.approx(np.std(norms) / np.mean(norms))
        assert found["nc2_equiangularity"] == pytest.approx(np.std(cosines))
        assert found["nc2_maximal_angle"] == pytest.approx(np.mean(np.abs(np.array(cosines) + 1 / (CLASSES - 1))))
        own = weight[::2].double().numpy()  # the labels are even
        assert found["nc3"] == pytest.approx(
            np.linalg.norm(own / np.linalg.norm(own) - centred / np.linalg.norm(centred))
        )
        x, y = features.double().numpy(), labels.numpy()
        means = np.stack([x[y == label].mean(axis=0) for label in np.unique(y)])
        nearest = 2 * np.linalg.norm(x[:, None] - means, axis=2).argmin(axis=1)
        assert 0 < found["nc4"] < 1
        assert found["nc4"] == pytest.approx((nearest != predictions.numpy()).mean())

    def test_does_not_depend_on_chunks_nor_on_scale(self, clusters, monkeypatch):
        features, labels = clusters
        weight = torch.randn(2 * CLASSES, SIZE, generator=torch.Generator().manual_seed(2))
        once = geometry.neural_collapse(features, labels, weight, labels)
        monkeypatch.setattr(geometry, "CHUNK", 7)
        assert geometry.neural_collapse(features, labels, weight, labels) == pytest.approx(once, rel=1e-10)
        assert geometry.neural_collapse(1024 * features, labels, 3 * weight, labels) == pytest.approx(once, rel=1e-6)

    def test_of_a_simplex_is_zero(self):
        labels = torch.arange(40) % 4
        means = simplex(4, 9)
        features = (means + 5)[labels]  # the global mean is not zero
        found = geometry.neural_collapse(features, labels, 3 * means, labels)
        assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)

    def test_nc3_of_weights_against_the_means_is_two(self):
        labels = torch.arange(40) % 4
        means = simplex(4, 9)
        assert geometry.neural_collapse(means[labels], labels, -means, labels)["nc3"] == pytest.approx(2)

    @pytest.mark.parametrize("labels", [torch.arange(40) % 4, torch.zeros(40, dtype=torch.long)])
    def test_of_means_that_coincide_is_undefined(self, labels):
        found = geometry.neural_collapse(torch.full((40, 6), 0.1), labels, torch.ones(4, 6), labels)
        assert len(found) == 6
        assert set(found.values()) == {None}


def test_clustering_normalises(clusters):
    features, labels = clusters
    lengths = torch.linspace(0.1, 9, len(features))[:, None]
    once = geometry.clustering(features, labels)
    assert geometry.clustering(lengths * features, labels) == pytest.approx(once, rel=1e-5)  # of float32 products
    assert once["silhouette"] == geometry.silhouette(unit(features), labels)


def test_clustering_of_one_point_has_no_value_that_is_not_finite():
    found = geometry.clustering(torch.ones(12, 3), torch.arange(12) % 3)
    assert found["within_between_ratio"] is None
    assert found["effective_rank"] is None
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert (found["alignment"], found["uniformity"]) == pytest.approx((0, 0), abs=1e-12)
