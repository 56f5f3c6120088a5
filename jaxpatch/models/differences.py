"""In what the two checkpoints of a pair are not alike, and who decides.

A patched model is one function: one config, one set of token ids, one prompt. Where two checkpoints of one architecture disagree about
any of these, nothing is chosen silently: `Choices` say whose word counts, and what is left open is refused, all of it at once. What can
only be done in one way is done, and noted. All of this is ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import paths

SETTINGS = (
    *(
        "rope",
        "local_rope",
        "norm_eps",
        "window",
        "local",
        "attention_scale",
        "attention_cap",
        "embed_scale",
        "residual_scale",
    ),
    *("logit_scale", "logit_cap", "chosen", "shares_sum_to_one"),
)
"""Fields of a config that change what is computed and no shape: the same weights can be run under either."""
SIDES = ("base", "special")
SHOWN = 6
"""Tokens named in a message."""


class Policy(NamedTuple):
    """What is done about one sort of difference. choices: what can be chosen; none where there is but one thing to do."""

    what: str
    why: str
    choices: tuple[str, ...] = ()


POLICIES = {
    "vocabulary": Policy(
        "one has more rows in its vocabulary",
        "a model has no row for a token that it does not know; `shared` keeps the rows that both have, and refuses prompts with others",
        ("shared",),
    ),
    "settings": Policy(
        "rotary positions, norm epsilon, windows, scales or caps differ",
        "a patched model runs the weights of both under one config",
        SIDES,
    ),
    "tokenizer": Policy(
        "a text becomes other ids, or another token ends an answer", "both models must read the same tokens", SIDES
    ),
    "template": Policy(
        "their chat templates differ, or one has none",
        "both models must read the same prompt; `none` gives requests as they are, a file a template of your own",
        (*SIDES, "none", "FILE"),
    ),
    "adapter": Policy(
        "an adapter was trained on another model than the one it goes into",
        "its numbers are changes to that model's weights; `merge` adds them to these",
        ("merge",),
    ),
    "context": Policy("one reads longer texts", "prompts must fit both: the shorter context counts"),
    "tying": Policy(
        "one ties its unembedding to its embedding", "a patch of one must not move the other: the tied one gets a copy"
    ),
}
"""Name of a difference -> what is done about it. docs/your_own_pair.md has the same table."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Whose word counts where base and special disagree; None refuses.

    Attributes:
        vocabulary: "shared" keeps the rows that both have.
        settings: "base" or "special": under whose rotary positions, norm epsilon, windows, scales and caps both are run.
        tokenizer: "base" or "special": whose tokenizer reads the prompts.
        template: "base" or "special": whose chat template requests stand in; "none", or a file with a Jinja template.
        adapter: "merge" adds an adapter to a model that is known to be another than the one it was trained on.
    """

    vocabulary: str | None = None
    settings: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    adapter: str | None = None


def choice_faults(choices: Choices) -> list[str]:
    """Choices that there are not, a sentence each. A template may be a file.

    >>> choice_faults(Choices(settings="bsae"))
    ["settings 'bsae': did you mean 'base'? Known: base, special."]
    """
    return [
        f"{name} {value!r}: {paths.did_you_mean(value, POLICIES[name].choices)}"
        for name, value in vars(choices).items()
        if value is not None and value not in POLICIES[name].choices and "FILE" not in POLICIES[name].choices
    ]


class Side(NamedTuple):
    """What is known of one checkpoint without its weights.

    tokenizer: as transformers makes it, or None. adapter: the model that an adapter went into, and the one it was trained on, where
    these are known to be two (`origins.are_two`).
    """

    config: DecoderConfig
    tokenizer: Any | None
    adapter: tuple[str, str] | None = None


class Difference(NamedTuple):
    """One thing in which two checkpoints disagree. base, special: what each says, in words. chosen: what was, or None."""

    name: str
    base: str
    special: str
    chosen: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether someone has to choose, and nobody did."""
        return bool(POLICIES[self.name].choices) and self.chosen is None

    def __str__(self) -> str:
        policy = POLICIES[self.name]
        said = f"{self.name}: base {self.base}, special {self.special}; {policy.why}"
        if self.is_open:
            options = ", ".join(f"--{self.name} {choice}" for choice in policy.choices)
            said += f". Choose: {options} (in Python {self.name}=)"
        return said


def architecture_faults(one: DecoderConfig, two: DecoderConfig) -> list[str]:
    """What no choice can mend, a sentence each.

    >>> from jaxpatch import testing
    >>> architecture_faults(testing.tiny_config(), testing.tiny_config(width=20, norm_eps=0.1))
    ['width: base has 16, special has 20']
    """
    mended = (*SETTINGS, "vocab", "tied", "context")
    return [
        f"{name}: base has {value!r}, special has {vars(two)[name]!r}"
        for name, value in vars(one).items()
        if value != vars(two)[name] and name not in mended
    ]


