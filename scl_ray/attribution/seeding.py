"""Random numbers that depend on the image and on what is measured, and on nothing else."""

import hashlib

import numpy as np


def generator(seed: int, image_id: int, spec: str) -> np.random.Generator:
    """The random stream of one image under one spec: the same in any batch, shard and trial, and on any device."""
    digest = hashlib.sha256(f"{seed}/{image_id}/{spec}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
