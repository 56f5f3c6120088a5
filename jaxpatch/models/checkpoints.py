"""Shell: two checkpoints in, a pair out."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpatch.models import (
    convert,
    decoder,
    differences,
    gguf_file,
    hub,
    layout,
    lora,
    orbax_dir,
    origins,
    sources,
    templates,
)
from jaxpatch.models.config import ConfigError, DecoderConfig
from jaxpatch.models.differences import Choices, Difference, Side
from jaxpatch.models.families import FAMILIES, Family, wrapping
from jaxpatch.models.sources import Source
from jaxpatch.shapes import Params
from jaxpatch.trees import compare, paths

DTYPES = ("float32", "bfloat16", "float16", "float64")
CheckpointError = sources.CheckpointError
MOST_TENSORS = 1_000_000
"""A config that asks for more is not believed."""


def on_device(path: str, leaf: np.ndarray, mesh: Mesh | None = None) -> jax.Array:
    """Where a leaf is to stay; of a mesh, each device is sent its own part. Leaves come one after the other, and the host's copy of
    each is given back before the next is made."""
    where = None if mesh is None else layout.sharding(path, leaf.shape, mesh)
    return jax.device_put(leaf, where, may_alias=True)


class Checkpoint(NamedTuple):
    """One model in memory.

    raw_config: of the text model, where it lay inside of a whole. files: what it was read from. beside: as `sources.Source` has it.
    left_out: names of tensors that are none of the text model's.
    ends: ids that its configs say end an answer. stored: the type that holds all of its weights as they were in the files, whatever
        config.json says. trained_on: what its adapter says of that, or None.
    """

    config: DecoderConfig
    params: Params
    raw_config: Mapping[str, Any]
    tokenizer: Callable[[], Any] | None
    files: tuple[Path, ...]
    beside: Mapping[str, str]
    ends: tuple[int, ...]
    stored: str
    left_out: tuple[str, ...] = ()
    trained_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A base model, and the same architecture after it was specialised.

    Attributes:
        base, special: parameters, nested dicts of one structure; leaves that do not differ are one and the same array.
        config: what the decoder is made of.
        tokenizer: base's where nothing else was chosen, as transformers makes it, or None.
        template: the chat template that requests stand in, or None.
        ends: ids that end an answer, any of them; that of the tokenizer where there are none.
        differences: in what the two checkpoints disagreed, and whose word counts.
        raw_config, beside: config.json, and files beside it (name -> text), to be written back by `save_checkpoint`. Of a model that
            reads more than text, the text model's own.
        files: "base" and "special" -> the files each was read from.
        stored: the same -> the type of its weights on disk, an adapter's that of the model under it.
        left_out: "base" and "special" -> names of tensors in them that are none of the text model's (those of a part that sees).
        trained_on: the same of those that are adapters -> the model that each says it was trained on.
    """

    base: Params = field(repr=False)
    special: Params = field(repr=False)
    config: DecoderConfig
    tokenizer: Any = field(default=None, repr=False)
    template: str | None = field(default=None, repr=False)
    ends: tuple[int, ...] = ()
    differences: tuple[Difference, ...] = ()
    raw_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    beside: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, repr=False)
    stored: Mapping[str, str] = field(default_factory=dict, repr=False)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    trained_on: Mapping[str, str] = field(default_factory=dict, repr=False)

    def apply(self, params: Params, tokens: Any) -> jax.Array:
        """Next-token logits. tokens: int [B, T], right-padded; returns [B, T, V]. Raises ValueError for bad tokens."""
        return _jit_logits(self.config, params, checked_tokens(tokens, self.config))


