"""Who owns what, gates by name, and errors that say what there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.patching import components
from jaxpatch.patching.components import Kind, Slot
from jaxpatch.trees import paths


@pytest.fixture(scope="module")
def pair():
    return testing.tiny_pair(testing.tiny_config(attention_bias=True, output_bias=True, mlp_bias=True, positions=64))


@pytest.fixture(scope="module")
def partition(pair):
    return components.of_decoder(pair.base)


def owned_entries(pair, partition, kind) -> dict[str, np.ndarray]:
    """How many components of a kind own each entry of each leaf."""
    counts = {path: np.zeros(leaf.shape, int) for path, leaf in paths.flatten(pair.base).items()}
    for slot in partition[kind].slots:
        lengths = [partition[kind].shape[axis] for axis in range(len(partition[kind].shape))]
        assert np.zeros(lengths)[slot.select].shape == tuple(counts[slot.leaf].shape[axis] for axis in slot.axes)
        counts[slot.leaf] += 1
    return counts


def test_every_kind_is_there_and_owns_an_entry_once(pair, partition):
    assert set(partition) == set(components.KINDS) - {"expert", "router"}
    for kind in partition:
        assert max(count.max() for count in owned_entries(pair, partition, kind).values()) == 1, kind


def test_kinds_tile_the_model(pair, partition):
    """Layers, embeddings and final norm own every entry once; matrices and norms own a layer; head + kv leave only W_O's bias."""

    def owned(*kinds):
        return {path for kind in kinds for path, count in owned_entries(pair, partition, kind).items() if count.any()}

    everything = set(paths.flatten(pair.base))
    assert owned("layer", "embed", "positions", "unembed", "final_norm") == everything
    assert owned("matrix", "norm") == owned("layer")
    assert owned("attention", "mlp") == owned("matrix")
    assert owned("attention") - owned("head", "kv") == {"layers/attn/o/bias"}
    assert owned("mlp") - owned("neuron") == {"layers/mlp/down/bias"}
    assert not owned("head") & owned("kv") and not owned("head", "kv") & owned("neuron")


def test_experts_tile_their_mlp():
    pair = testing.tiny_pair(testing.tiny_config(experts=5, chosen=2, neurons=6))
    partition = components.of_decoder(pair.base)
    assert set(partition) == set(components.KINDS) - {"positions"}
    shapes = {kind: (partition[kind].shape, partition[kind].axes) for kind in ("neuron", "expert", "router")}
    assert shapes == {
        "neuron": ((3, 5, 6), ("layer", "expert", "neuron")),
        "expert": ((3, 5), ("layer", "expert")),
        "router": ((3,), ("layer",)),
    }
    owned = {kind: owned_entries(pair, partition, kind) for kind in partition}
    for path in paths.flatten(pair.base):
        counts = {kind: entries[path] for kind, entries in owned.items()}
        assert (counts["neuron"] == counts["expert"]).all()
        assert (counts["expert"] + counts["router"] == counts["mlp"]).all()
        assert (counts["matrix"] + counts["norm"] == counts["layer"]).all()
    made = components.gates(partition, {"neuron": [(2, 4, 5)], "expert": [(0, 3)]})
    assert np.argwhere(np.asarray(made["neuron"])).tolist() == [[2, 4, 5]]
    with pytest.raises(
        IndexError, match=r"no neuron \(0, 5, 0\): this model has \(layer, expert, neuron\) in \(3, 5, 6\)"
    ):
        components.gates(partition, {"neuron": [(0, 5, 0)]})


def test_gates_by_index_all_and_array(partition):
    chosen = {"head": [(1, 1), (2, 3)], "layer": [0], "mlp": "all", "kv": np.array([[0, 1]])}
    made = components.gates(partition, chosen, 0.5)
    assert np.argwhere(np.asarray(made["head"]) == 0.5).tolist() == [[1, 1], [2, 3]]
    assert made["layer"].tolist() == [0.5, 0, 0] and made["mlp"].tolist() == [0.5] * 3
    assert made["kv"].tolist() == [[0, 0.5], [0, 0], [0, 0]]
    assert all(gate.dtype == jnp.float32 for gate in made.values())
    assert set(made) == {"head", "layer", "mlp", "kv"}, "kinds that were not asked for are left out"
    drawn = np.random.default_rng(0).random((3, 4))
    np.testing.assert_array_equal(components.gates(partition, {"head": drawn})["head"], drawn.astype(np.float32))
    assert components.gates(partition, {"layer": np.array([True, False, True])})["layer"].tolist() == [1, 0, 1]
    assert not components.gates(partition, {"head": []})["head"].any()


def test_an_integer_array_is_indices_even_in_the_shape_of_the_gates(partition):
    """Three (layer, group) pairs have the shape of this model's kv gates."""
    which = np.array([[0, 1], [1, 0], [2, 1]])
    assert which.shape == partition["kv"].shape
    assert np.argwhere(np.asarray(components.gates(partition, {"kv": which})["kv"])).tolist() == which.tolist()


