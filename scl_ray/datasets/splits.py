"""Stratified splits that the labels alone decide."""

import numpy as np
from numpy.typing import NDArray


def stratified_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """A permutation of ``range(len(labels))``, fixed by *labels*, whose every prefix has each class's share.

    The j-th of a class's n images, in random order, stands at (j + 1/2) / n of the way.
    """
    # RandomState's streams are frozen by numpy's policy, those of its newer Generator are not.
    random = np.random.RandomState(0)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        position[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.permutation(len(labels)), position)).astype(np.int64)