def refuse_others(pair: Any, what: str, instead: str) -> None:
    """Raises ValueError for what is no pair of decoders.

    Args: what: the function that wants one. instead: what to do with models of one's own.
    """
    if not isinstance(pair, Pair):
        raise ValueError(
            f"{what}: wanted a Pair of decoders, as load_pair makes; got a {type(pair).__name__}. {instead}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _jit_logits(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    return decoder.logits(config, params, tokens)


def checked_tokens(tokens: Any, config: DecoderConfig) -> jax.Array:
    """Token ids as int32 [B, T]. Raises ValueError for a wrong rank, ids out of range, or too many positions."""
    try:
        array = np.asarray(tokens)
    except ValueError:
        raise ValueError(
            "tokens: the prompts differ in length; pad them on the right with any id, to [B, T]."
        ) from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or 0 in array.shape:
        raise ValueError(f"tokens: wanted integers [B, T], got {array.dtype} {array.shape}.")
    if array.min() < 0 or array.max() >= config.vocab:
        row, column = np.argwhere((array < 0) | (array >= config.vocab))[0]
        raise ValueError(
            f"tokens[{row}, {column}] = {array[row, column]} is out of range; this model's ids are 0 to "
            f"{config.vocab - 1}. Were they made by another model's tokenizer?"
        )
    if array.shape[1] > config.context:
        raise ValueError(
            f"{array.shape[1]} tokens are more than the model's context of {config.context}; shorten them."
        )
    return jnp.asarray(array, jnp.int32)


def load_pair(
    base: str | Path,
    special: str | Path,
    *,
    dtype: str = "float32",
    vocabulary: str | None = None,
    settings: str | None = None,
    tokenizer: str | None = None,
    template: str | None = None,
    adapter: str | None = None,
    ending: str | None = None,
    mesh: Mesh | None = None,
    may_be_same: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pair:
    """Read two checkpoints of one architecture.

    Args:
        base: Hugging Face directory with safetensors, ``.gguf`` file, or hub id: ``owner/name`` or ``owner/name@revision``, and of a
            GGUF file there ``owner/name/file.gguf`` or ``owner/name@revision/file.gguf``. Or a PEFT LoRA adapter directory, which is
            merged into the model that it names as its own base. Or what `save_orbax` wrote.
        special: the same; an adapter is merged into `base`, or where that is an adapter, into the same model as it.
        dtype: "float32", "bfloat16", "float16" or "float64" (needs `jax_enable_x64`) in memory, whatever it is on disk.
        vocabulary, settings, tokenizer, template, adapter, ending: whose word counts where the two disagree
            (`differences.Choices`); what is left open is refused.
        mesh: devices of this process among which heads and neurons are cut, as `layout` says: each gets its part, and none the whole.
        may_be_same: whether two that differ in nothing are taken, of which nothing can be scored.
        progress: called with (steps done, steps).

    Returns: a `Pair`.

    Raises:
        CheckpointError: everything that is wrong with a checkpoint, at once.
        ValueError: different architectures, differences about which nobody chose, or nothing that differs.

    Example:
        >>> pair = load_pair("models/SmolLM2-135M", "adapters/capitals")  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; {paths.did_you_mean(dtype, DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype='float64' needs jax.config.update('jax_enable_x64', True) before anything else runs.")
    choices = Choices(
        vocabulary=vocabulary, settings=settings, tokenizer=tokenizer, template=template, adapter=adapter, ending=ending
    )
    if faults := choice_faults(choices):
        raise ValueError("\n".join(faults))
    if faults := location_faults(base=base, special=special):
        raise FileNotFoundError("\n".join(faults))
    mesh = None if mesh is None else _own(layout.checked(mesh))
    base_path, special_path = local(base), local(special)
    place = on_device if mesh is None else functools.partial(on_device, mesh=mesh)
    strangers = strangers_of(base, base_path, special_path)
    one, two = _both(base_path, special_path, dtype, place, progress, strangers)
    sides = sides_of((one.config, one.tokenizer, one.ends), (two.config, two.tokenizer, two.ends), strangers)
    if faults := differences.faults(*sides, choices):
        raise unlike(base_path, special_path, faults)
    config = differences.shared_config(one.config, two.config, choices)
    one, two = (_run_as(config, each) for each in (one, two))
    if faults := compare.structure_faults(one.params, two.params):
        raise unlike(base_path, special_path, faults)
    changed = set(compare.changed_leaves(one.params, two.params))
    if not changed and not may_be_same:
        raise ValueError(f"base {base_path} and special {special_path} are identical: there is nothing to score.")
    own, other = paths.flatten(one.params), paths.flatten(two.params)
    told = two if choices.settings == "special" else one
    ended = {"base": one, "special": two}.get(choices.ending or "", told)
    progress(3, 3)
    return Pair(
        base=one.params,
        special=paths.unflatten({name: other[name] if name in changed else own[name] for name in own}),
        config=config,
        tokenizer=differences.shared_tokenizer(*sides, choices),
        template=template_of(*sides, choices),
        ends=tuple(end for end in differences.shared_ends(*sides, choices) if end < config.vocab),
        differences=differences.between(*sides, choices),
        raw_config=told.raw_config if ended is told else _ending_as(ended.raw_config, told.raw_config),
        beside=ended.beside,
        files={"base": one.files, "special": two.files},
        stored={"base": one.stored, "special": two.stored},
        left_out={"base": one.left_out, "special": two.left_out},
        trained_on={role: each.trained_on for role, each in (("base", one), ("special", two)) if each.trained_on},
    )


def unlike(base: Path, special: Path, faults: list[str]) -> ValueError:
    """What two checkpoints that are no pair are refused with."""
    return ValueError(
        f"base {base} and special {special} are not alike:\n" + "\n".join(f"  - {fault}" for fault in faults)
    )


Unmade = tuple[DecoderConfig, Callable[[], Any] | None, tuple[int, ...]]
"""A side whose tokenizer is not made yet: its config, what makes the tokenizer, and the ids that its configs say end an answer."""


def sides_of(one: Unmade, two: Unmade, strangers: tuple[str, str] | None) -> tuple[Side, Side]:
    """Both sides, their tokenizers made; where they are one and the same, once. strangers: as `strangers_of` has them."""
    (config, make, ends), (other_config, make_other, other_ends) = one, two
    own = make() if make else None
    other = own if make_other == make else make_other() if make_other else None
    return (
        Side(config, own, ends=differences.ends_of(ends, own)),
        Side(other_config, other, strangers, ends=differences.ends_of(other_ends, other)),
    )


def _ending_as(one: Mapping[str, Any], raw_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json whose answers end as those of another one."""
    return {**raw_config, "eos_token_id": one.get("eos_token_id")}


def strangers_of(
    base: str | Path, base_path: Path, special_path: Path, *, weights: bool = True
) -> tuple[str, str] | None:
    """The model that special's adapter goes into, and the one that it was trained on, where these are known to be two.

    An adapter as base goes into what it names, and special's into the same.
    """
    try:
        said = lora.base_of(special_path) if lora.is_adapter(special_path) else None
        name, path = str(base), base_path
        if lora.is_adapter(base_path):
            name, path = lora.base_of(base_path), underlying(base_path, weights=weights)
    except CheckpointError:  # raised again, and told, where the two are read
        return None
    return (name, said) if said and name and origins.are_two(name, path, said) else None


def choice_faults(choices: Choices) -> list[str]:
    """Choices that there are not, or a template's file that cannot be read or does not work; a sentence each."""
    faults = differences.choice_faults(choices)
    try:
        _template_file(choices)
    except (OSError, UnicodeDecodeError) as error:
        faults.append(
            f"template {choices.template!r} is none of base, special and none, and no file that can be read ({error})"
        )
    except ValueError as error:
        faults.append(f"template {choices.template}, {error}; mend it, or name another file")
    return faults


def template_of(one: Side, two: Side, choices: Choices) -> str | None:
    """The chat template that requests stand in, or None."""
    own = _template_file(choices)
    return differences.shared_template(one, two, choices) if own is None else own


def _template_file(choices: Choices) -> str | None:
    if choices.template in (None, "none", *differences.SIDES):
        return None
    return templates.read(Path(choices.template).expanduser())


def _own(mesh: Mesh) -> Mesh:
    if others := {device.process_index for device in mesh.devices.flat} - {jax.process_index()}:
        raise ValueError(
            f"mesh: has devices of other processes ({', '.join(map(str, sorted(others)))}), which this one cannot read from. "
            "Load without it, and give it to score."
        )
    return mesh


def _both(
    base: Path,
    special: Path,
    dtype: str,
    place: lora.Place,
    progress: Callable[[int, int], None],
    strangers: tuple[str, str] | None,
) -> tuple[Checkpoint, Checkpoint]:
    """Both models, adapters merged. Raises CheckpointError with the faults of both."""
    under, one, two, refused = None, None, None, []
    try:
        under = load(underlying(base) if lora.is_adapter(base) else base, dtype, place)
        one = _merged(under, base, dtype, place) if lora.is_adapter(base) else under
    except CheckpointError as error:
        refused.append(error)
    progress(1, 3)
    try:
        if not lora.is_adapter(special):
            two = load(special, dtype, place if one is None else _sharing(one.params, place))
        elif under is not None:
            two = _merged(under, special, dtype, place)
    except CheckpointError as error:
        refused.append(of_strangers(error, special, strangers))
    progress(2, 3)
    if one is None or two is None or refused:
        raise refused[0] if len(refused) == 1 else CheckpointError("both models", [str(error) for error in refused])
    return one, two


def of_strangers(error: CheckpointError, adapter: Path, strangers: tuple[str, str] | None) -> CheckpointError:
    """What is wrong with an adapter, and of what it may come."""
    if strangers is None:
        return error
    return CheckpointError(adapter, [*error.faults, f"it was trained on {strangers[1]}, and {strangers[0]} is another"])


def _sharing(params: Params, place: lora.Place) -> lora.Place:
    """Leaves that are the other model's too stay that very array."""
    known = paths.flatten(params)

    def place_new(path: str, leaf: np.ndarray) -> jax.Array:
        own, new = known.get(path), place(path, leaf)
        return new if own is None or not compare.is_same(own, new) else own

    return place_new


def underlying(adapter: Path, *, weights: bool = True) -> Path:
    """Where the model is that an adapter says it was trained on. Raises CheckpointError where it says nothing, or nothing is there."""
    name = lora.base_of(adapter)
    if name is None:
        raise CheckpointError(
            adapter,
            ["it does not say which model it was trained on (base_model_name_or_path); give that model as base"],
        )
    try:
        return local(name, weights=weights)
    except FileNotFoundError as error:
        raise CheckpointError(adapter, [f"it was trained on {error}"]) from None


def _merged(under: Checkpoint, adapter: Path, dtype: str, place: lora.Place = on_device) -> Checkpoint:
    """A model with an adapter in it."""
    checking = Finite(place)
    family = FAMILIES[under.config.family]
    params, config, left_out = lora.merge(under.params, adapter, family, under.config, checking)
    checking.refuse(adapter, family, config, dtype)
    raw = {**under.raw_config, "tie_word_embeddings": config.tied, "vocab_size": config.vocab}
    files = under.files + lora.files(adapter) + sources.tokenizer_files(adapter)
    config_file = under.files[0]
    model = config_file.parent if config_file.name == "config.json" else None
    tokenizer = sources.tokenizer_fn(adapter, model) or under.tokenizer
    return under._replace(
        params=params,
        config=config,
        raw_config=raw,
        files=files,
        tokenizer=tokenizer,
        left_out=(*under.left_out, *left_out),
        trained_on=lora.base_of(adapter),
    )


class Finite:
    """Looks at every leaf while it is still on the host, before another place gets it."""

    def __init__(self, place: lora.Place):
        self._place, self._bad = place, {}

    def __call__(self, path: str, leaf: np.ndarray) -> jax.Array:
        if not compare.is_finite(leaf):
            self._bad[path] = leaf
        return self._place(path, leaf)

    def refuse(self, path: Path, family: Family, config: DecoderConfig, dtype: str) -> None:
        """Raises CheckpointError naming every tensor that holds a NaN or an infinity."""
        bad = convert.non_finite(self._bad, family.rules(config), config)
        if bad:
            raise CheckpointError(path, [f"{name} holds NaN or infinity as {dtype}" for name in bad])


def load_one(name: str | Path, dtype: str) -> Checkpoint:
    """One side by itself, as `load_pair` reads it; an adapter in the model that it names. Raises FileNotFoundError, CheckpointError."""
    if faults := location_faults(base=name):
        raise FileNotFoundError("\n".join(faults))
    path = local(name)
    return _merged(load(underlying(path), dtype), path, dtype) if lora.is_adapter(path) else load(path, dtype)


def load(path: Path, dtype: str, place: lora.Place = on_device) -> Checkpoint:
    """Read one checkpoint into a parameter tree. Raises CheckpointError."""
    if orbax_dir.is_one(path):
        source, leaves_of = orbax_dir.source(path), _leaves
    else:
        source = gguf_file.read(path) if path.suffix == ".gguf" else sources.directory(path)
        leaves_of = _leaves_of_tensors
    config, raw = config_of(path, source.raw_config)
    family = wrapping.inside(FAMILIES[config.family], source.raw_config["model_type"], source.shapes)
    checking, stored = Finite(place), set[str]()

    def read(name: str) -> np.ndarray:
        found = source.read(name)
        stored.add(found.dtype.name)
        return found

    noting = source._replace(read=read)
    leaves = {name: checking(name, leaf) for name, leaf in leaves_of(path, noting, family, config, jnp.dtype(dtype))}
    checking.refuse(path, family, config, dtype)
    beside, ends = source.beside, sources.ends(path, source.raw_config, source.beside)
    left_out = tuple(name for name in source.shapes if name.startswith(family.others))
    return Checkpoint(
        config, paths.unflatten(leaves), raw, source.tokenizer, source.files, beside, ends, widest(stored), left_out
    )


def widest(types: Iterable[str]) -> str:
    """The narrowest type that holds all numbers of these.

    >>> widest(["bfloat16", "bfloat16"]), widest(["bfloat16", "float16"]), widest(["float16", "float32"])
    ('bfloat16', 'float32', 'float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, map(jnp.dtype, types)).name


def _leaves(
    path: Path, source: Source, family: Family, config: DecoderConfig, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Leaf by leaf, of an Orbax directory, which has them as they are. Raises CheckpointError before the first."""
    wanted = convert.leaf_shapes(family.rules(config), config)
    if faults := orbax_dir.faults(path, wanted):
        raise CheckpointError(path, faults)
    for name in wanted:
        yield name, source.read(name).astype(dtype, copy=False)


def _leaves_of_tensors(
    path: Path, source: Source, family: Family, config: DecoderConfig, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Leaf by leaf, of a source that has the family's tensors. Raises CheckpointError before the first."""
    rules = family.rules(config)
    if (number := convert.number(rules, config)) > MOST_TENSORS:
        raise CheckpointError(
            path, [f"the config asks for {number:,} tensors; the weights hold {len(source.shapes):,}"]
        )
    wanted = convert.places(rules, config)
    lacking = wanted.keys() - source.shapes.keys()
    known_as = {
        family.prefix + name if name not in wanted and family.prefix + name in lacking else name: name
        for name in source.shapes
        if not name.endswith(family.ignored_tensors) and not name.startswith(family.others)
    }
    shapes = {name: source.shapes[theirs] for name, theirs in known_as.items()}
    faults = []
    table = next(rule.theirs for rule in rules if rule.ours == "embed/kernel")
    if config.tied and {family.unembed, table} <= shapes.keys():
        del shapes[family.unembed]
        if not compare.is_same(source.read(family.unembed), source.read(known_as[table])):
            faults.append(f"tie_word_embeddings is true, but {family.unembed} differs from {table}")
    elif config.tied and family.unembed in shapes:  # some writers keep the other name of the one table
        shapes[table], known_as[table] = shapes.pop(family.unembed), known_as.pop(family.unembed)
    faults += convert.faults(shapes, rules, config)
    if faults:
        raise CheckpointError(path, faults)
    yield from convert.to_leaves(lambda name: source.read(known_as[name]), list(shapes), rules, config, dtype)


def config_of(path: Path, raw_config: Mapping[str, Any]) -> tuple[DecoderConfig, Mapping[str, Any]]:
    """What a config.json says, and that of the text model alone. Raises CheckpointError with everything that is not supported."""
    try:
        return wrapping.read_config(raw_config)
    except ConfigError as error:
        raise CheckpointError(path, error.faults) from None


def location_faults(**names: str | Path) -> list[str]:
    """What is wrong with where checkpoints are said to be, as far as can be told without the network.

    >>> location_faults(base="no/such/folder")
    ['base no/such/folder: no such directory or file, and not a hub id of the form owner/name']
    """
    faults = []
    for role, name in names.items():
        path = Path(name).expanduser()
        if path.is_file() and path.suffix != ".gguf":
            faults.append(f"{role} {name} is a file; wanted a model directory, an adapter directory, or a .gguf file")
        elif not path.exists() and hub.id_of(str(name)) is None:
            form = hub.form_for(str(name))
            faults.append(f"{role} {name}: no such directory or file, and not a hub id of the form {form}")
    return faults


def local(name: str | Path, *, weights: bool = True) -> Path:
    """A path as it stands; else what `hub.fetch` fetches by that name. Raises FileNotFoundError where the hub has none."""
    path = Path(name).expanduser()
    return path if path.exists() else hub.fetch(str(name), weights=weights)


def _run_as(config: DecoderConfig, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint under the config of a pair: without the rows of its vocabulary that the other lacks; with two tables where it tied
    them and the other did not."""
    flat, raw = paths.flatten(checkpoint.params), dict(checkpoint.raw_config)
    if config.vocab < checkpoint.config.vocab:
        flat["embed/kernel"] = flat["embed/kernel"][: config.vocab]
        if "unembed/kernel" in flat:
            flat["unembed/kernel"] = flat["unembed/kernel"][:, : config.vocab]
        raw["vocab_size"] = config.vocab
        if isinstance(pad := raw.get("pad_token_id"), int) and pad >= config.vocab:
            raw["pad_token_id"] = None  # transformers makes no table that lacks this row
    if checkpoint.config.tied and not config.tied:
        flat["unembed/kernel"] = flat["embed/kernel"].T.copy()
        raw["tie_word_embeddings"] = False
    return checkpoint._replace(params=paths.unflatten(flat), config=config, raw_config=raw)


def sha256(file: Path) -> str:
    """Hash of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