def test_everything_that_does_not_exist_is_named_at_once(partition):
    with pytest.raises(IndexError) as caught:
        components.gates(
            partition, {"head": [(1, 1), (3, 0), (0, 4), 2, (0, -1)], "neuron": [(0, 24)], "layer": [7, 1.5]}
        )
    message = str(caught.value)
    for part in (
        "no head (3, 0)",
        "no head (0, 4)",
        "no head 2",
        "no head (0, -1)",
        "no neuron (0, 24)",
        "no layer 7",
        "no layer 1.5",
    ):
        assert part in message, part
    assert "(layer, head) in (3, 4)" in message and "(1, 1)" not in message


def test_faults_of_every_sort_are_named_together(partition):
    wanted = {"haed": [0], "head": [(9, 9)], "flux": "all", "mlp": "none", "layer": [1]}
    with pytest.raises(ValueError) as caught:
        components.gates(partition, wanted)
    for part in ("'haed'; did you mean 'head'", "no head (9, 9)", "'flux'", "gates for 'mlp': wanted [layer, ...]"):
        assert part in str(caught.value), part
    with pytest.raises(KeyError, match=r"'haed'.*'flux'"):
        components.gates(partition, {kind: wanted[kind] for kind in ("haed", "flux", "layer")})


@pytest.mark.parametrize("kind", ["k", "v", "k_head", "head-key", "value", "qkv"])
def test_keys_and_values_of_one_head_are_explained(partition, kind):
    with pytest.raises(KeyError, match=r"belong to a group of query heads.*2 groups for 4 query heads.*ask for 'kv'"):
        components.gates(partition, {kind: [(0, 0)]})


def test_kv_by_query_head_is_explained(partition):
    with pytest.raises(IndexError, match=r"kv \(1, 3\): keys and values belong to a group.*group 0 to 1"):
        components.gates(partition, {"kv": [(1, 3)]})


def test_unknown_and_missing_kinds(partition):
    with pytest.raises(KeyError, match="unknown component 'heads'; did you mean 'head'"):
        components.lookup(partition, "heads")
    with pytest.raises(KeyError, match=r"unknown component 'flux'; Known: head, kv, neuron"):
        components.lookup(partition, "flux")
    with pytest.raises(KeyError, match="MLPs are not made of experts: there is no 'router'; ask for 'neuron' or 'mlp'"):
        components.lookup(partition, "router")
    tied = components.of_decoder(testing.tiny_pair(testing.tiny_config(tied=True)).base)
    assert "unembed" not in tied
    with pytest.raises(KeyError, match=r"ties its unembedding to its embedding.*'embed'"):
        components.lookup(tied, "unembed")


@pytest.mark.parametrize(
    ("wanted", "got"),
    [("some", "'some'"), (3, "3"), (np.zeros((4, 3)), r"an array \(4, 3\)"), (np.ones(3, bool), r"\(3,\)")],
)
def test_gates_of_no_sort_are_refused(partition, wanted, got):
    with pytest.raises(
        ValueError, match=rf"gates for 'head': wanted \[\(layer, head\), ...\], an array \(3, 4\) or 'all'; got .*{got}"
    ):
        components.gates(partition, {"head": wanted})


def test_a_block_has_the_same_kinds_without_the_layer_axis(pair, partition):
    block = components.of_block(jax.tree.map(lambda leaf: leaf[1], pair.base["layers"]))
    for name in block:
        assert block[name].shape == partition[name].shape[1:], name
    assert not {"embed", "unembed", "final_norm"} & set(block)


def test_delta_norms_by_hand():
    """A 2 x 3 matrix that changes by 3 and 4 in one column, and a bias that changes by 12 there: 5, and 13 with the bias."""
    base = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    special = {"w": np.float32([[0, 3, 0], [0, 4, 1]]), "b": np.float32([0, 12, 0])}
    column = Kind((3,), ("column",), (Slot("w", (1,)),))
    assert components.delta_norms(base, special, column).tolist() == [0, 5, 1]
    with_bias = Kind((3,), ("column",), (Slot("w", (1,)), Slot("b", (0,))))
    assert components.delta_norms(base, special, with_bias).tolist() == [0, 13, 1]
    turned = Kind((3, 2), ("column", "row"), (Slot("w", (1, 0)),))
    assert components.delta_norms(base, special, turned).tolist() == [[0, 0], [3, 4], [0, 1]]
    parts = Kind((2,), ("part",), (Slot("w", (), (0,)), Slot("b", (), (1,))))
    np.testing.assert_allclose(components.delta_norms(base, special, parts), [26**0.5, 12], rtol=1e-6)


def test_delta_norms_of_a_decoder_add_up(pair, partition):
    """Squares over all components that tile the model make the square of the whole difference."""
    kinds = ("matrix", "norm", "embed", "positions", "unembed", "final_norm")
    total = sum((components.delta_norms(pair.base, pair.special, partition[kind]) ** 2).sum() for kind in kinds)
    a, b = paths.flatten(pair.base), paths.flatten(pair.special)
    np.testing.assert_allclose(total, sum(((b[path] - a[path]) ** 2).sum() for path in a), rtol=1e-5)
    head = components.delta_norms(pair.base, pair.special, partition["head"])
    q, bias, o = (np.asarray(b[f"layers/attn/{p}"] - a[f"layers/attn/{p}"]) for p in ("q/kernel", "q/bias", "o/kernel"))
    by_hand = np.sqrt((q[2, :, 1] ** 2).sum() + (bias[2, 1] ** 2).sum() + (o[2, 1] ** 2).sum())
    np.testing.assert_allclose(head[2, 1], by_hand, rtol=1e-5)
