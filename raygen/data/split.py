"""Which images are for training, for validation and for testing: the same ones in every run, whatever its seed."""

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 2_718_281  # the same for every run: results are compared on the same held-out images


def shuffled(count: int) -> NDArray[np.int64]:
    """The order in which a source's images are split, [N]: the position of each in the source.

    Training images come first, then those for validation, then those for testing.
    """
    # RandomState's stream is frozen for ever; that of numpy's newer Generator may change between versions.
    return np.random.RandomState(SPLIT_SEED).permutation(count).astype(np.int64)


def sizes(count: int, validation_fraction: float, test_fraction: float) -> tuple[int, int, int]:
    """How many of `count` images are for training, validation and testing: each has one, unless its fraction is 0.

    Three images are needed, two if `test_fraction` is 0.
    """
    test = max(1, round(count * test_fraction)) if test_fraction else 0
    validation = min(max(1, round(count * validation_fraction)), count - test - 1)
    return count - validation - test, validation, test
