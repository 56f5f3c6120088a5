"""What merging must know of an expert, against gradients and products that are taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import statistics
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import decoder
from jaxpatch.trees import paths


def test_fisher_is_the_mean_of_squared_slopes():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    logits = np.stack(
        [
            decoder.logits(pair.config, pair.special, prompts.tokens[number : number + 1])[0, length - 1]
            for number, length in enumerate(prompts.lengths)
        ]
    )
    drawn = jax.random.categorical(jax.random.key(5), jnp.asarray(logits))
    wanted: dict = {}
    for number, (token, length) in enumerate(zip(drawn, prompts.lengths, strict=True)):
        tokens = prompts.tokens[number : number + 1, : int(length)]

        def likely(params, tokens=tokens, token=token):
            return jax.nn.log_softmax(decoder.logits(pair.config, params, tokens)[0, -1])[token]

        for path, slope in paths.leaves(jax.grad(likely)(pair.special)).items():
            wanted[path] = wanted.get(path, 0) + np.asarray(slope) ** 2 / len(prompts.lengths)
    found = paths.leaves(jp.fisher(pair, pair.special, prompts, seed=5))
    for path, each in wanted.items():
        np.testing.assert_allclose(found[path], each, rtol=1e-3, atol=1e-6 * each.max(), err_msg=path)


def test_fisher_of_unit_norm():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    found, whole = (paths.leaves(jp.fisher(pair, pair.special, prompts, normalize=each)) for each in (True, False))
    norm = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in whole.values()))
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, whole[path] / norm, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("parallel", [False, True])
def test_moments_are_of_what_matrices_read(parallel):
    """Of head vectors token by token; and no moment is below nothing."""
    config = testing.tiny_config(parallel=True, pre_norm=True) if parallel else None
    pair, prompts = testing.tiny_pair(config), testing.tiny_inputs()
    found = jp.moments(pair, pair.special, prompts)["layers"]
    assert set(found["attn"]) == {"q", "k", "v", "o"} and set(found["mlp"]) >= {"up", "down"}
    total = np.zeros_like(found["attn"]["o"]["kernel"])
    count = 0
    for number, length in enumerate(prompts.lengths):
        tokens = prompts.tokens[number : number + 1, : int(length)]
        x = decoder.embedded(pair.config, pair.special, tokens)
        context = decoder.causal_context(pair.config, int(length), x.dtype)
        for layer in range(pair.config.layers):
            weights = {"params": decoder.layer_of(pair.special, layer)}

            def heads(block, x, here):
                return block.attn.attend(block.heads(x), here)

            block, here = decoder.Block(pair.config), context.at(layer)
            rows = np.asarray(block.apply(weights, x, here, method=heads)).reshape(int(length), -1)
            total[layer] += rows.T @ rows
            x = block.apply(weights, x, here)[0]
        count += int(length)
    np.testing.assert_allclose(found["attn"]["o"]["kernel"], total / count, rtol=1e-4, atol=1e-6)
    for half in found.values():
        for moment in half.values():
            assert (np.linalg.eigvalsh(moment["kernel"]) > -1e-4).all()


def test_padding_counts_for_nothing():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    longer = Inputs(jnp.pad(prompts.tokens, ((0, 0), (0, 3)), constant_values=7), prompts.lengths)
    for one, two in zip(
        *(jax.tree.leaves(jp.moments(pair, pair.special, each)) for each in (prompts, longer)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_regmean_of_a_decoder_answers_as_its_experts_do():
    """Of two experts with one set of inputs it is their mean, whatever these are."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    known = jp.moments(pair, pair.base, prompts)
    made = jp.merge("regmean", pair.base, [pair.base, pair.special], statistics=[known, known], shrink=1.0)
    for path, leaf in paths.leaves(jp.merge("linear", pair.base, [pair.base, pair.special])).items():
        np.testing.assert_allclose(paths.leaves(made)[path], leaf, atol=2e-3, err_msg=path)


def test_it_wants_a_decoder():
    trees = jp.TreePair({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, {})
    for of in (statistics.fisher, statistics.moments):
        with pytest.raises(ValueError, match="wanted a Pair of decoders"):
            of(trees, trees.base, testing.tiny_inputs())
