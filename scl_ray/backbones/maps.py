"""Feature maps where a network has none of the shape (N, C, h, w): modules that change nothing and show them.

Class activation maps read, and change, the output of a module. `insert` puts such a module behind a layer of tokens or
of maps with their channels last, and names it as the network's ``cam_layer``.
"""

import torch
from torch import Tensor, nn


class TokenMaps(nn.Module):
    """Tokens (N, prefix + h·w, C), unchanged; *maps* inside sees those of the patches as (N, C, h, w).

    prefix: how many tokens of class and register come before those of the patches. grid: h and w.
    """

    def __init__(self, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prefix = prefix
        self.grid = grid
        self.maps = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        maps = self.maps(tokens[:, self.prefix :].mT.unflatten(2, self.grid))
        return torch.cat([tokens[:, : self.prefix], maps.flatten(2).mT], 1)


class ChannelsLastMaps(nn.Module):
    """Maps (N, h, w, C), unchanged; *maps* inside sees them as (N, C, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, channels_last: Tensor) -> Tensor:
        maps: Tensor = self.maps(channels_last.permute(0, 3, 1, 2))
        return maps.permute(0, 2, 3, 1)


def insert(network: nn.Module, layer: str, shown: TokenMaps | ChannelsLastMaps) -> None:
    """Change *network*: *shown* follows the module at the path *layer*, and its maps are the ``cam_layer``."""
    network.set_submodule(layer, nn.Sequential(network.get_submodule(layer), shown))
    # A second name of a module without weights: no name of a weight changes by it.
    network.cam_layer = shown.maps
