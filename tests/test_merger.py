"""What cannot be merged is refused, all of it at once, before anything is done."""

import jax.numpy as jnp
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.patching import components

BASE, EXPERT = {"w": jnp.ones((2, 3))}, {"w": jnp.zeros((2, 3))}


def refused(*arguments, **asked):
    with pytest.raises(ValueError) as caught:
        jp.merge(*arguments, **asked)
    return str(caught.value)


def test_all_faults_at_once():
    said = refused(
        "ties",
        BASE,
        [EXPERT, {"w": jnp.zeros((3, 2))}],
        weights=[1.0],
        density=1.5,
        scale=float("nan"),
        trims="all",
        seed=-1,
    )
    assert "expert 1: w: base has shape (2, 3), expert has (3, 2)" in said
    assert "weights: wanted one number, or 2, one for each expert; got 1." in said
    assert "density: wanted shares from 0 to 1; got 1.5." in said
    assert "scale: wanted a finite number; got nan." in said
    assert "ties has no option 'trims'; did you mean 'trim'?" in said
    assert "seed: wanted a whole number of at least 0; got -1." in said


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        ("tie", {}, "there is no method 'tie'; did you mean 'ties'?"),
        ("ties", {}, "ties keeps a part of each difference: say how much of it"),
        ("linear", {"density": 0.5}, "linear keeps all of each difference, so density means nothing to it"),
        ("linear", {"scale": 0.5}, "linear adds no difference to base, so scale means nothing to it"),
        ("linear", {"weights": [1.0, -1.0]}, "weights: they add up to 0"),
        ("linear", {"weights": "much"}, "weights: wanted a number, or one for each expert; got 'much'."),
        ("linear", {"weights": float("inf")}, "weights: wanted finite numbers; got inf."),
        ("slerp", {}, "slerp takes 1 expert; got 2."),
        ("della", {"density": 0.9}, "epsilon: at a density of 0.9 it must be less than 0.1; got 0.15."),
        ("della", {"density": 0.5, "epsilon": 0.7}, "epsilon: wanted a number from 0 to 0.5; got 0.7."),
        ("ties", {"density": 0.5, "trim": "none"}, "trim: wanted 'tensor' or 'all'; got 'none'."),
        ("ties", {"density": 0.5, "normalize": 1}, "normalize: wanted True or False; got 1."),
    ],
)
def test_what_a_method_cannot_do(method, asked, said):
    assert said in refused(method, BASE, [EXPERT, EXPERT], **asked)


def test_trees_that_do_not_go_together():
    assert "wanted a list of at least one tree of parameters; got none" in refused("linear", BASE, [])
    assert "expert 0: v: only in expert" in refused("linear", BASE, [{"w": EXPERT["w"], "v": jnp.zeros(1)}])
    broken = {"w": EXPERT["w"].at[0, 0].set(jnp.nan)}
    assert "expert 1: w holds NaN or infinity" in refused("linear", BASE, [EXPERT, broken])
    assert "base: w holds NaN or infinity" in refused("linear", broken, [EXPERT])
    whole = [{"n": jnp.array([number])} for number in (1, 2)]
    assert "expert 0: n holds whole numbers, and others than base's" in refused("linear", whole[0], whole[1:])


def test_what_must_be_known_of_the_data():
    assert "statistics: fisher wants those of each of 1 experts, as jp.fisher makes them; got none." in refused(
        "fisher", BASE, [EXPERT]
    )
    assert "as jp.moments makes them; got 1." in refused("regmean", BASE, [EXPERT, EXPERT], statistics=[{}])
    assert "statistics: linear looks at no data; leave them out." in refused("linear", BASE, [EXPERT], statistics=[{}])
    base = {"a": {"kernel": jnp.ones((2, 3))}}
    said = refused("regmean", base, [base], statistics=[{"a": {"kernel": jnp.ones((3, 3))}, "b": jnp.ones(2)}])
    assert "statistics 0: a/kernel: wanted (2, 2), as jp.moments makes it; got (3, 3)." in said
    assert "statistics 0: b is no leaf of these models." in said
    assert "statistics 0: a/kernel: wanted (2, 3), as jp.fisher makes it; got (2, 2)." in refused(
        "fisher", base, [base], statistics=[{"a": {"kernel": jnp.ones((2, 2))}}]
    )


def test_what_is_said_of_gates():
    assert "rest is the gate of what gates say nothing of" in refused("linear", BASE, [EXPERT], rest=1.0)
    assert "rest: wanted a share from 0 to 1; got 1.5." in refused("linear", BASE, [EXPERT], rest=1.5)
    assert "partition: these are no decoder's parameters" in refused("linear", BASE, [EXPERT], gates=[{}])
    pair = testing.tiny_pair()
    gates = {
        "heads": jnp.ones(1),
        "head": jnp.ones((2, 3)),
        "neuron": jnp.full(components.of_decoder(pair.base)["neuron"].shape, 1.5),
    }
    said = refused("linear", pair.base, [pair.special], gates=[gates])
    assert "gates 0: heads: there is no such kind; did you mean 'head'?" in said
    assert "gates 0: head: wanted (" in said and "one for each component; got (2, 3)." in said
    assert "gates 0: neuron: wanted shares from 0 to 1, or NaN; got 1.5 to 1.5." in said


def test_statistics_that_are_not_finite():
    known = {"w": jnp.ones((2, 3)).at[0, 0].set(jnp.inf)}
    assert "statistics 0: w holds NaN or infinity." in refused("fisher", BASE, [EXPERT], statistics=[known])
    assert "floor: wanted a number from 1e-30 to inf; got 0." in refused(
        "fisher", BASE, [EXPERT], statistics=[{}], floor=0
    )
