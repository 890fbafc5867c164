import pytest
import torch


@pytest.fixture(scope="session")
def colour(images):
    """Four digits in colours, whose channels are not alike."""
    tint = torch.tensor([[1.0, 0.3, -0.5], [0.2, 1.0, 0.7], [-0.4, 0.6, 1.0], [1.0, -0.3, 0.1]])
    speckle = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images[:4] * tint[..., None, None] + 0.2 * speckle
