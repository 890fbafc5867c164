import copy

import numpy as np
import pytest
import torch
from torch import nn

from scl_ray.attribution import Batch, explain_many
from scl_ray.metrics import cost, score, score_many
from scl_ray.metrics.mosaic import draw_mosaics, grid_pointing_game, tile


@pytest.fixture(scope="module")
def context(digits, trained, network, images, targets):
    """Eight images, and a reference of four images of every class."""
    labels = torch.tensor(digits.train_labels)
    chosen = torch.cat([(labels == k).nonzero()[:4, 0] for k in range(10)])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trained.mean, trained.std))
    reference = (torch.tensor(digits.train_images)[chosen].float() / 255 - mean) / std
    return Batch(
        network, images[:8], targets[:8], image_ids=range(50, 58), reference=reference, reference_labels=labels[chosen]
    )


def value(method, context, **changed):
    batch = context.but(**changed)
    maps = explain_many(batch, [method])
    cell = (method, "grid_pointing_game")
    return score_many(batch, maps, [cell])[cell].values


def mosaic_by_hand(context, index, grid, spec):
    """The mosaic of one image, and the row and column of its cell."""
    places, foils = draw_mosaics(context, spec, grid)
    height, width = context.images.shape[-2:]
    mosaic = np.full((3, grid * height, grid * width), np.nan, np.float32)
    parts = [context.images[index], *context.reference[foils[index]]]
    for part, cell in zip(parts, places[index].tolist(), strict=True):
        row, column = divmod(cell, grid)
        mosaic[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = part
    return torch.tensor(mosaic), *divmod(int(places[index, 0]), grid)


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_equals_the_share_by_hand_in_float64(context, network, method, grid):
    exact = copy.deepcopy(network).double()
    spec = f"grid_pointing_game[grid={grid}]" if grid != 2 else "grid_pointing_game"
    maps = {method: torch.rand(8, 32, 32)}  # the maps of the images themselves are not looked at
    ours = score_many(context, maps, [(method, spec)])[method, spec].values
    assert ours.unique().numel() == 8
    for index in range(8):
        mosaic, row, column = mosaic_by_hand(context, index, grid, spec)
        given = mosaic[None].double().requires_grad_()
        exact(given)[0, context.targets[index]].backward()
        # The methods' own collapse of channels.
        found = given.grad[0].abs().amax(0) if method == "saliency" else (given.grad[0] * given.detach()[0]).sum(0)
        found = found.numpy()
        total = inside = 0.0
        for r in range(grid * 32):
            for c in range(grid * 32):
                positive = max(found[r, c], 0.0)
                total += positive
                inside += positive * (r // 32 == row and c // 32 == column)
        assert abs(ours[index] - inside / total) < 1e-5


def test_a_mosaic_holds_the_image_and_different_other_classes(context):
    for grid in (2, 3):
        places, foils = draw_mosaics(context, "grid_pointing_game", grid)
        mosaics = tile(context, context.images, places, foils, grid)
        for index in range(8):
            assert torch.equal(mosaics[index], mosaic_by_hand(context, index, grid, "grid_pointing_game")[0])
            classes = context.reference_labels[foils[index]].tolist()
            assert len(set(classes)) == grid**2 - 1
            assert int(context.targets[index]) not in classes
        assert places[:, 0].unique().numel() > 2


def test_classes_repeat_only_when_there_are_too_few(context):
    three = context.reference_labels < 3
    few = context.but(reference=context.reference[three], reference_labels=context.reference_labels[three])
    few = few.but(targets=torch.full((8,), 1))
    _, foils = draw_mosaics(few, "spec", 2)
    for chosen in foils:
        counts = torch.bincount(few.reference_labels[chosen], minlength=3).tolist()
        assert (counts[1], sorted(counts)) == (0, [0, 1, 2])
        assert len(set(chosen.tolist())) == 3
    with pytest.raises(ValueError, match="3x3 needs 8 reference images of other classes than 1, and there are 6"):
        draw_mosaics(few.but(reference=few.reference[2:], reference_labels=few.reference_labels[2:]), "spec", 3)


def test_all_networks_and_batches_meet_the_same_mosaics(context, network):
    both = draw_mosaics(context, "spec", 2)
    other = draw_mosaics(context.but(model=copy.deepcopy(network).apply(_fresh)), "spec", 2)
    part = context.but(images=context.images[3:5], targets=context.targets[3:5], image_ids=[53, 54])
    for together, again, alone in zip(both, other, draw_mosaics(part, "spec", 2), strict=True):
        assert torch.equal(together, again)
        assert torch.equal(together[3:5], alone)
    assert not torch.equal(draw_mosaics(context, "other", 2)[1], both[1])


def _fresh(module):
    if isinstance(module, nn.Linear):
        module.reset_parameters()


def test_values_depend_on_neither_the_batch_nor_its_order(context):
    together = value("grad_cam", context)
    order = torch.tensor([5, 0, 7])
    alone = value(
        "grad_cam", context, images=context.images[order], targets=context.targets[order],
        image_ids=(order + 50).tolist(), at_once=1,
    )  # fmt: skip
    assert (together[order] - alone).abs().max() < 1e-5


def test_faithful_maps_find_the_cell_and_random_ones_do_not(context):
    # Integrated gradients see every pixel's sign, and the background of all cells is one and the same.
    for method, least in (("grad_cam", 0.4), ("integrated_gradients[steps=8]", 0.27)):
        values = value(method, context)
        assert ((values >= 0) & (values <= 1)).all()
        assert values.mean() > least
    noise = torch.rand(8, 4, 1024, generator=torch.Generator().manual_seed(0))
    assert (grid_pointing_game(context, noise[:, 0], noise) - 0.25).abs().max() < 0.03


def test_nothing_positive_and_a_flat_map_are_undefined(context):
    class Negative(nn.Module):
        """No pixel speaks for class 0, and none matters to class 1."""

        def forward(self, given):
            dark = -given.mean((1, 2, 3))
            return torch.stack([dark, 0 * dark], 1)

    model = Negative().eval()
    for target in (0, 1):
        batch = context.but(model=model, targets=torch.full((8,), target))
        maps = {"input_x_gradient": torch.rand(8, 32, 32)}
        batch = batch.but(images=batch.images.abs(), reference=batch.reference.abs())
        batch = batch.but(reference_labels=torch.full((40,), 2))
        cell = ("input_x_gradient", "grid_pointing_game")
        assert score_many(batch, maps, [cell])[cell].values.isnan().all()


@pytest.mark.parametrize(
    "method", ["gradient_shap[samples=2]", "deep_lift_shap[baselines=2]", "saliency[target=corpus]"]
)
def test_what_compares_with_the_reference_compares_mosaics(network, context, method):
    given = {"reference": context.reference, "reference_labels": context.reference_labels, "method": method}
    values = score("grid_pointing_game", network, context.images, context.targets, torch.rand(8, 32, 32), **given)
    assert values.isfinite().all()
    assert values.mean() > 0.2


def test_what_it_needs(context, network, images, targets):
    maps = torch.rand(8, 32, 32)
    given = ("grid_pointing_game", network, images[:8], targets[:8], maps)
    reference = {"reference": context.reference, "reference_labels": context.reference_labels}
    with pytest.raises(ValueError, match="grid_pointing_game needs reference images"):
        score(*given, method="saliency")
    with pytest.raises(ValueError, match="grid_pointing_game explains again"):
        score(*given, **reference)
    with pytest.raises(ValueError, match="grid must be a whole number of at least 2, not 1"):
        score(*given, method="saliency", grid=1, **reference)
    with pytest.raises(ValueError, match="give reference images of the shape of the images"):
        score(*given, method="saliency", reference=context.reference[..., :16])
    # What knows no class is the control: about chance.
    control = score(*given, method="random", **reference)
    assert abs(control.mean().item() - 0.25) < 0.02
    # Without labels they are of the classes that the network predicts.
    assert score(*given, method="saliency", reference=context.reference).isfinite().all()


def test_a_network_of_one_size_is_refused_before_any_method_runs(context):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    with pytest.raises(ValueError, match="mosaics of 64x64 pixels, and Sequential takes only images of 32x32"):
        score_many(context.but(model=model), {"saliency": torch.rand(8, 32, 32)}, [("saliency", "grid_pointing_game")])
    assert seen == [(1, 3, 64, 64)]


def test_the_model_stays_as_it_was_and_methods_share_the_mosaics(context, network):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    seen = []
    cells = [(method, "grid_pointing_game") for method in ("grad_cam", "layer_cam", "saliency")]
    maps = dict.fromkeys(("grad_cam", "layer_cam", "saliency"), torch.rand(8, 32, 32))
    with network.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape))):
        score_many(context.but(kept={}), maps, cells)
    # One to see whether the network takes the size, then four passes of two mosaics, each as large as the batch.
    assert seen == [(1, 3, 64, 64)] + 4 * [(2, 3, 64, 64)]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert cost(cells[:1], 32) == 4
