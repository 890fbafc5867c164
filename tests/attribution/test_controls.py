import numpy as np
import torch
from skimage.filters import sobel

from scl_ray.attribution import Batch, explain, explain_many, explains_class
from scl_ray.attribution.controls import METHODS

MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]


def test_edge_equals_skimage(network, colour, targets):
    for images in (colour, colour[..., :27, :30], colour[:, :, :1, :5]):
        ours = explain_many(Batch(network, images, targets[:4], mean=MEAN, std=STD), ["edge"])["edge"]
        pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        theirs = np.stack([sobel(grey) for grey in pixels.double().mean(1).numpy()])
        assert np.abs(ours.numpy() - theirs).max() < 1e-5
        assert theirs.max() > 0.05


def test_random_is_uniform_and_the_image_s_own(network, images, targets):
    maps = explain_many(Batch(network, images, targets, image_ids=range(32)), ["random"])["random"]
    assert 0 <= maps.min() < 0.001 < 0.999 < maps.max() < 1
    histogram = torch.histc(maps, 8, 0, 1) / maps.numel()
    assert (histogram - 1 / 8).abs().max() < 0.005
    again = explain_many(Batch(network, images[:2], targets[:2], image_ids=[7, 3]), ["random"])["random"]
    assert torch.equal(again, maps[[7, 3]])
    assert (explain(network, images, targets, "random", seed=1) - maps).abs().mean() > 0.2


def test_constant_is_constant(network, images, targets):
    assert (explain(network, images, targets, "constant") == 1).all()


def test_controls_know_nothing_of_the_network(network, images, targets):
    for method, entry in METHODS.items():
        assert not explains_class(method)
        assert "target" not in entry.parameters
        assert not [name for name in entry.parameters if name != "protocol"]
