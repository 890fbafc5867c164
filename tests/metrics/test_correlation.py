import numpy as np
import scipy.stats
import torch

from scl_ray.metrics.correlation import pearson, spearman


def test_equal_scipy_with_and_without_ties():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(20, 50, generator=generator, dtype=torch.float64)
    second = 0.5 * first + torch.randn(20, 50, generator=generator, dtype=torch.float64)
    second[10:] = second[10:].round()
    for ours, theirs in ((pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)):
        hand = [theirs(a, b)[0] for a, b in zip(first.numpy(), second.numpy(), strict=True)]
        assert np.abs(ours(first, second).numpy() - hand).max() < 1e-12


def test_a_constant_has_no_correlation():
    varying = torch.arange(5.0, dtype=torch.float64)[None]
    for correlation in (pearson, spearman):
        assert correlation(varying, torch.full((1, 5), 3.0, dtype=torch.float64)).isnan()
        assert correlation(varying, varying) == 1
    assert pearson(varying, 3 + 1e-8 * varying.flip(1)).isnan()
