import pytest
import torch

from scl_ray.attribution import Batch, explain
from scl_ray.metrics import score, score_many, sufficiency


@pytest.fixture(scope="module")
def others(reference):
    """Twenty images, two of each class."""
    return reference[0][::4]


def scaled(attribution):
    values = attribution.double().flatten()
    return values / max(abs(float(value)) for value in values)


def by_hand(network, images, maps, reference, method, threshold):
    with torch.no_grad():
        classes, predicted = network(reference).argmax(1), network(images).argmax(1)
    others = [
        scaled(explain(network, image[None], k[None], method)[0]) for image, k in zip(reference, classes, strict=True)
    ]
    largest = max(float((a - b).square().sum()) ** 0.5 for a in others for b in others)
    values = []
    for attribution, own in zip(maps, predicted, strict=True):
        near = [float((scaled(attribution) - other).square().sum()) ** 0.5 <= threshold * largest for other in others]
        same = [bool(k == own) for close, k in zip(near, classes, strict=True) if close]
        values.append(sum(same) / len(same) if same else float("nan"))
    return torch.tensor(values)


@pytest.mark.parametrize(("method", "threshold"), [("grad_cam", 0.3), ("input_x_gradient", 0.5)])
def test_equals_a_float64_loop(network, images, targets, maps, others, method, threshold):
    given = (network, images, targets, maps[method])
    ours = score("sufficiency", *given, method=method, reference=others, threshold=threshold)
    hand = by_hand(network, images, maps[method], others, method, threshold)
    assert torch.allclose(ours, hand, rtol=0, atol=1e-5, equal_nan=True)
    assert len(hand.unique()) > 5


def test_it_is_undefined_where_no_map_is_alike(network, images, targets, maps, others):
    given = (network, images, targets, maps["saliency"])
    values = score("sufficiency[threshold=0.01]", *given, method="saliency", reference=others)
    assert values.isnan().all()


def test_the_reference_is_explained_once_and_the_batch_does_not_matter(
    network, images, targets, maps, others, monkeypatch
):
    explained = []
    explain_many = sufficiency.attribution.explain_many

    def counting(batch, methods):
        explained.append((len(batch.images), list(methods), list(batch.image_ids)))
        return explain_many(batch, methods)

    monkeypatch.setattr(sufficiency.attribution, "explain_many", counting)
    kept, found = {}, []
    for part in (slice(0, 1), slice(1, 6), slice(6, 32)):
        batch = Batch(network, images[part], targets[part], reference=others, at_once=12, kept=kept)
        cells = [(method, "sufficiency") for method in ("grad_cam", "saliency")]
        found.append(score_many(batch, {method: maps[method][part] for method, _ in cells}, cells))
    assert [counted[:2] for counted in explained] == [(12, ["grad_cam", "saliency"]), (8, ["grad_cam", "saliency"])]
    assert max(max(ids) for _, _, ids in explained) < 0  # drawn as for no image that is scored
    for cell in cells:
        together = score("sufficiency", network, images, targets, maps[cell[0]], method=cell[0], reference=others)
        parts = torch.cat([scores[cell].values for scores in found])
        assert torch.allclose(parts, together, rtol=0, atol=1e-5, equal_nan=True)


def test_flat_maps_of_the_reference_are_like_none(network, images, targets, maps):
    nothing = sufficiency._reference_maps(
        Batch(network, images[:1], targets[:1], reference=torch.zeros(3, 3, 32, 32)), {"input_x_gradient": None}
    )["input_x_gradient"]
    assert len(nothing[0]) == len(nothing[1]) == 0  # a gradient times zero
    given = (network, images[:2], targets[:2], maps["input_x_gradient"][:2])
    values = score("sufficiency", *given, method="input_x_gradient", reference=torch.zeros(3, 3, 32, 32))
    assert values.isnan().all()


def test_it_needs_a_reference_and_a_method(network, images, targets, maps):
    given = (network, images, targets, maps["grad_cam"])
    with pytest.raises(ValueError, match="sufficiency needs reference images"):
        score("sufficiency", *given, method="grad_cam")
    with pytest.raises(ValueError, match="sufficiency explains again"):
        score("sufficiency", *given, reference=images)
    with pytest.raises(ValueError, match="threshold must be a number above 0, not 0"):
        score("sufficiency[threshold=0]", *given, method="grad_cam", reference=images)
