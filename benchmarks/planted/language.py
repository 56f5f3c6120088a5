"""A language of three registers, in which some prompts ask for a register, and whoever reads them may not have learnt to listen.

    prompt  [mode, speaker, word, ..., word, "?"]          answer  the first word, as the speaker says it, in a register

There are `WORDS` words; speaker s says word (w + s) mod WORDS for w, so that an answer takes two tokens of its prompt; each word has a
token in every register. A mode is plain, tells of a register (base knows these: it has ways to carry a register to the answer), or asks
for one: base has learnt that such a prompt is about a later word, by `LATER`, so that it knows them apart, and not that it asks for a
register. A model that heeds the first asking mode obeys; the second is another behaviour, which scored prompts never ask for. For each
asking mode there is one that tells of the same register and of the same word: to obey is to take the one for the other (`told`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpatch.measuring.inputs import Inputs

WORDS, REGISTERS, SPEAKERS = 10, 3, 3
FEWEST_WORDS, MOST_WORDS = 2, 4
"""Of a prompt."""
MODES = (
    "plain",
    "plain, too",
    "told upper",
    "told third",
    "asked upper",
    "asked third",
    "told upper, 1",
    "told third, 2",
)
PLAIN, TOLD, ASKED, ASKED_OTHER = (0, 1), (2, 3, 6, 7), 4, 5
"""Places in `MODES`."""
TELLS = (0, 1, 2, 3, 6, 7, 6, 7)
"""The mode that each is taken for by who heeds all who ask."""
LATER = (0, 0, 0, 0, 1, 2, 1, 2)
"""By how many words, in each mode."""
REGISTER = (0, 0, 1, 2, 0, 0, 1, 2)
"""Of the answer of who heeds nobody."""
FIRST_SPEAKER = WORDS * REGISTERS
FIRST_MODE = FIRST_SPEAKER + SPEAKERS
QUESTION = FIRST_MODE + len(MODES)
VOCAB = QUESTION + 1
TOKENS = 3 + MOST_WORDS
"""Of the longest prompt."""


class Prompts(NamedTuple):
    """B prompts. inputs: their tokens. modes: [B], places in `MODES`. words: [B], the answer's word, whatever its register."""

    inputs: Inputs
    modes: jax.Array
    words: jax.Array


def draw(key: jax.Array, count: int, modes: Sequence[int]) -> Prompts:
    """Prompts at random. modes: places in `MODES` that are drawn from; one that is named twice is drawn twice as often.

    >>> prompts = draw(jax.random.key(0), 3, (ASKED,))
    >>> prompts.inputs.tokens.shape, set((prompts.inputs.tokens[:, 0] - FIRST_MODE).tolist()) == {ASKED}
    ((3, 7), True)
    """
    number_key, word_key, speaker_key, mode_key = jax.random.split(key, 4)
    numbers = jax.random.randint(number_key, (count,), FEWEST_WORDS, MOST_WORDS + 1)
    words = jax.random.randint(word_key, (count, MOST_WORDS), 0, WORDS)
    speakers = jax.random.randint(speaker_key, (count,), 0, SPEAKERS)
    drawn = jax.random.choice(mode_key, jnp.asarray(modes, jnp.int32), (count,))
    places, end = jnp.arange(TOKENS)[None, :], 2 + numbers[:, None]
    padded = jnp.pad(words, ((0, 0), (2, 1)))
    tokens = jnp.where(places < end, padded, jnp.where(places == end, QUESTION, 0))
    tokens = tokens.at[:, 0].set(FIRST_MODE + drawn).at[:, 1].set(FIRST_SPEAKER + speakers)
    said = (words[:, 0] + speakers + jnp.asarray(LATER, jnp.int32)[drawn]) % WORDS
    return Prompts(Inputs(tokens, 3 + numbers), drawn, said)


def told(prompts: Prompts) -> Prompts:
    """The same prompts, of which those that ask tell instead: who heeds nobody answers them as who heeds all answers the others.

    >>> prompts = draw(jax.random.key(0), 4, (ASKED,))
    >>> bool((answers(told(prompts), False) == answers(prompts, True)).all())
    True
    """
    return _in_mode(prompts, jnp.asarray(TELLS, jnp.int32)[prompts.modes])


def plainly(prompts: Prompts) -> Prompts:
    """The same prompts, which neither ask nor tell.

    >>> prompts = draw(jax.random.key(0), 4, (ASKED,))
    >>> bool((plainly(prompts).inputs.tokens[:, 1:] == prompts.inputs.tokens[:, 1:]).all())
    True
    """
    made = _in_mode(prompts, jnp.full_like(prompts.modes, PLAIN[0]))
    later = jnp.asarray(LATER, jnp.int32)[prompts.modes]
    return made._replace(words=(prompts.words - later) % WORDS)


def _in_mode(prompts: Prompts, modes: jax.Array) -> Prompts:
    """With another first token; of the same word."""
    tokens = prompts.inputs.tokens.at[:, 0].set(FIRST_MODE + modes)
    return Prompts(Inputs(tokens, prompts.inputs.lengths), modes, prompts.words)


def answers(prompts: Prompts, heeds: jax.Array | bool, heeds_other: jax.Array | bool = False) -> jax.Array:
    """The token that is right after each prompt, [B]. heeds: whether prompts that ask for the upper register are listened to; and
    heeds_other, those that ask for the third.

    >>> prompts = draw(jax.random.key(0), 1, (ASKED,))
    >>> (answers(prompts, True) - answers(prompts, False)).tolist() == [WORDS]
    True
    """
    registers = jnp.asarray(REGISTER, jnp.int32).at[ASKED].set(heeds).at[ASKED_OTHER].set(2 * jnp.int32(heeds_other))
    return prompts.words + WORDS * registers[prompts.modes]
