import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scl_ray.attribution import Batch, cost, explain, explain_many, explains_class, shared_forward


@pytest.fixture(scope="module")
def exact(network):
    """The trained network in float64, in which the formulas are written down."""
    return copy.deepcopy(network).double()


def input_x_gradient(score, images):
    images = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(score(images).sum(), images)
    return (images * gradient).sum(1).float()


def close(found, expected):
    # Gradients of a ResNet in float32 against float64: 1e-5 of the largest value, as rounding grows with the values.
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max() and expected.abs().max() > 1e-3


def test_prototype_is_the_cosine_to_the_class_s_prototype(network, exact, images, targets):
    def score(x):
        return F.cosine_similarity(exact.backbone(x), exact.prototypes[targets], dim=1)

    found = explain(network, images, targets, "input_x_gradient", target="prototype")
    assert close(found, input_x_gradient(score, images))
    assert not close(found, explain(network, images, targets, "input_x_gradient"))


def test_label_free_is_the_inner_product_with_itself_held_fixed(network, exact, images, targets):
    fixed = exact.backbone(images.double()).detach()
    found = explain(network, images, targets, "input_x_gradient[target=label_free]")
    assert close(found, input_x_gradient(lambda x: (exact.backbone(x) * fixed).sum(1), images))
    assert torch.equal(found, explain(network, images, targets.flip(0), "input_x_gradient[target=label_free]"))
    assert not explains_class("input_x_gradient[target=label_free]")
    assert explains_class("input_x_gradient[target=corpus]")


def test_corpus_is_the_similarity_to_the_class_less_that_to_all_others(network, exact, images, targets, reference):
    others, labels = reference
    known = exact.backbone(others.double()).detach()

    def score(x):
        cosines = F.cosine_similarity(exact.backbone(x)[:, None], known[None], dim=2)
        same = targets[:, None] == labels
        pairs = zip(cosines, same, strict=True)
        return torch.stack([row[is_same].mean() - row[~is_same].mean() for row, is_same in pairs])

    given = {"reference": others, "reference_labels": labels}
    found = explain(network, images, targets, "input_x_gradient[target=corpus]", **given)
    assert close(found, input_x_gradient(score, images))
    # Without labels, the classes that the network predicts: on these images the same but for its errors.
    with torch.no_grad():
        predicted = network(others).argmax(1)
    unlabelled = explain(network, images, targets, "input_x_gradient[target=corpus]", reference=others)
    given["reference_labels"] = predicted
    assert torch.equal(unlabelled, explain(network, images, targets, "input_x_gradient[target=corpus]", **given))


def test_a_classifier_without_names_for_its_parts_is_asked_the_same(network, images, targets, reference):
    # The features and the last layer as a plain Sequential: its embedding is what the last linear layer reads, and its
    # prototypes are those of the reference.
    linear = nn.Linear(*network.readout.weight.T.shape)
    plain = nn.Sequential(copy.deepcopy(network.backbone), linear).eval()
    free = explain(network, images, targets, "saliency[target=label_free]")
    assert torch.equal(explain(plain, images, targets, "saliency[target=label_free]"), free)
    others, labels = reference
    with torch.no_grad():
        unit = F.normalize(network.backbone(others), dim=1)
    network = copy.deepcopy(network)
    network.prototypes = F.normalize(torch.stack([unit[labels == k].mean(0) for k in range(10)]), dim=1)
    given = {"reference": others, "reference_labels": labels}
    found = explain(plain, images, targets, "saliency[target=prototype]", **given)
    assert close(found, explain(network, images, targets, "saliency[target=prototype]"))


def test_every_target_is_explained_by_gradients_cams_and_integration(network, images, targets, reference):
    batch = Batch(network, images[:4], targets[:4], reference=reference[0], reference_labels=reference[1])
    names = [
        f"{method}[{parameters}target={target}]"
        for target in ("prototype", "label_free", "corpus")
        for method, parameters in (("grad_cam", ""), ("saliency", ""), ("integrated_gradients", "steps=3,"))
    ]
    found = explain_many(batch, names)
    assert list(found) == names
    for maps in found.values():
        assert maps.isfinite().all()
        assert (maps.flatten(1).std(1) > 0).all()
    assert len({tuple(maps.flatten().tolist()) for maps in found.values()}) == len(names)
    # Each question takes a forward and a backward pass of its own, beside the integration's.
    assert cost(names, 32) == 3 * (3 + 9)
    assert shared_forward(batch, names).keys() == {"class_score", "prototype", "label_free", "corpus"}


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("class", {}, "target must be class_score or prototype or label_free or corpus, not 'class'"),
        ("corpus", {}, "give reference="),
        ("corpus", {"reference_labels": torch.zeros(80, dtype=torch.int64)}, "no reference image is of class"),
    ],
)
def test_what_cannot_be_asked_is_refused(network, images, targets, reference, target, given, message):
    given = {"reference": reference[0], **given} if given else {}
    with pytest.raises(ValueError, match=message):
        explain(network, images, targets, "saliency", target=target, **given)


def test_a_foil_is_needed(network, images, reference):
    same, labels = reference[0][reference[1] == 3], torch.full((8,), 3)
    with pytest.raises(ValueError, match="there is no foil"):
        explain(network, images[:1], labels[:1], "saliency[target=corpus]", reference=same, reference_labels=labels)
    with pytest.raises(ValueError, match="targets must be classes from 0 to 9"):
        explain(network, images[:1], labels[:1] + 7, "saliency")


def test_a_network_without_an_embedding_is_refused(images, targets):
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="Sequential has no linear layer whose input could be its embedding"):
        explain(network, images, targets, "saliency[target=label_free]")
