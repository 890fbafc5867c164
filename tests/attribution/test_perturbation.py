from itertools import combinations
from math import comb

import captum.attr
import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearModel
from torch import nn

from scl_ray.attribution import Batch, cost, explain, explain_many, perturbation

GRID = "feature_ablation", "lime", "kernel_shap"


@pytest.fixture(scope="module")
def oblong(colour):
    """Images whose sides no patch divides."""
    return colour[..., :27, :30]


def grid_of(patch, height=27, width=30):
    across = -(-width // patch)
    return torch.tensor([[[[y // patch * across + x // patch for x in range(width)] for y in range(height)]]])


@pytest.mark.parametrize(("patch", "stride"), [(7, 4), (5, 5), (3, 2), (None, None)])
def test_occlusion_equals_captum(network, oblong, targets, patch, stride):
    side, step = patch or 3, stride or 1
    if patch is None:
        oblong, side, step = oblong[:1], 27 // 8, 1
    classes = targets[: len(oblong)]
    theirs = captum.attr.Occlusion(network).attribute(
        oblong, (3, side, side), strides=(3, step, step), target=classes, perturbations_per_eval=16
    )
    given = {} if patch is None else {"patch": patch, "stride": stride}
    ours = explain(network, oblong, classes, "occlusion", **given)
    assert (ours - theirs[:, 0]).abs().max() < 1e-5
    assert ours.abs().max() > 0.1


@pytest.mark.parametrize("patch", [7, None])
def test_feature_ablation_equals_captum(network, oblong, targets, patch):
    theirs = captum.attr.FeatureAblation(network).attribute(
        oblong, feature_mask=grid_of(patch or 3), target=targets[:4], perturbations_per_eval=8
    )
    ours = explain(network, oblong, targets[:4], "feature_ablation", patch=patch)
    assert (ours - theirs[:, 0]).abs().max() < 1e-5
    assert ours.abs().max() > 0.1


def test_lime_equals_captum_with_the_same_copies(network, oblong, targets):
    batch = Batch(network, oblong[:2], targets[:2], image_ids=[4, 9], at_once=11)
    spec = "lime[patch=9,samples=30]"
    ours = explain_many(batch, [spec])[spec]
    for n, stream in enumerate(batch.generators(spec)):
        kept = torch.from_numpy(stream.random((30, 12)) < 0.5).long()
        theirs = captum.attr.Lime(
            network,
            interpretable_model=SkLearnLinearModel("linear_model.Ridge", alpha=1.0),
            perturb_func=from_list(kept),
        ).attribute(oblong[n : n + 1], target=targets[n : n + 1], feature_mask=grid_of(9), n_samples=30)
        # Captum fits in float32.
        assert (ours[n] - theirs[0, 0]).abs().max() < 1e-5 * theirs.abs().max() + 1e-5
        assert theirs.abs().max() > 0.1


def from_list(coalitions):
    """The generator function that Captum asks for its copies."""

    def perturb(original, **given):
        for kept in coalitions:
            yield kept[None]

    return perturb


def test_kernel_shap_equals_captum_with_the_same_copies(monkeypatch, network, oblong, targets):
    drawn = []
    scores = perturbation._scores_of_coalitions
    monkeypatch.setattr(
        perturbation, "_scores_of_coalitions", lambda *given: drawn.append(given[2].long()) or scores(*given)
    )
    ours = explain(network, oblong[:2], targets[:2], "kernel_shap", patch=9, samples=40)
    for n in range(2):
        method = captum.attr.KernelShap(network)
        method.perturb_func = from_list(drawn[0][n])
        theirs = method.attribute(oblong[n : n + 1], target=targets[n], feature_mask=grid_of(9), n_samples=42)
        # Captum's constraints are weights of 1e6, in float32.
        assert (ours[n] - theirs[0, 0]).abs().max() < 1e-3 * theirs.abs().max()
        assert theirs.abs().max() > 0.1


def test_kernel_shap_tends_to_the_shapley_values(network, images, targets):
    image, patches = images[0], grid_of(16, 32, 32)[0, 0]
    value = {}
    with torch.no_grad():
        for size in range(5):
            for coalition in combinations(range(4), size):
                masked = image * torch.isin(patches, torch.tensor(coalition, dtype=torch.int64))
                value[coalition] = network(masked[None])[0, targets[0]].item()
    exact = torch.zeros(4)
    for feature in range(4):
        for coalition, before in value.items():
            if feature not in coalition:
                after = value[tuple(sorted((*coalition, feature)))]
                exact[feature] += (after - before) / (4 * comb(3, len(coalition)))
    ours = explain(network, images[:1], targets[:1], "kernel_shap", patch=16, samples=1000)
    # The values add up exactly, however few the copies; each has the error of what is drawn.
    few = explain(network, images[:1], targets[:1], "kernel_shap", patch=16, samples=8)
    for found in (ours, few):
        assert abs(found.sum().item() / 256 - exact.sum().item()) < 1e-4
    assert (ours[0] - exact[patches]).abs().max() < 0.05 * exact.abs().max()


def test_scores_that_add_up_over_the_patches_are_explained_exactly(colour):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)).eval()
    classes = torch.tensor([2, 0, 1, 1])
    patches = grid_of(8, 32, 32)[0, 0]
    shares = (colour * network[1].weight[classes].view_as(colour)).sum(1).flatten(1)
    wanted = torch.zeros(4, 16).index_add(1, patches.flatten(), shares)[:, patches]
    for method in ("feature_ablation", "kernel_shap"):
        ours = explain(network, colour, classes, method, patch=8)
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max() + 1e-5
    # The penalty makes lime's coefficients smaller.
    ours = explain(network, colour, classes, "lime", patch=8, samples=2000)
    assert (ours - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize(
    "method",
    ["occlusion[patch=8,stride=5]", "feature_ablation[patch=8]", "lime[patch=8,samples=40]",
     "kernel_shap[patch=8,samples=40]"],
)  # fmt: skip
def test_they_do_not_depend_on_the_batch(network, images, targets, method):
    whole = Batch(network, images[:6], targets[:6], image_ids=range(6))
    order = [4, 1, 3]
    part = Batch(network, images[order], targets[order], image_ids=order, at_once=7)
    ours, theirs = explain_many(whole, [method])[method][order], explain_many(part, [method])[method]
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


def test_other_targets_are_explained(network, images, targets):
    def cosine(x):
        return nn.functional.cosine_similarity(
            network.backbone(x), network.prototypes[targets[:2]].repeat(len(x) // 2, 1)
        )

    theirs = captum.attr.Occlusion(cosine).attribute(images[:2], (3, 8, 8), strides=(3, 4, 4), perturbations_per_eval=7)
    ours = explain(network, images[:2], targets[:2], "occlusion", patch=8, target="prototype")
    assert (ours - theirs[:, 0]).abs().max() < 1e-5
    assert ours.abs().max() > 0.01
    # Cosines are small, and lime's penalty does not grow with them to nothing.
    assert (
        explain(network, images[:2], targets[:2], "lime", patch=8, target="prototype").abs().amax((1, 2)) > 0.01
    ).all()


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("occlusion", {"patch": 33}, "patch=33 is larger than the images, which are 32x32 pixels"),
        ("occlusion", {"patch": 4, "stride": 5}, "a stride of 5 leaves gaps between patches of 4 pixels"),
        ("kernel_shap", {"samples": 100}, "64 patches need at least 128 samples, not 100"),
        *[(method, {"patch": 32}, "patch=32 is all of the image") for method in GRID],
        ("occlusion", {"patch": 0}, "patch must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_patches_are_refused_in_one_sentence(network, images, targets, method, parameters, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared below
        explain(network, images[:1], targets[:1], method, **parameters)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if 0 not in parameters.values():
        spec = f"{method}[{','.join(f'{key}={value}' for key, value in parameters.items())}]"
        with pytest.raises(ValueError, match=message):
            cost([spec], 32)


def test_cost_is_the_passes_that_are_taken(network, images, targets):
    for method in ("occlusion", "occlusion[patch=5,stride=3]", "feature_ablation[patch=6]", "lime", "kernel_shap"):
        taken = []
        with network.readout.register_forward_hook(
            lambda module, inputs, output, taken=taken: taken.append(len(output))
        ):
            explain(network, images[:1], targets[:1], method)
        assert abs(sum(taken) - cost([method], 32)) <= 1, method


def test_a_blank_image_is_explained(network, targets):
    blank = torch.zeros(1, 3, 32, 32)
    for method in ("occlusion", *GRID):
        assert explain(network, blank, targets[:1], method, patch=8).abs().max() < 1e-5
    assert np.isfinite(explain(network, blank, targets[:1], "lime").numpy()).all()
