"""Text models inside of wholes that read more than text: their config, and what their tensors are called there.

A text reads the same with and without the parts that see: they are left out, and everything else is as strict as of a text model alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxpatch.models.config import ConfigError, DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.models.families.family import HARMLESS, IGNORED, Family, Ledger
from jaxpatch.trees import paths

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version")
"""Fields of the whole that go for the text model too, and change none of its numbers."""


def read_config(raw: Mapping[str, Any]) -> tuple[DecoderConfig, Mapping[str, Any]]:
    """config.json of a text model or of a whole around one -> our config, and the text model's own config.json.

    Raises ConfigError with every fault.

    Example:
        >>> sizes = dict(hidden_size=16, num_hidden_layers=7, num_attention_heads=4, intermediate_size=20)
        >>> config, raw = read_config({"model_type": "gemma3", "text_config": sizes})
        >>> config.family, raw["vocab_size"], raw["tie_word_embeddings"]
        ('gemma3_text', 262208, True)
    """
    whole = raw.get("model_type")
    known = [*FAMILIES, *(each for family in FAMILIES.values() for each in family.wrappings)]
    if not isinstance(whole, str) or whole not in known:
        raise ConfigError([f"model_type {whole!r} is not supported. {paths.did_you_mean(str(whole), known)}"])
    if whole in FAMILIES:
        return FAMILIES[whole].read_config(raw), raw
    ledger, faults = Ledger(raw), []
    text = ledger.table("text_config", faults)
    held = [name for name, family in FAMILIES.items() if whole in family.wrappings]
    name = text.get("model_type") or held[0]
    if name not in held:
        raise ConfigError(
            [f"text_config: model_type {name!r} is not supported inside of {whole} ({', '.join(held)} is)"]
        )
    style = FAMILIES[name].wrappings[whole]
    # transformers ties by the word of the whole alone, and writes its default into text_config whatever that is
    own = {
        **style.sizes,
        **text,
        **{field: value for field in _KEPT if (value := ledger.take(field)) is not None},
        "model_type": name,
        "architectures": [style.class_name],
        "tie_word_embeddings": ledger.need("tie_word_embeddings", faults, style.tied, kind=bool),
    }
    faults += ledger.unread(HARMLESS, IGNORED | style.ignored)
    faults += [
        f"text_config: {field} = {text[field]!r} is not supported (transformers does not use it inside of {whole})"
        for field in style.unused
        if text.get(field) is not None
    ]
    try:
        config = FAMILIES[name].read_config(own)
        if not faults:
            return config, own
    except ConfigError as error:
        faults += [f"text_config: {fault}" for fault in error.faults]
    raise ConfigError(faults)


def inside(family: Family, whole: str | None, names: Iterable[str]) -> Family:
    """The family with its tensors called as most are in a whole that has these names; as it is, where there is none around it.

    Args: whole: its model_type. names: of all its tensors.
    """
    style = family.wrappings.get(whole or "")
    if style is None:
        return family
    found = tuple(names)
    called = {
        ours: max(theirs, key=lambda start: sum(name.startswith(start) for name in found))
        for ours, theirs in style.starts.items()
    }

    def named(name: str) -> str:
        start = next(each for each in called if name.startswith(each))
        return called[start] + name.removeprefix(start)

    return family._replace(
        rules=lambda config: tuple(rule._replace(theirs=named(rule.theirs)) for rule in family.rules(config)),
        unembed=named(family.unembed),
        others=style.others,
    )


def whole_of(family: Family, names: Iterable[str]) -> str | None:
    """The model_type of the whole that tensors of these names belong to; None where they are a text model's own."""
    found = tuple(names)
    for whole, style in family.wrappings.items():
        theirs = {each for ours, several in style.starts.items() for each in several if each != ours}
        if any(name.startswith((*theirs, *style.others)) for name in found):
            return whole
    return None
