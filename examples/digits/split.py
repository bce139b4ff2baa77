"""The one fixed split of scikit-learn's digits that every example script shares.

    from split import load_digits_split

The 1,797 images ship with scikit-learn, so nothing is downloaded.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 0
TEST_SIZE = 500
VAL_SIZE = 200
INK_MAX = 16


class Digits(NamedTuple):
    """Images (n, 8, 8) uint8 in 0..255, light ink on dark; labels (n,) int64 in 0..9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class DigitsSplit(NamedTuple):
    """1,097 training, 200 validation and 500 test images, stratified by digit."""

    train: Digits
    val: Digits
    test: Digits


def load_digits_split() -> DigitsSplit:
    """Return the same three disjoint parts, in the same order, on every call."""
    inks, labels = load_digits(return_X_y=True)
    scaled = np.rint(inks.reshape(-1, 8, 8) * (255 / INK_MAX)).astype(np.uint8)
    labels = labels.astype(np.int64)
    # Test is cut off first, so that changing VAL_SIZE can never move an image into or out of it.
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    train, val = train_test_split(
        rest, test_size=VAL_SIZE, stratify=labels[rest], random_state=SPLIT_SEED
    )
    return DigitsSplit(*(Digits(scaled[part], labels[part]) for part in (train, val, test)))
