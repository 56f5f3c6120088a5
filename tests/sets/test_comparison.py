"""Sets against the ranking, by hand."""

import numpy as np
import pandas as pd
import pytest

from jaxpatch.sets import comparison

GAP, KEPT = np.array([1.0, 2.0, 4.0, -1.0]), np.array([True, True, True, False])
SETS = {"ranking": [("a", (0,), "a 0"), ("a", (1,), "a 1")], "other": [("b", (0,)), ("a", (0,))]}


def compared(aggregate="mean_of_ratios", **shares):
    effects = {name: np.array(each).T * GAP[:, None] for name, each in shares.items()}
    return comparison.compare(effects, SETS, [1, 2], GAP, KEPT, aggregate)


def test_by_hand():
    rows = compared(ranking=[[0.2, 0.4, 0.6, 9], [0.5] * 4], other=[[0.3, 0.5, 0.7, 9], [0.0, 1.0, 2.0, 9]])
    assert [(row.name, row.size, row.shared) for row in rows] == [
        ("ranking", 1, 1),
        ("other", 1, 0),
        ("ranking", 2, 2),
        ("other", 2, 1),
    ]
    np.testing.assert_allclose([row.recovery for row in rows], [0.4, 0.5, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose([row.gain for row in rows], [0, 0.1, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(rows[-1].miss, np.sqrt(2 / 3), rtol=1e-6)
    assert rows[-1].miss > rows[-2].miss, "recovering more, by going too far"
    np.testing.assert_allclose([rows[1].gain_low, rows[1].gain_high], 0.1, rtol=1e-5)
    assert rows[1].high - rows[1].low > 0.1, "inputs differ, and the gain is the same on each"
    assert len(pd.DataFrame(rows)) == 4


def test_ratio_of_means():
    rows = compared("ratio_of_means", ranking=[[0.2, 0.4, 0.6, 9], [0.5] * 4], other=[[1, 0, 0, 0], [1, 0, 0, 0]])
    assert rows[1].recovery == pytest.approx(1 / 7)