def between(one: Side, two: Side, choices: Choices) -> tuple[Difference, ...]:
    """All in which two checkpoints of one architecture disagree.

    >>> from jaxpatch import testing
    >>> base, special = (Side(testing.tiny_config(vocab=rows), None) for rows in (61, 63))
    >>> [found] = between(base, special, Choices(vocabulary="shared"))
    >>> found.base, found.special, found.is_open
    ('has 61 rows', 'has 63 rows', False)
    """
    a, b = one.config, two.config
    found = []
    if a.vocab != b.vocab:
        found.append(Difference("vocabulary", f"has {a.vocab} rows", f"has {b.vocab} rows", choices.vocabulary))
    if changed := [name for name in SETTINGS if vars(a)[name] != vars(b)[name]]:
        own, other = ("has " + ", ".join(f"{name} = {vars(each)[name]}" for name in changed) for each in (a, b))
        found.append(Difference("settings", own, other, choices.settings))
    if one.tokenizer is not None and two.tokenizer is not None:
        if said := _read_otherwise(one.tokenizer, two.tokenizer, min(a.vocab, b.vocab)):
            found.append(Difference("tokenizer", said[0], said[1], choices.tokenizer))
        templates = template_of(one.tokenizer), template_of(two.tokenizer)
        if templates[0] != templates[1]:
            own, other = ("has none" if each is None else f"has one of {len(each)} characters" for each in templates)
            found.append(Difference("template", own, other, choices.template))
    if two.adapter is not None:
        found.append(Difference("adapter", f"is {two.adapter[0]}", f"was trained on {two.adapter[1]}", choices.adapter))
    if a.context != b.context:
        found.append(Difference("context", f"reads {a.context} tokens", f"reads {b.context}"))
    if a.tied != b.tied:
        own, other = ("ties them" if each.tied else "has two tables" for each in (a, b))
        found.append(Difference("tying", own, other))
    return tuple(found)


def faults(one: Side, two: Side, choices: Choices) -> list[str]:
    """Why two checkpoints cannot be made one pair, a sentence each: what no choice can mend, and what nobody chose."""
    wrong = [f"{fault}; these must be equal" for fault in architecture_faults(one.config, two.config)]
    wrong += [str(each) for each in between(one, two, choices) if each.is_open]
    sides = {"base": one, "special": two}
    return wrong + [
        f"{name} {side}: {side} has no tokenizer; put its tokenizer.json beside its weights"
        for name, side in (("tokenizer", choices.tokenizer), ("template", choices.template))
        if side in sides and sides[side].tokenizer is None
    ]


def shared_config(one: DecoderConfig, two: DecoderConfig, choices: Choices) -> DecoderConfig:
    """What both models of a pair are run as."""
    chosen = two if choices.settings == "special" else one
    both = {name: min(vars(one)[name], vars(two)[name]) for name in ("vocab", "context")}
    return replace(chosen, **both, tied=one.tied and two.tied)


def shared_template(one: Side, two: Side, choices: Choices) -> str | None:
    """The chat template of the side that was chosen, or of base; None for none. A file's stands above this."""
    tokenizer = (two if choices.template == "special" else one).tokenizer
    return None if tokenizer is None or choices.template == "none" else template_of(tokenizer)


def template_of(tokenizer: Any) -> str | None:
    """A tokenizer's chat template, or None. Of several by name, the default one."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, Mapping) else template or None


def _read_otherwise(one: Any, two: Any, rows: int) -> tuple[str, str] | None:
    """In what two tokenizers read texts otherwise, in words for each; None where they do not. Tokens beyond the rows that both models
    have are the vocabulary's affair."""
    if one is two:
        return None
    vocabularies, rules = [each.get_vocab() for each in (one, two)], [_rules(each) for each in (one, two)]
    own = [
        sorted((t for t, number in here.items() if number < rows and there.get(t) != number), key=here.__getitem__)
        for here, there in (vocabularies, vocabularies[::-1])
    ]
    said = [f"has {len(each)} ids of its own ({_some(each)})" if each else "" for each in own]
    if parts := [name for name in rules[0] | rules[1] if rules[0].get(name) != rules[1].get(name)]:
        said[1] = f"{said[1]}, and " * bool(said[1]) + f"cuts texts by another {' and '.join(sorted(parts))}"
    ends = [each.eos_token for each in (one, two)]
    if ends[0] != ends[1]:
        said = [", ".join(filter(None, (part, f"ends with {end!r}"))) for part, end in zip(said, ends, strict=True)]
    return (said[0] or "has nothing of its own", said[1] or "has nothing of its own") if any(said) else None


def _some(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens[:SHOWN])) + ", ..." * (len(tokens) > SHOWN)


def _rules(tokenizer: Any) -> dict[str, Any]:
    """How a tokenizer cuts texts, without the table of its ids: part -> what the tokenizers library writes of it."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return {"class": type(tokenizer).__name__}
    parts = json.loads(inner.to_str())
    model = {name: value for name, value in parts["model"].items() if name != "vocab"}
    return {**{name: parts[name] for name in ("normalizer", "pre_tokenizer", "post_processor")}, "model": model}
