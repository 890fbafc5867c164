"""A small ImageNet-S50 of real photographs, in the layout and formats of the ImageNet-S project."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

# Four of the fifty, not the first four: a category's value in masks is its place among the fifty.
NUMBERS = {"n02104029": 5, "n02123597": 7, "n03201208": 28, "n12998815": 50}
NAMES = ("kuvasz", "Siamese cat", "dining table", "agaric")
TRAIN, TEST = 16, 3  # images of a category


def write(root: Path) -> None:
    """Every picture is a part of its category's photograph, as a JPEG of its own size; its object is an ellipse."""
    china, flower = load_sample_images().images
    photographs = (skimage.data.astronaut(), skimage.data.cat(), china, flower)
    random = np.random.RandomState(0)
    for (category, number), photograph in zip(NUMBERS.items(), photographs, strict=True):
        for split, count in (("train", TRAIN), ("validation", TEST)):
            for index in range(count):
                height, width = random.randint(90, 150, size=2)
                top, left = (random.randint(side - 150) for side in photograph.shape[:2])
                name = f"{split}/{category}/{index:03d}.JPEG"
                save(root / name, Image.fromarray(photograph[top : top + height, left : left + width]))
                if split == "validation":
                    save(root / name.replace("/", "-segmentation/", 1).replace("JPEG", "png"),
                         mask(width, height, number))  # fmt: skip


def mask(width: int, height: int, number: int) -> Image.Image:
    """The object in the middle, in a rim to be ignored; to its left something of another category; else nothing."""
    ids = np.zeros((height, width), np.int64)
    y, x = np.ogrid[:height, :width]
    distance = ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2
    ids[:, : width // 10] = 1 + number % 50
    ids[distance < 0.09] = 1000
    ids[distance < 0.06] = number
    return Image.fromarray(np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=2).astype(np.uint8))


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90)
