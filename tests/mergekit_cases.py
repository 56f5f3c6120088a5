"""Merging beside mergekit: models as both sides take them, what mergekit makes of them, and the numbers that ours draws."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from mergekit.merge_methods import merge_state_dicts

import jaxpatch as jp
from jaxpatch.merging import tensors
from jaxpatch.models import convert
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.trees import paths


class Case(NamedTuple):
    """A base, and experts of it. config: None of trees that are no decoder's, whose leaves are the tensors."""

    config: DecoderConfig | None
    base: dict
    experts: Sequence[dict]

    def as_tensors(self, tree: dict) -> dict[str, torch.Tensor]:
        """What a checkpoint of it holds, by name, in the order in which mergekit takes it."""
        if self.config is None:
            return {path: torch.tensor(np.asarray(leaf)) for path, leaf in sorted(paths.leaves(tree).items())}
        rules = FAMILIES[self.config.family].rules(self.config)
        made = {name: torch.tensor(np.asarray(array)) for name, array in convert.to_tensors(tree, rules, self.config)}
        return dict(sorted(made.items()))

    def by_mergekit(self, method: str, *, weights=1.0, density=None, scale=None, gamma=None, epsilon=None, **options):
        """Through its door for dicts of tensors."""
        names = [f"expert {number}" for number in range(len(self.experts))]
        dicts = dict(zip(names, map(self.as_tensors, self.experts), strict=True))
        if method != "linear":
            dicts["base"] = self.as_tensors(self.base)

        def each(value):
            return dict(zip(names, np.broadcast_to(value, len(names)).tolist(), strict=True))

        said = {"density": density, "gamma": gamma, "epsilon": epsilon}
        parameters: dict[str, Any] = options | {name: each(value) for name, value in said.items() if value is not None}
        parameters |= {"t": weights} if method == "slerp" else {"weight": each(weights)}
        parameters |= {} if scale is None else {"lambda": scale}
        return merge_state_dicts(dicts, method, parameters=parameters, base="base" if method != "linear" else None)

    def drawn(self, seed: int = 0) -> list[dict[str, torch.Tensor]]:
        """The uniform numbers of our merge, as checkpoint tensors: one dict for each expert."""
        leaves = paths.leaves(self.base)
        layouts = tensors.layouts({path: leaf.shape for path, leaf in leaves.items()})
        trees = [{} for _ in self.experts]
        for number, (path, leaf) in enumerate(sorted(leaves.items())):
            stack, rows, inside = tensors.split(leaf, layouts[path]).shape
            of_leaf = jax.random.fold_in(jax.random.key(seed), number)

            def of_row(expert, tensor, row, of_leaf=of_leaf, inside=inside):
                key = of_leaf
                for place in (tensor, expert, row):
                    key = jax.random.fold_in(key, place)
                return jax.random.uniform(key, (inside,))

            for expert, tree in enumerate(trees):
                of_rows = jax.vmap(jax.vmap(functools.partial(of_row, expert), (None, 0)), (0, None))
                each = of_rows(np.arange(stack), np.arange(rows))
                tree[path] = tensors.joined(each, layouts[path], leaf.shape)
        return [self.as_tensors(paths.with_leaves(self.base, tree)) for tree in trees]


def assert_same(case: Case, method: str, close: Mapping[str, torch.Tensor] = MappingProxyType({}), **asked) -> None:
    """1e-6 of each tensor's largest entry; but for those that are `close`, once mergekit's side is made."""
    wanted = case.by_mergekit(method, **asked)
    ours = {name: value for name, value in asked.items() if name != "rescale"}
    if "rescale" in asked:
        ours["rescale"] = "norm" if asked["rescale"] else "none"
    got = case.as_tensors(jp.merge(method, case.base, case.experts, **ours))
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        large = float(tensor.abs().max())
        mine = torch.where(close[name].reshape(tensor.shape), tensor, got[name]) if name in close else got[name]
        np.testing.assert_allclose(mine.numpy(), tensor.numpy(), rtol=1e-6, atol=1e-6 * large, err_msg=name)


def differing(case: Case, method: str, **asked) -> dict[str, np.ndarray]:
    """Where ours is not what mergekit's is, by tensor, flat."""
    wanted, got = case.by_mergekit(method, **asked), case.as_tensors(jp.merge(method, case.base, case.experts, **asked))
    return {
        name: (got[name] - tensor).abs().numpy().ravel() > 1e-6 * float(tensor.abs().max())
        for name, tensor in wanted.items()
    }


def of_equals_first_is_larger(monkeypatch) -> None:
    """mergekit's sorts leave to torch which of equal magnitudes is taken for the larger; ours is the first, and so it is here."""
    argsort, sort = torch.argsort, torch.sort
    monkeypatch.setattr(torch, "argsort", lambda x, **how: argsort(x, stable=True, **how))

    def sorted_up(x, *, descending):
        assert not descending
        values, places = sort(x.flip(-1), stable=True)
        return torch.return_types.sort((values, x.shape[-1] - 1 - places))

    monkeypatch.setattr(torch, "sort", sorted_up)


def assert_same_where_dropped(case: Case, method: str, monkeypatch, **asked) -> int:
    """The same for what is random: mergekit's trials are replaced by ours. Returns how many of them it did not ask for.

    A chance of float32 may differ in its last place, and among millions of numbers some fall between the two: those within 1e-6 of it
    are not compared, which are few.
    """
    uniform, close = case.drawn(), {}
    trials = iter([(name, each[name]) for name in uniform[0] for each in uniform])

    def bernoulli(chance):
        name, drawn = next(trials)
        drawn = drawn.reshape(chance.shape)
        close[name] = close.get(name, False) | ((drawn - chance).abs() < 1e-6)
        return (drawn < chance).to(chance.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    assert_same(case, method, close, **asked)
    assert sum(int(each.sum()) for each in close.values()) <= 1e-5 * sum(each.numel() for each in close.values())
    return len(list(trials))
