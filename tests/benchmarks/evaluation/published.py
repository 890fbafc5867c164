"""The published pipeline, one image at a time: two CAMs by pytorch-grad-cam, five metrics by Quantus and scikit-image.

Arrighi et al., arXiv 2604.22540, with Quantus 0.6.0, which flips single channel values: 96 steps of 32.
"""

import numpy as np
import quantus
import torch
from pytorch_grad_cam import EigenCAM, GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from skimage.metrics import structural_similarity
from torch import Tensor, nn

QUIET = {"disable_warnings": True, "display_progressbar": False}


def run(network: nn.Module, layer: nn.Module, images: Tensor, classes: int) -> list[dict[str, float]]:
    """Explain and score each of *images* (N,3,H,W) by itself."""
    flipping = quantus.PixelFlipping(
        features_in_step=32, perturb_baseline="black", normalise=False, return_auc_per_sample=True, **QUIET
    )
    per_map = {"complexity": quantus.Complexity(**QUIET), "sparseness": quantus.Sparseness(**QUIET)}
    found = []
    with GradCAM(network, [layer]) as grad_cam, EigenCAM(network, [layer]) as eigen_cam:
        for image in images.split(1):
            with torch.no_grad():
                predicted = int(network(image).argmax())
            noisy = (image + 0.02 * torch.randn_like(image)).clamp(0, 1)
            for name, cam in (("grad_cam", grad_cam), ("eigen_cam", eigen_cam)):
                asked = [ClassifierOutputTarget(predicted)]
                attribution = cam(image, targets=asked)
                given = image.numpy(), np.array([predicted]), attribution[:, None]
                values = {"pixel_flipping_auc": flipping(network, *given, softmax=True, device="cpu")[0]}
                values |= {key: metric(network, *given, device="cpu")[0] for key, metric in per_map.items()}
                again = cam(noisy, targets=asked)
                values["ssim_continuity"] = structural_similarity(attribution[0], again[0], data_range=1)
                if name == "grad_cam":
                    other = ClassifierOutputTarget((predicted + int(torch.randint(1, classes, ()))) % classes)
                    contrast = cam(image, targets=[other])
                    values["ssim_contrastivity"] = structural_similarity(attribution[0], contrast[0], data_range=1)
                found.append(values)
    return found
