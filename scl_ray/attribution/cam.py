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
    activations, slopes = _maps_and_slopes(passed, gradients)
    return finish((slopes.mean((2, 3), keepdim=True) * activations).sum(1), passed.images)


def grad_cam_plus_plus(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Feature maps weighted by their positive gradients, each by a closed form of higher derivatives; (N,H,W) in
    [0,1].

    ``corrected`` takes the equation as it stands. ``published`` adds 1e-6 to its denominator, as grad-cam does, which
    is of the size of the squared gradients themselves, so that the scale of the logits decides how much it counts.

    Chattopadhay et al., Grad-CAM++, WACV 2018, eq. 7 and 19.
    """
    activations, slopes = _maps_and_slopes(passed, gradients)
    total = activations.sum((2, 3), keepdim=True)
    if protocol == "published":
        shares = slopes.square() / (2 * slopes.square() + total * slopes**3 + 1e-6)
    else:
        shares = 1 / (2 + total * slopes)
    # Where the gradient is not positive the share counts nothing, and may be infinite.
    weights = torch.where(slopes > 0, slopes * shares, 0).sum((2, 3), keepdim=True)
    return finish((weights * activations).sum(1), passed.images)


def hires_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Feature maps times their gradients, position by position; (N,H,W) in [0,1]. Both protocols agree.

    Where a linear read-out follows the pooled maps it is the same as `grad_cam`.

    Draelos & Carin, Use HiResCAM instead of Grad-CAM, arXiv 2011.08891, 2020.
    """
    activations, slopes = _maps_and_slopes(passed, gradients)
    return finish((slopes * activations).sum(1), passed.images)


def x_grad_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Feature maps weighted by the mean of their gradients, each position counting as much as its activation; (N,H,W)
    in [0,1]. Both protocols agree.

    Fu et al., Axiom-based Grad-CAM, BMVC 2020.
    """
    activations, slopes = _maps_and_slopes(passed, gradients)
    # Against maps that are zero everywhere; grad-cam's value.
    total = activations.sum((2, 3), keepdim=True) + 1e-7
    weights = (slopes * activations / total).sum((2, 3), keepdim=True)
    return finish((weights * activations).sum(1), passed.images)


def layer_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Feature maps times their positive gradients, position by position; (N,H,W) in [0,1]. Both protocols agree.

    Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021.
    """
    activations, slopes = _maps_and_slopes(passed, gradients)
    return finish((slopes.relu() * activations).sum(1), passed.images)


def eigen_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """The first principal component of the feature maps over positions; (N,H,W) in [0,1]. It explains no class.

    A component is defined up to its sign, and the ReLU keeps one half of it. ``corrected`` turns the half of larger
    magnitude up (Chung & Ying, Seg-Eigen-CAM, Applied Sciences 15(13), 2025, eq. 13); ``published`` leaves the sign to
    NumPy's SVD, as grad-cam does.

    Muhammad & Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020.
    """
    return finish(_principal(feature_maps(passed), protocol), passed.images)


def eigen_grad_cam(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """The first principal component, over positions, of the feature maps times their gradients; (N,H,W) in [0,1].

    The protocols differ in its sign, as for `eigen_cam`.

    Gildenblat et al., PyTorch library for CAM methods (grad-cam), 2021: Eigen-CAM that tells classes apart.
    """
    activations, slopes = _maps_and_slopes(passed, gradients)
    return finish(_principal(slopes * activations, protocol), passed.images)


def _principal(maps: Tensor, protocol: str) -> Tensor:
    """The first principal component (N,h,w) of *maps* (N,c,h,w) over positions, with the sign of the protocol."""
    vectors = maps.flatten(2).mT
    vectors = vectors - vectors.mean(1, keepdim=True)
    if protocol == "published":
        # The sign that LAPACK leaves even depends on its number of threads.
        with threadpool_limits(1, user_api="blas"):
            axes = np.linalg.svd(vectors.cpu().numpy(), full_matrices=False)[2][:, 0]
        component = (vectors @ torch.from_numpy(axes).to(vectors)[..., None])[..., 0]
    else:
        component = _first_component(vectors, maps.double().square().sum((1, 2, 3)))
        component = component * torch.where(-component.amin(1) > component.amax(1), -1, 1)[:, None]
    return component.unflatten(1, maps.shape[2:])


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


def feature_maps(passed: Forward) -> Tensor:
    """The output (N,c,h,w) of the CAM layer. Raises ValueError when its maps have one position only."""
    assert passed.activations is not None
    activations = passed.activations.detach()
    if activations.shape[-2:] == (1, 1):
        height, width = passed.images.shape[-2:]
        raise ValueError(f"a CAM needs feature maps larger than 1x1, which images of {height}x{width} do not give here")
    return activations


def _maps_and_slopes(passed: Forward, gradients: Gradients) -> tuple[Tensor, Tensor]:
    """The feature maps and the gradient of the score with respect to them, both (N,c,h,w)."""
    assert gradients.activations is not None
    return feature_maps(passed), gradients.activations


def finish(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (N,h,w) rectified, resized bilinearly to *images* (N,C,H,W) and scaled to [0,1]; (N,H,W)."""
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


_BOTH = frozenset({"activations", "activation_gradients"})

METHODS = {
    "grad_cam": Method(grad_cam, True, "Selvaraju et al., ICCV 2017", _BOTH),
    "grad_cam_plus_plus": Method(grad_cam_plus_plus, True, "Chattopadhay et al., WACV 2018", _BOTH),
    "hires_cam": Method(hires_cam, True, "Draelos & Carin, arXiv 2011.08891, 2020", _BOTH),
    "x_grad_cam": Method(x_grad_cam, True, "Fu et al., BMVC 2020", _BOTH),
    "layer_cam": Method(layer_cam, True, "Jiang et al., IEEE TIP 2021", _BOTH),
    "eigen_cam": Method(
        eigen_cam,
        class_discriminative=False,
        needs=frozenset({"activations"}),
        parameters={"protocol": PROTOCOL},
        citation="Muhammad & Yeasin, IJCNN 2020",
    ),
    "eigen_grad_cam": Method(eigen_grad_cam, True, "Gildenblat et al., grad-cam, 2021", _BOTH),
}
