"""Gates of several experts that are learned: of the model that they describe, and on pairs of which the right gates are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import learned_merge, testing
from jaxpatch.measuring import effect, mixtures
from jaxpatch.models import decoder
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.trees import paths


@pytest.fixture(scope="module")
def pairs():
    """Two experts of one base: what one changes in its heads, the other does in its neurons."""
    pair = testing.tiny_pair(change=0.3)
    partition = components.of_decoder(pair.base)

    def of(kind):
        gates = {kind: np.ones(partition[kind].shape, np.float32)}
        return Pair(base=pair.base, special=jp.patch(pair.base, pair.special, gates), config=pair.config)

    return [of("head"), of("neuron")]


@pytest.fixture(scope="module")
def answers(pairs):
    return [jp.continuation(pair, pair.special, testing.tiny_inputs(), max_new=4) for pair in pairs]


def test_a_mixture_is_the_merged_model(pairs):
    rng, partition = np.random.default_rng(0), components.of_decoder(pairs[0].base)
    gates = tuple({"head": rng.random(partition["head"].shape).astype(np.float32)} for _ in pairs)
    specials = [testing.tiny_pair(change=0.3).special, *(pair.special for pair in pairs[1:])]
    merged = jp.merge("task_arithmetic", pairs[0].base, specials, gates=gates, rest=0.4)
    mixed = mixtures.Mixture(pairs[0].base, tuple(specials), gates, 0.4)
    tokens, ends, at = jnp.array([[3, 1, 4, 1, 5]]), jnp.array([4]), jnp.array([[1, 3]])
    got, wanted = (
        model.logits(pairs[0].config, mixtures.answering(pairs[0].config, model, tokens, ends, at))
        for model in (mixed, effect.unpatched(merged))
    )
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("objective", ["kl", "log_kl", "entropy"])
def test_the_loss_is_the_merged_model_s_divergence(pairs, answers, objective):
    """The mean over experts of the mean over answers, which may be of different lengths, of the mean over tokens."""
    told = [answers[0], jp.continuation(pairs[1], pairs[1].special, testing.tiny_inputs(), max_new=2)]
    made = jp.learn_merge(pairs, told, objective=objective, steps=1, batch=4, start=0.3, rest=0.3)
    merged = jp.merge("task_arithmetic", pairs[0].base, [pair.special for pair in pairs], weights=0.3)
    if objective != "entropy":
        apart = [
            jp.divergence(pair, merged, own, reference=pair.special).kl for pair, own in zip(pairs, told, strict=True)
        ]
    else:
        apart = [entropy(pairs[0].config, merged, own) for own in told]
    means = np.array([each.mean() for each in apart])
    wanted = np.log(means + learned_merge.FLOOR) if objective == "log_kl" else means
    np.testing.assert_allclose(made.losses[0], wanted.mean(), rtol=1e-4)


def entropy(config, params, told):
    """Of next tokens, the mean along each answer."""
    found = []
    for tokens, start, end in zip(*told, strict=True):
        logits = decoder.Decoder(config).apply({"params": params}, jnp.asarray(tokens[None, :end]))[0]
        log_p = jax.nn.log_softmax(logits[start - 1 : end - 1])
        found.append(-float((jnp.exp(log_p) * log_p).sum(-1).mean()))
    return np.array(found)


def test_what_an_expert_changed_is_taken(pairs, answers):
    """Each alone is told by KL from its own answers: gates of what it changed go to 1; of what it did not, nothing is learned."""
    made = jp.learn_merge(pairs[:1], answers[:1], steps=60, rate=0.1, rest=1.0, start=0.3)
    assert made.losses[-1] < 0.05 * made.losses[0]
    assert made.gates[0]["head"].mean() > 0.8
    np.testing.assert_allclose(made.gates[0]["neuron"], 0.3, atol=1e-6)


def test_sparsity_takes_less(pairs, answers):
    free, dear = (jp.learn_merge(pairs, answers, steps=20, rate=0.1, sparsity=each).taken for each in (0.0, 10.0))
    assert (dear[-1] < free[-1]).all() and free.shape == (21, 2)
    np.testing.assert_allclose(free[0], 0.3, rtol=1e-5)


def test_entropy_falls(pairs, answers):
    """AdaMerging's: one gate a block."""
    made = jp.learn_merge(pairs, answers, objective="entropy", kinds=("layer",), steps=20, rate=0.1)
    assert made.losses[-1] < made.losses[0] and made.gates[0]["layer"].shape == (3,)


def test_the_same_seed_learns_the_same(pairs, answers):
    one, two, other = (
        jp.learn_merge(pairs, answers, kinds=("layer",), steps=3, batch=1, seed=seed) for seed in (0, 0, 1)
    )
    assert all(map(np.array_equal, jax.tree.leaves(one.gates), jax.tree.leaves(two.gates)))
    assert not all(map(np.array_equal, jax.tree.leaves(one.gates), jax.tree.leaves(other.gates)))


def test_learned_gates_merge(pairs, answers):
    made = jp.learn_merge(pairs, answers, steps=2)
    merged = jp.merge(
        "task_arithmetic", pairs[0].base, [pair.special for pair in pairs], gates=made.gates, rest=made.rest
    )
    assert paths.leaves(merged).keys() == paths.leaves(pairs[0].base).keys()


def test_all_that_is_wrong_at_once(pairs, answers):
    other = testing.tiny_pair()
    with pytest.raises(ValueError) as caught:
        jp.learn_merge(
            [*pairs, other], answers, objective="loss", kinds=("layer", "head"), sparsity=-1, steps=0, start=2.0
        )
    for fault in (
        "objective: wanted kl or log_kl or entropy; got 'loss'.",
        "answers: wanted those of each of 3 experts; got 2.",
        "pairs: wanted one base, held once",
        "kinds: wanted at least one, and none that owns what another does; got layer, head.",
        "sparsity: wanted a number from 0 to inf; got -1.",
        "start: wanted a number from 0 to 1; got 2.0.",
        "steps: wanted a whole number of at least 1; got 0.",
    ):
        assert fault in str(caught.value), fault
    with pytest.raises(ValueError, match="kinds: embed are none of a block's"):
        jp.learn_merge(pairs, answers, kinds=("embed",))
    with pytest.raises(ValueError, match="wanted at least one expert with its base; got none"):
        jp.learn_merge([], [])
