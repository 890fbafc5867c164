import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as skimage_ssim
from torch import nn

from scl_ray.attribution import Batch, explain
from scl_ray.metrics import score
from scl_ray.metrics.ssim import explain_noisy, explain_other_class, structural_similarity

NORMALISED = {"mean": (0.3, 0.3, 0.3), "std": (0.35, 0.35, 0.35)}


def skimage_of(first, second):
    pairs = zip(first.double().numpy(), second.double().numpy(), strict=True)
    return [skimage_ssim(a, b, data_range=1) for a, b in pairs]


def test_equals_scikit_image_on_random_maps():
    generator = torch.Generator().manual_seed(0)
    for height, width in ((32, 32), (7, 7), (9, 40)):
        first, second = (torch.rand(32, height, width, generator=generator) for _ in range(2))
        second[::2] = 0.9 * first[::2] + 0.1 * second[::2]
        ours = structural_similarity(first, second)
        assert np.abs(ours.numpy() - skimage_of(first, second)).max() < 1e-5


def test_equals_scikit_image_on_rows_and_with_a_range_for_each_pair():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 12, 40, generator=generator) for _ in range(2))
    spans = torch.linspace(0.5, 8, 6)
    for a, b in ((first, second), (first.flatten(1), second.flatten(1))):
        theirs = [
            skimage_ssim(x, y, data_range=span)
            for x, y, span in zip(a.double().numpy(), b.double().numpy(), spans.tolist(), strict=True)
        ]
        assert np.abs(structural_similarity(a, b, spans).numpy() - theirs).max() < 1e-5
        assert np.std(theirs) > 1e-3


def test_equals_scikit_image_on_attribution_maps(maps):
    ours = structural_similarity(maps["grad_cam"], maps["eigen_cam"])
    assert np.abs(ours.numpy() - skimage_of(maps["grad_cam"], maps["eigen_cam"])).max() < 1e-5
    assert torch.allclose(structural_similarity(maps["grad_cam"], maps["grad_cam"]), torch.ones(32).double())


def test_a_map_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="at least 7x7 pixels, not 6x9"):
        structural_similarity(torch.zeros(1, 6, 9), torch.zeros(1, 6, 9))
    with pytest.raises(ValueError, match="at least 7 pixels, not 5"):
        structural_similarity(torch.zeros(1, 5), torch.zeros(1, 5))


def test_continuity_is_the_ssim_of_the_map_under_noise(network, images, targets, maps, digits):
    space = {"mean": digits.mean, "std": digits.std, "image_ids": range(100, 132)}
    for method in ("grad_cam", "saliency"):
        spec = "ssim_continuity[noise=0.1]"
        changed = explain_noisy(
            Batch(network, images, targets, **space), {method: maps[method]}, spec, noise=0.1, protocol="corrected"
        )
        lifted = [found - found.amin((1, 2), True) for found in (maps[method], changed[method])]
        scaled = [found / found.amax((1, 2), True) for found in lifted]
        ours = score(spec, network, images, targets, maps[method], method=method, **space)
        assert np.abs(ours.numpy() - skimage_of(*scaled)).max() < 1e-5


def noisy_images(images, protocol, spec="ssim_continuity", noise=0.1, **space):
    """The images that the metric explains."""
    seen = []

    class Recorder(nn.Module):
        def forward(self, given):
            seen.append(given.detach().clone())
            return given.mean((2, 3))

    batch = Batch(Recorder().eval(), images, torch.zeros(len(images), dtype=torch.int64), **space)
    explain_noisy(batch, {"saliency": None}, spec, noise=noise, protocol=protocol)
    return seen[0]


def test_noise_is_added_and_clamped_in_pixel_space_when_corrected(images, digits):
    space = {"mean": digits.mean, "std": digits.std}
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (digits.mean, digits.std))
    pixels = images * std + mean
    noisy = noisy_images(images, "corrected", **space) * std + mean
    assert noisy.min() > -1e-6
    assert noisy.max() < 1 + 1e-6
    inside = (noisy > 1e-3) & (noisy < 1 - 1e-3)
    assert 0.08 < (noisy - pixels)[inside & (pixels > 0.3) & (pixels < 0.7)].std() < 0.12


def test_noise_is_added_and_clamped_in_the_normalised_space_when_published(images, digits):
    noisy = noisy_images(images, "published", mean=digits.mean, std=digits.std)
    assert noisy.min() == 0  # everything below the mean is cut off
    assert noisy.max() <= 1
    assert (noisy[images < -0.5] < 0.3).all()
    assert (noisy[images > 1.5] == 1).all()


def test_the_published_clamp_is_most_of_what_continuity_measures(network, images, targets, maps, digits):
    space = {"method": "grad_cam", "mean": digits.mean, "std": digits.std}
    published, corrected = (
        score("ssim_continuity", network, images, targets, maps["grad_cam"], protocol=protocol, **space)
        for protocol in ("published", "corrected")
    )
    assert corrected.nanmean() > 0.9
    assert published.nanmean() < corrected.nanmean() - 0.1


def test_noise_depends_on_the_image_and_the_spec_alone(images, digits):
    space = {"mean": digits.mean, "std": digits.std}
    ids = list(range(40, 72))
    all_at_once = noisy_images(images, "corrected", image_ids=ids, **space)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    again = noisy_images(images[shuffled], "corrected", image_ids=[ids[i] for i in shuffled], **space)
    assert torch.equal(again, all_at_once[shuffled])
    assert torch.equal(noisy_images(images[3:5], "corrected", image_ids=[43, 44], **space), all_at_once[3:5])
    for changed in ({"image_ids": range(32)}, {"image_ids": ids, "seed": 1}, {"image_ids": ids, "spec": "other"}):
        assert not torch.equal(noisy_images(images, "corrected", **changed, **space), all_at_once)


def test_contrastivity_is_the_ssim_with_another_class(network, images, targets, maps):
    batch = Batch(network, images, targets)
    changed = explain_other_class(batch, {"grad_cam": maps["grad_cam"]}, "ssim_contrastivity", protocol="corrected")
    ours = score("ssim_contrastivity", network, images, targets, maps["grad_cam"], method="grad_cam")
    defined = ~ours.isnan()
    theirs = torch.tensor(skimage_of(maps["grad_cam"], changed["grad_cam"]))
    assert (ours - theirs)[defined].abs().max() < 1e-5
    others = torch.stack([explain(network, images, (targets + k) % 10, "grad_cam") for k in range(1, 10)])
    distance = (others - changed["grad_cam"]).abs().amax((2, 3))
    assert (distance.amin(0) < 1e-5).all()
    assert len(set(distance.argmin(0).tolist())) > 3  # not one and the same class for all


def test_what_explains_again_needs_a_method_and_a_class(network, images, targets, maps):
    with pytest.raises(ValueError, match="ssim_continuity explains again: give the method that made the maps"):
        score("ssim_continuity", network, images, targets, maps["grad_cam"])
    with pytest.raises(ValueError, match="ssim_contrastivity contrasts classes, and eigen_cam explains none"):
        score("ssim_contrastivity", network, images, targets, maps["eigen_cam"], method="eigen_cam")
    with pytest.raises(ValueError, match="noise must be a number above 0, not -1"):
        score("ssim_continuity[noise=-1]", network, images, targets, maps["grad_cam"], method="grad_cam")
