"""Class activation maps: weighted sums of the feature maps that the network pools.

All read the same forward and backward pass. A map is rectified, resized bilinearly to the image and scaled to [0,1].
"""

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import Forward, Gradients
from scl_ray.attribution.registry import PROTOCOL


def grad_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Feature maps weighted by the mean gradient of the class score; (N,H,W) in [0,1], an all-zero map where none is
    positive. Both protocols agree.

    Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
    """
    activations = _feature_maps(passed)
    assert gradients.activations is not None
    weights = gradients.activations.mean((2, 3), keepdim=True)
    return _finish((weights * activations).sum(1), passed.images)


def eigen_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """The first principal component of the feature maps over positions; (N,H,W) in [0,1]. It explains no class.

    A component is defined up to its sign, and the ReLU keeps one half of it. ``corrected`` turns the half of larger
    magnitude up (Chung & Ying, Seg-Eigen-CAM, Applied Sciences 15(13), 2025, eq. 13); ``published`` leaves the sign to
    NumPy's SVD, as grad-cam does.

    Muhammad & Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020.
    """
    activations = _feature_maps(passed)
    vectors = activations.flatten(2).mT
    vectors = vectors - vectors.mean(1, keepdim=True)
    if protocol == "published":
        # The sign that LAPACK leaves even depends on its number of threads.
        with threadpool_limits(1, user_api="blas"):
            axes = np.linalg.svd(vectors.cpu().numpy(), full_matrices=False)[2][:, 0]
        component = (vectors @ torch.from_numpy(axes).to(vectors)[..., None])[..., 0]
    else:
        component = _first_component(vectors, activations.square().sum((1, 2, 3)))
        component = component * torch.where(-component.amin(1) > component.amax(1), -1, 1)[:, None]
    return _finish(component.view(len(activations), *activations.shape[2:]), passed.images)


def _first_component(vectors: Tensor, energy: Tensor) -> Tensor:
    """Projections (N,P) of the centred *vectors* (N,P,C) on their first principal axis, zero where nothing varies.

    From the smaller of the two Gram matrices, which costs less than an SVD, in float64, which makes up for squaring.
    *energy* (N,), the squared norm before centring, tells variation from rounding.
    """
    exact = vectors.double()
    positions, channels = exact.shape[1:]
    over_positions = positions <= channels
    values, axes = torch.linalg.eigh(exact @ exact.mT if over_positions else exact.mT @ exact)
    largest, axis = values[:, -1], axes[..., -1]
    component = axis * largest.clamp_min(0).sqrt()[:, None] if over_positions else (exact @ axis[..., None])[..., 0]
    return torch.where((largest > 1e-12 * energy)[:, None], component, 0).float()


def _feature_maps(passed: Forward) -> Tensor:
    assert passed.activations is not None
    activations = passed.activations.detach()
    if activations.shape[-2:] == (1, 1):
        height, width = passed.images.shape[-2:]
        raise ValueError(f"a CAM needs feature maps larger than 1x1, which images of {height}x{width} do not give here")
    return activations


def _finish(maps: Tensor, images: Tensor) -> Tensor:
    # Scaled after resizing: bilinear weights are linear, so the order changes nothing but the range that is reached.
    resized = F.interpolate(maps.relu()[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return unit_range(resized)


def unit_range(maps: Tensor) -> Tensor:
    """Scale each map of (N,H,W) to [0,1] by its minimum and maximum; a constant map becomes all zero."""
    low = maps.amin((1, 2), keepdim=True)
    high = maps.amax((1, 2), keepdim=True)
    # A range within float32's rounding of the values is no range.
    varies = high - low > 1e-6 * torch.maximum(high.abs(), low.abs())
    return torch.where(varies, (maps - low) / torch.where(varies, high - low, 1), 0)


METHODS = {
    "grad_cam": Method(
        grad_cam,
        class_discriminative=True,
        needs=frozenset({"activations", "activation_gradients"}),
        citation="Selvaraju et al., ICCV 2017",
    ),
    "eigen_cam": Method(
        eigen_cam,
        class_discriminative=False,
        needs=frozenset({"activations"}),
        parameters={"protocol": PROTOCOL},
        citation="Muhammad & Yeasin, IJCNN 2020",
    ),
}
