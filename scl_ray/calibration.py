"""How far a classifier's confidence is its accuracy, and the temperature that brings them together (Guo et al. 2017).

Everything is computed in float64: a confidence next to 1 has no other neighbours in float32.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that makes softmax(*logits* / temperature) fit *labels* best (Guo et al. 2017, section 4.2).

    Minimises the cross-entropy on held-out *logits* (N, K). The targets are smoothed by 1 / (N + 2), spread over the
    other classes (Platt 1999): without it a read-out that errs on none of N images would have temperature zero, that
    is, certainty.
    """
    from scipy.optimize import minimize_scalar  # here, since it takes a second to import

    count, classes = logits.shape
    scores = logits.double().cpu()
    doubt = 1 / (count + 2)
    targets = torch.full((count, classes), doubt / (classes - 1), dtype=torch.float64)
    targets.scatter_(1, labels.cpu()[:, None], 1 - doubt)

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(scores / math.exp(log_temperature), targets))

    return math.exp(minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-8}).x)


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """ECE in [0, 1], lower is better (Guo et al. 2017, equation 3), of class scores (N, K) and labels (N,).

    The N confidences in the predicted class lie in 15 bins of equal width, each open below and closed above; the error
    is the mean distance of a bin's accuracy and mean confidence, weighted by its share of the images.
    """
    confidence, prediction = logits.double().softmax(dim=1).max(dim=1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)
    bins = torch.bucketize(confidence, edges[1:-1])
    excess = functional.one_hot(bins, BINS).double().T @ (confidence - (prediction == labels).double())
    return float(excess.abs().sum() / len(labels))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(*logits*) of the true class, in nats, at least 0, lower is better; as above."""
    return float(functional.cross_entropy(logits.double(), labels))
