"""What counts as a number where one is asked for, of Python or of numpy; True and False do not."""

import numpy as np


def is_number(value: object) -> bool:
    """A finite one.

    >>> [is_number(each) for each in (2, 0.5, np.float32(1), True, float("nan"), "2")]
    [True, True, True, False, False, False]
    """
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def is_whole(value: object, least: float = -np.inf) -> bool:
    """A whole one of a whole type, no smaller than `least`.

    >>> [is_whole(each, 0) for each in (2, np.int64(0), -1, 2.0, True)]
    [True, True, False, False, False]
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
