"""In what the two checkpoints of a pair are not alike, and who decides.

A patched model is one function: one config, one set of token ids, one prompt. Where two checkpoints of one architecture disagree about
any of these, nothing is chosen silently: `Choices` say whose word counts, and what is left open is refused, all of it at once. What can
only be done in one way is done, and noted. All of this is ours.
"""

import json
from collections.abc import Mapping, Sequence
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
        "a text becomes other ids, ids become another text, or special tokens are others",
        "both models must read the same tokens",
        SIDES,
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
    "ending": Policy(
        "other ids end an answer (eos_token_id of generation_config.json or config.json)",
        "answers of both models and of all between them must end alike",
        SIDES,
    ),
    "context": Policy("one reads longer texts", "prompts must fit both: the shorter context counts"),
    "tying": Policy(
        "one ties its unembedding to its embedding", "a patch of one must not move the other: the tied one gets a copy"
    ),
    "reading": Policy(
        "only one has a tokenizer",
        "both models must read the same tokens: its tokenizer serves both, and its chat template",
    ),
    "padding": Policy(
        "another token pads", "prompts are padded on the right, where no model looks: it changes nothing"
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
        ending: "base" or "special": whose ids end an answer.
    """

    vocabulary: str | None = None
    settings: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    adapter: str | None = None
    ending: str | None = None


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
    these are known to be two (`origins.are_two`). ends: ids that end an answer; none where nobody says.
    """

    config: DecoderConfig
    tokenizer: Any | None
    adapter: tuple[str, str] | None = None
    ends: tuple[int, ...] = ()


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
    elif one.tokenizer is not None or two.tokenizer is not None:
        own, other = ("has none" if each.tokenizer is None else "has a tokenizer" for each in (one, two))
        found.append(Difference("reading", own, other))
    if two.adapter is not None:
        found.append(Difference("adapter", f"is {two.adapter[0]}", f"was trained on {two.adapter[1]}", choices.adapter))
    if one.ends and two.ends and one.ends != two.ends:
        own, other = (f"ends answers with {_named(each)}" for each in (one, two))
        found.append(Difference("ending", own, other, choices.ending))
    if a.context != b.context:
        found.append(Difference("context", f"reads {a.context} tokens", f"reads {b.context}"))
    if a.tied != b.tied:
        own, other = ("ties them" if each.tied else "has two tables" for each in (a, b))
        found.append(Difference("tying", own, other))
    if one.tokenizer is not None and two.tokenizer is not None:
        pads = one.tokenizer.pad_token, two.tokenizer.pad_token
        if pads[0] != pads[1]:
            own, other = ("has none" if pad is None else f"pads with {pad!r}" for pad in pads)
            found.append(Difference("padding", own, other))
    return tuple(found)


def rows_of_base(found: Sequence[Difference]) -> int | None:
    """How many rows base's own vocabulary has, where it is not special's.

    >>> from jaxpatch import testing
    >>> base, special = (Side(testing.tiny_config(vocab=rows), None) for rows in (61, 43))
    >>> rows_of_base(between(base, special, Choices(vocabulary="shared")))
    61
    """
    return next((int(each.base.split()[1]) for each in found if each.name == "vocabulary"), None)


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


def shared_tokenizer(one: Side, two: Side, choices: Choices) -> Any | None:
    """The tokenizer of the side that was chosen, or of base; of the other where that one has none."""
    own, other = (two, one) if choices.tokenizer == "special" else (one, two)
    return other.tokenizer if own.tokenizer is None else own.tokenizer


def shared_template(one: Side, two: Side, choices: Choices) -> str | None:
    """The chat template of the side that was chosen, or of the one whose tokenizer reads; None for none. A file's stands above this."""
    chosen = {"base": one, "special": two}.get(choices.template or "")
    tokenizer = shared_tokenizer(one, two, choices) if chosen is None else chosen.tokenizer
    return None if tokenizer is None or choices.template == "none" else template_of(tokenizer)


def shared_ends(one: Side, two: Side, choices: Choices) -> tuple[int, ...]:
    """The ids that end an answer: of the side that was chosen, or of base; of the other where that one names none."""
    own, other = (two, one) if choices.ending == "special" else (one, two)
    return own.ends or other.ends


def ends_of(named: tuple[int, ...], tokenizer: Any | None) -> tuple[int, ...]:
    """The ids that end an answer, where a checkpoint's configs name these: the tokenizer's own where they name none."""
    known = None if tokenizer is None else tokenizer.eos_token_id
    return named or (() if known is None else (known,))


def template_of(tokenizer: Any) -> str | None:
    """A tokenizer's chat template, or None. Of several by name, the default one."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, Mapping) else template or None


def _read_otherwise(one: Any, two: Any, rows: int) -> tuple[str, str] | None:
    """In what two tokenizers read or write texts otherwise, in words for each; None where they do not. Tokens beyond the rows that both
    models have are the vocabulary's affair, and a token that pads is nobody's."""
    if one is two:
        return None
    said = ([], [])
    vocabularies = [_ids(each) for each in (one, two)]
    added, rules, special = ([f(each) for each in (one, two)] for f in (_added, _rules, _special))
    for words, here, there in zip(said, vocabularies, vocabularies[::-1], strict=True):
        own = sorted(
            (t for t, number in here.items() if number < rows and there.get(t) != number), key=here.__getitem__
        )
        words += [f"has {len(own)} ids of its own ({_some(list(map(repr, own)))})"] if own else []
    shared = {token for token, number in vocabularies[0].items() if vocabularies[1].get(token) == number < rows}
    for words, here, there in zip(said, added, added[::-1], strict=True):
        own = [f"{t!r}: {flags}" for t, flags in here.items() if t in shared and there.get(t) != flags]
        words += [f"has {len(own)} added tokens of its own ({_some(own)})"] if own else []
    if parts := sorted(name for name in rules[0] | rules[1] if rules[0].get(name) != rules[1].get(name)):
        said[1].append(f"has another {' and '.join(parts)}")
    for name in sorted(name for name in special[0] | special[1] if special[0].get(name) != special[1].get(name)):
        for words, here in zip(said, special, strict=True):
            words.append(f"has {name} {here[name]!r}" if name in here else f"has no {name}")
    own, other = (", ".join(words) or "has nothing of its own" for words in said)
    return (own, other) if any(said) else None


def _some(tokens: list[str]) -> str:
    return ", ".join(tokens[:SHOWN]) + ", ..." * (len(tokens) > SHOWN)


def _named(side: Side) -> str:
    """The ids that end a side's answers, with the tokens that they are where that is known."""
    tokens = {} if side.tokenizer is None else {number: token for token, number in _ids(side.tokenizer).items()}
    return _some([f"{each} ({tokens[each]!r})" if each in tokens else str(each) for each in side.ends])


def _ids(tokenizer: Any) -> dict[str, int]:
    return tokenizer.get_vocab()


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""What there is to say of a token that is cut out of a text before anything else."""


def _added(tokenizer: Any) -> dict[str, str]:
    """Tokens that are cut out of a text before anything else, and how."""
    found = tokenizer.added_tokens_decoder.values()
    return {str(token): " ".join(flag for flag in FLAGS if getattr(token, flag)) or "plain" for token in found}


def _special(tokenizer: Any) -> dict[str, str]:
    """Tokens that have a name, by which a template may put them into a prompt; but the one that pads."""
    return {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}


def _rules(tokenizer: Any) -> dict[str, Any]:
    """How a tokenizer cuts texts and joins tokens, without the tables of its ids: part -> what the tokenizers library writes of it."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return {"class": type(tokenizer).__name__}
    parts = json.loads(inner.to_str())
    model = {name: value for name, value in parts["model"].items() if name != "vocab"}
    own = {name: parts[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return {**own, "model": model, "split_special_tokens": tokenizer.split_special_tokens}
