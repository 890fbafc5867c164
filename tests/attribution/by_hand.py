"""Networks as Captum wants them, written by hand, and one whose decision is known."""

import copy

import torch
from captum.attr._utils.custom_modules import Addition_Module
from torch import nn


class Separated(nn.Module):
    """The features of a `CifarResNet`, with its weights, every ReLU and addition a module of its own."""

    def __init__(self, backbone):
        super().__init__()
        backbone = copy.deepcopy(backbone)
        self.stem = nn.Sequential(backbone.conv1, backbone.bn1, nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "branch": nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2),
                **({"shortcut": block.downsample} if block.downsample else {}),
                "sum": Addition_Module(),
                "relu": nn.ReLU(),
            })
            for stage in (backbone.layer1, backbone.layer2, backbone.layer3)
            for block in stage
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        maps = self.stem(images)
        for block in self.blocks:
            shortcut = block["shortcut"](maps) if "shortcut" in block else maps
            maps = block["relu"](block["sum"](block["branch"](maps), shortcut))
        return self.pool(maps).flatten(1)


def separated(network):
    """An `ExplainedNetwork` whose read-out does not normalise, as modules that Captum knows."""
    readout = network.readout
    assert not readout.normalise
    last = nn.Linear(*reversed(readout.weight.shape))
    last.weight.data = readout.weight.clone() / readout.temperature
    last.bias.data = readout.bias.clone() / readout.temperature
    return nn.Sequential(Separated(network.backbone), last).eval()


def decided_by_a_patch():
    """A small residual network and 24 noisy images (N,3,20,20) whose class only a patch decides; the classes (N,); and
    where the patches are (N,20,20) bool.
    """
    torch.manual_seed(0)
    patterns = torch.randn(2, 3, 4, 4) * 2

    def draw(count):
        images, labels = torch.randn(count, 3, 20, 20) * 0.5, torch.arange(count) % 2
        masks = torch.zeros(count, 20, 20, dtype=torch.bool)
        for image, label, mask, (top, left) in zip(images, labels, masks, torch.randint(17, (count, 2)), strict=True):
            image[:, top : top + 4, left : left + 4] = patterns[label]
            mask[top : top + 4, left : left + 4] = True
        return images, labels, masks

    model = PatchNetwork()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        images, labels, _ = draw(32)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval(), *draw(24)


class PatchNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.last = nn.Linear(16, 2)

    def forward(self, images):
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.pool(self.relu(self.bn2(self.conv2(maps)) + maps))
        return self.last(maps.mean((2, 3)))
