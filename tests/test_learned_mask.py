"""Masks that are learned: what a task needs of a change is kept, and what it does not is let go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.models.checkpoints import Pair
from jaxpatch.trees import paths


@pytest.fixture(scope="module")
def pair():
    """What an expert needs is large in its last block; beside it, everything in its first changed a little in any direction, too."""
    pair = testing.tiny_pair(change=0.5)
    keys = iter(jax.random.split(jax.random.key(3), 100))

    def mixed(path, base, special):
        if not path.startswith("layers/"):
            return base
        noise = 1e-4 * jax.random.normal(next(keys), base[:1].shape)
        return jnp.concatenate([base[:1] + noise, base[1:2], special[2:]])

    a, b = paths.leaves(pair.base), paths.leaves(pair.special)
    return Pair(
        base=pair.base, special=paths.with_leaves(pair.base, {p: mixed(p, a[p], b[p]) for p in a}), config=pair.config
    )


@pytest.fixture(scope="module")
def told(pair):
    return jp.continuation(pair, pair.special, testing.tiny_inputs(), max_new=4)


def share(mask, block):
    own = [leaf[block] for path, leaf in paths.leaves(mask).items() if path.startswith("layers/")]
    return np.mean(np.concatenate([each.ravel() for each in own]))


def test_what_the_answers_need_is_kept(pair, told):
    mask = jp.learn_mask(pair, told, density=0.3, sparsity=0.05, steps=60)
    kept = jp.merge("localize_and_stitch", pair.base, [pair.special], statistics=[mask])
    by_size = jp.merge("localize_and_stitch", pair.base, [pair.special], density=0.01)
    far = [
        float(jp.divergence(pair, params, told, reference=pair.special).surprise.mean())
        for params in (pair.special, kept, by_size, pair.base)
    ]
    assert far[1] < 0.5 * (far[0] + far[3]) and far[1] < far[2]
    assert share(mask, 0) < 0.05 < share(mask, 2) and share(mask, 1) == 0


def test_what_costs_more_is_kept_less(pair, told):
    cheap, dear = (share(jp.learn_mask(pair, told, density=0.5, sparsity=each, steps=40), 2) for each in (0.0, 50.0))
    assert dear < 0.5 * cheap


def test_a_mask_is_of_what_changed_and_the_same_for_the_same_seed(pair, told):
    one, two = (jp.learn_mask(pair, told, steps=2, batch=2, seed=1) for _ in range(2))
    for path, leaf in paths.leaves(one).items():
        assert leaf.dtype == bool and (leaf == paths.leaves(two)[path]).all()
        assert not (leaf & np.asarray(paths.leaves(pair.base)[path] == paths.leaves(pair.special)[path])).any()


def test_masks_say_what_is_kept_and_density_does_not(pair, told):
    mask = jp.learn_mask(pair, told, steps=1)
    with pytest.raises(ValueError, match="masks say what is kept, so density means nothing"):
        jp.merge("localize_and_stitch", pair.base, [pair.special], statistics=[mask], density=0.1)
    with pytest.raises(ValueError, match=r"wants those of each of 2 experts, as jp\.learn_mask makes them; got 1"):
        jp.merge("localize_and_stitch", pair.base, [pair.special] * 2, statistics=[mask])
    with pytest.raises(ValueError, match="keeps a part of each difference: say how much"):
        jp.merge("localize_and_stitch", pair.base, [pair.special])


def test_all_that_is_wrong_at_once(pair, told):
    with pytest.raises(ValueError, match=r"(?s)density: .*sparsity: .*rate: .*steps: .*batch: .*seed: "):
        jp.learn_mask(pair, told, density=2, sparsity=-1, rate=-1, steps=0, batch=0, seed=-1)
