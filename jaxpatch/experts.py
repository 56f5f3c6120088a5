"""Several special models of one base (experts; not those that an MLP is made of): one call scores them all, another compares them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpatch import pipeline
from jaxpatch.measuring import sweep
from jaxpatch.measuring.read_outs import ReadOut
from jaxpatch.measuring.tree_pairs import Read, TreePair
from jaxpatch.models.checkpoints import Pair
from jaxpatch.scoring import conflict, scores
from jaxpatch.trees import compare, paths

AnyPair = TypeVar("AnyPair", bound=Pair | TreePair)


def silent(name: str, kind: str) -> sweep.Progress:
    """Says nothing."""
    del name, kind
    return sweep.silent


def score_experts(
    experts: Mapping[str, tuple[Pair | TreePair, Any, ReadOut | Read]],
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    alpha: float = 0.05,
    sample: int = 200,
    steps: int = 16,
    limit: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[str, str], sweep.Progress] = silent,
) -> dict[str, scores.Scores]:
    """`score` for each of several special models of one base, on its own inputs and along its own anchor.

    Args:
        experts: name -> (pair, inputs, anchor), as for `score`. Their bases must hold the same numbers, and one of them is used;
            `with_one_base` lets the others be dropped beforehand.
        progress: called with an expert's name and a kind, gives a function called with (done, total). The rest as for `score`.

    Returns: name -> `Scores`.

    Raises: ValueError for pairs that have not one base, and for none, before anything is scored; whatever `score` raises, with the
        expert's name.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> asked = {f"axis {n}": (pair, prompts, jp.Anchor(layer=1, direction=jnp.eye(16)[n])) for n in (0, 1)}
        >>> list(score_experts(asked, kinds=("head",)))
        ['axis 0', 'axis 1']
    """
    pairs = with_one_base({name: pair for name, (pair, _, _) in experts.items()})
    made = {}
    for name, (_, inputs, anchor) in experts.items():
        try:
            made[name] = pipeline.score(
                pairs[name],
                inputs,
                anchor,
                kinds=kinds,
                method=method,
                aggregate=aggregate,
                top=top,
                alpha=alpha,
                sample=sample,
                steps=steps,
                limit=limit,
                seed=seed,
                memory=memory,
                mesh=mesh,
                progress=lambda kind, name=name: progress(name, kind),
            )
        except (ValueError, MemoryError) as error:
            raise type(error)(f"{name}: {error}") from error
    return made


def conflicts(
    pairs: Mapping[str, Pair | TreePair], found: Mapping[str, scores.Scores], kind: str, count: int
) -> conflict.Conflicts:
    """Do several experts have the same sources, and do they pull them the same way?

    Of every two: how many of the first `count` components they share, against chance (`overlap`); and of each shared one the cosine
    between what the two changed of its parameters, ``W_special - W_base``. A negative one pulls the component apart: merging both
    loses there what each has gained. Beside it stands the share of parameters that one raised and the other lowered; of two changes
    that have nothing to do with each other it is a half.

    Args:
        pairs: name -> pair, of one base. found: name -> what `score_experts` returned; the same names.
        kind: of component. count: how many of each expert's first.

    Returns: `Conflicts`, with tables `to_frame()` and `components()`.

    Raises: ValueError for fewer than two experts, names that do not match, and pairs that have not one base, all at once; KeyError,
        ValueError as `overlap`.

    References: sign conflict is TIES merging's, for each parameter (Yadav et al., arXiv 2306.01708); by component, and by cosine: ours.

    Example:
        >>> import jaxpatch as jp
        >>> import jax, jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> back = jax.tree.map(lambda base, special: 2 * base - special, pair.base, pair.special)
        >>> pairs = {"there": pair, "back": jp.Pair(base=pair.base, special=back, config=pair.config)}
        >>> aims = {"there": anchor, "back": jp.Anchor(layer=1, direction=-anchor.direction)}
        >>> found = score_experts({name: (each, prompts, aims[name]) for name, each in pairs.items()}, kinds=("head",))
        >>> made = conflicts(pairs, found, "head", 8).to_frame()
        >>> made[["one", "other", "shared", "cosine", "pulled_apart"]].round(3).values.tolist()
        [['there', 'back', 8, -1.0, 8]]
    """
    faults = [f"wanted at least two experts; got {len(pairs)}"] if len(pairs) < 2 else []
    if apart := sorted(pairs.keys() ^ found.keys()):
        faults.append(f"pairs and scores are of one another's names; only in one of them: {', '.join(apart)}")
    if faults:
        raise ValueError("conflicts:\n" + "\n".join(f"  - {fault}" for fault in faults))
    kept = with_one_base(dict(pairs))
    base = next(iter(kept.values())).base
    return conflict.conflicts(
        base, {name: pair.special for name, pair in kept.items()}, {name: found[name] for name in kept}, kind, count
    )


def with_one_base(pairs: Mapping[str, AnyPair]) -> dict[str, AnyPair]:
    """The same pairs, all with the first one's base: where the others' are dropped, one is held.

    Raises: ValueError naming every pair whose base is another: other leaves, other numbers, or run under another config; and for none.

    Example:
        >>> from jaxpatch import testing
        >>> shared = with_one_base({"one": testing.tiny_pair(), "two": testing.tiny_pair()})
        >>> shared["one"].base is shared["two"].base
        True
    """
    if not pairs:
        raise ValueError("with_one_base: wanted at least one pair, by name; got none.")
    (first_name, first), *others = pairs.items()
    made, faults, own = {first_name: first}, [], paths.leaves(first.base)
    for name, pair in others:
        if wrong := _base_faults(first, pair):
            faults.append(f"{name} and {first_name}: {wrong}")
            continue
        theirs = paths.leaves(pair.base)
        special = {p: own[p] if leaf is theirs[p] else leaf for p, leaf in paths.leaves(pair.special).items()}
        made[name] = dataclasses.replace(pair, base=first.base, special=paths.with_leaves(pair.special, special))
    if faults:
        raise ValueError(
            "these experts have not one base:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nLoad all of them with the same base, dtype and choices."
        )
    return made


def _base_faults(first: Pair | TreePair, pair: Pair | TreePair) -> str:
    """In what two bases are not one, in words; nothing where they are."""
    if type(first) is not type(pair):
        return f"one is a {type(pair).__name__}, the other a {type(first).__name__}"
    for what in ("config", "partition"):
        if getattr(first, what, None) != getattr(pair, what, None):
            return f"their {what}s differ"
    if first.base is pair.base:
        return ""
    if wrong := compare.structure_faults(first.base, pair.base):
        return f"not of one architecture ({len(wrong)} leaves differ in name, shape or type)"
    a, b = paths.leaves(first.base), paths.leaves(pair.base)
    differ = [path for path in a if a[path] is not b[path] and not bool(jnp.array_equal(a[path], b[path]))]
    shown = ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
    return f"other numbers in {shown}" if differ else ""
