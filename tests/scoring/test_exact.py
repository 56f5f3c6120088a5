"""Exact effects on toys; the engine itself is held to PyTorch in contracts/test_engine.py."""

import numpy as np
import scoring_toys

from jaxpatch.scoring import exact


def test_by_hand():
    answer = exact.effects(scoring_toys.product(), ("part",), scoring_toys.options())["part"]
    assert answer.effects.tolist() == [[2, 0, 0], [4, 0, 0]] and answer.screening is None
    answer = exact.effects(scoring_toys.linear(), ("head",), scoring_toys.options())["head"]
    np.testing.assert_allclose(answer.effects, [scoring_toys.HEAD, 2 * scoring_toys.HEAD], rtol=1e-6)


def test_out_of_reach_is_zero_and_never_asked_for():
    asked = []
    tool = scoring_toys.linear()
    tool = tool._replace(
        seen=({**tool.reach, "head": np.array([[True, True], [False, False]])},),
        exact=lambda kind, indices, progress: asked.append(indices.tolist()) or np.ones((len(indices), 2)),
    )
    effects = exact.effects(tool, ("head",), scoring_toys.options())["head"].effects
    assert asked == [[[0, 0], [0, 1]]] and effects[:, 0].all() and not effects[:, 1].any()
    nothing = tool._replace(seen=({"head": np.zeros((2, 2), bool)},))
    assert not exact.effects(nothing, ("head",), scoring_toys.options())["head"].effects.any() and len(asked) == 1


def test_of_some_leaves_the_rest_at_zero():
    which = np.array([False, False, True])
    assert exact.of_some(scoring_toys.linear(), "part", which, scoring_toys.options()).tolist() == [
        [0, 0, -1],
        [0, 0, -2],
    ]


def test_progress_is_told_per_kind():
    seen = []
    options = scoring_toys.options(progress=lambda kind: lambda done, total: seen.append((kind, done, total)))
    exact.effects(scoring_toys.linear(), ("part", "head"), options)
    assert seen == [("part", 3, 3), ("head", 4, 4)]
