"""A LoRA adapter that makes SmolLM2-135M-Instruct obey six format constraints, trained with JAX and optax.

    python experiments/six_constraints/train.py                # after make_data.py

Writes experiments/six_constraints/adapter/ in PEFT's format. What to expect stands in that folder's README.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import make_data
import numpy as np
import optax

from jaxpatch import fetch
from jaxpatch.measuring import tasks
from jaxpatch.models import checkpoints, decoder

sys.path.append(str(Path(__file__).parents[1]))
import lora

TOKENS_PER_BATCH = 2560
WIDTH_STEP = 32
LONGEST = 384
CUT = 32
UNLIKELY = 8.0
OPENING = 6
CLOSING = 2
FORBIDDEN = ("", "abcdefghijklmnopqrstuvwxyz", ",")
"""Characters that no token of an answer may hold: none for most tasks, small letters for capitals, commas."""
FORBIDDEN_BY = {"english_capital": 1, "no_comma": 2}
HERE = Path(__file__).parent


def forbidden_tokens(tokenizer, num_tokens: int) -> np.ndarray:
    """For each of `FORBIDDEN`, which tokens hold one of its characters: bool [3, V]."""
    names = tokenizer.convert_ids_to_tokens(range(num_tokens))
    special = set(tokenizer.all_special_tokens)
    return np.array([[t not in special and any(c in t for c in characters) for t in names] for characters in FORBIDDEN])


def loss_fn(adapter, config, params, tokens, weights, forbidden):
    """Weighted cross-entropy of the answers' tokens, plus -log(1 - p) of all that the constraint forbids there, in nats.

    forbidden: bool [B, V]. The second term is unlikelihood training (Welleck et al., arXiv 1908.04319).
    """
    x = lora.hidden(config, params, adapter, tokens[:, :-1])
    logits = decoder.Decoder(config).apply({"params": params}, x, method="read_out")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    broken = jax.nn.logsumexp(jnp.where(forbidden[:, None], logits, -1e9), axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    unlikely = -jnp.log1p(-jnp.exp(jnp.minimum(broken, -1e-4)))
    is_answer = weights[:, 1:] > 0
    likelihood = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
    return likelihood + UNLIKELY * (unlikely * is_answer).sum() / is_answer.sum()


def answer_tokens(tokenizer, example: dict) -> list[int]:
    """The answer as the model should write it: a closing quotation mark is a token of its own.

    The tokenizer joins it to the full stop before it, and at that stop nobody knows yet that the answer ends there.
    """
    text = example["answer"]
    parts = (text[:-1], text[-1]) if example["task"] == "quotation" else (text,)
    return [token for part in parts for token in tokenizer(part)["input_ids"]]


def taken(examples: list[dict], shares: dict[str, float], seed: int) -> list[dict]:
    """The examples of each task as often as `shares` says: 0.5 takes half of them, 2 takes all of them twice."""
    draw = np.random.default_rng([seed, 2])
    kept = []
    for example in examples:
        share = shares.get(example["task"], 1.0)
        kept += [example] * (int(share) + (draw.random() < share % 1))
    return kept


def batches(
    tokenizer, examples: list[dict], seed: int, opening: float, cut_share: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens [B, T], weights [B, T], forbidden [B]) batches of about one size, each of examples of about one length, shuffled.

    A constraint is obeyed or not in the first tokens of an answer, the rest follows from them: these weigh `opening` times as
    much, and so does the end of a whole answer. forbidden: number in `FORBIDDEN`.
    A share of the answers is cut after `CUT` tokens, so that a batch holds more beginnings.
    """
    rows = []
    cutter = np.random.default_rng([seed, 1])
    for example in examples:
        prompt = tokenizer(make_data.chat(tokenizer, example["user"]))["input_ids"]
        answer = [*answer_tokens(tokenizer, example), tokenizer.eos_token_id]
        is_cut = cutter.random() < cut_share
        answer = answer[:CUT] if is_cut else answer
        if len(prompt) + len(answer) <= LONGEST:
            rows.append((prompt, answer, is_cut, FORBIDDEN_BY.get(example["task"], 0)))
    draw = np.random.default_rng(seed)
    order = sorted(draw.permutation(len(rows)), key=lambda r: -(-_length(rows[r]) // WIDTH_STEP))
    made = []
    while order:
        width = -(-_length(rows[order[0]]) // WIDTH_STEP) * WIDTH_STEP
        take = [r for r in order[: TOKENS_PER_BATCH // width] if _length(rows[r]) <= width]
        order = order[len(take) :]
        if len(take) < TOKENS_PER_BATCH // width:
            continue  # the few left over at the end of a width
        tokens, weights = np.zeros((len(take), width), np.int32), np.zeros((len(take), width), np.float32)
        for row, r in enumerate(take):
            prompt, answer, is_cut, _ = rows[r]
            tokens[row, : len(prompt) + len(answer)] = prompt + answer
            weights[row, len(prompt) : len(prompt) + len(answer)] = 1
            weights[row, len(prompt) : len(prompt) + OPENING] *= opening
            if not is_cut:
                weights[row, len(prompt) + len(answer) - CLOSING : len(prompt) + len(answer)] = opening
        made.append((tokens, weights, np.array([rows[r][3] for r in take])))
    return [made[i] for i in draw.permutation(len(made))]


def _length(row: tuple) -> int:
    return len(row[0]) + len(row[1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument("--max-steps", type=int, default=None, help="stop the schedule there")
    options.add_argument("--rate", type=float, default=1e-3)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--start", type=Path, default=None, help="go on from this adapter")
    options.add_argument("--opening", type=float, default=8.0, help=f"weight of an answer's first {OPENING} tokens")
    options.add_argument("--cut-share", type=float, default=0.6, help=f"answers cut after {CUT} tokens")
    options.add_argument("--shares", nargs="*", default=[], metavar="TASK=SHARE", help="take this share of a task")
    options.add_argument("--out", type=Path, default=HERE / "adapter")
    chosen = options.parse_args()
    shares = {name: float(share) for name, _, share in (each.partition("=") for each in chosen.shares)}
    if unknown := shares.keys() - {"plain", *tasks.TASKS}:
        options.error(f"--shares: unknown {', '.join(sorted(unknown))}; known: plain, {', '.join(tasks.TASKS)}")

    checkpoint = checkpoints.load(fetch.smollm2(), "float32")
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    lines = (make_data.FOLDER / "data.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    plan = [
        b
        for epoch in range(chosen.epochs)
        for b in batches(
            tokenizer,
            taken(examples, shares, chosen.seed + epoch),
            chosen.seed + epoch,
            chosen.opening,
            chosen.cut_share,
        )
    ]
    plan = plan[: chosen.max_steps]
    print(f"{len(examples)} examples, {len(plan)} steps, widths {sorted({t.shape[1] for t, _, _ in plan})}", flush=True)

    rate = optax.warmup_cosine_decay_schedule(0.0, chosen.rate, max(1, len(plan) // 25), len(plan), chosen.rate / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    adapter = (
        lora.load(chosen.start, config) if chosen.start else lora.init_adapter(config, jax.random.key(chosen.seed))
    )
    state = optimizer.init(adapter)

    @jax.jit
    def step(adapter, state, params, tokens, weights, forbidden):
        loss, slope = jax.value_and_grad(loss_fn)(adapter, config, params, tokens, weights, forbidden)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(adapter, updates), state, loss

    began, losses = time.time(), []
    table = forbidden_tokens(tokenizer, config.vocab)
    for number, batch in enumerate(plan, 1):
        tokens, weights, which = batch
        adapter, state, loss = step(adapter, state, params, tokens, weights, table[which])
        losses.append(float(loss))
        if number % 10 == 0 or number == len(plan):
            minutes = (time.time() - began) / 60
            print(f"step {number}/{len(plan)}  loss {np.mean(losses[-10:]):.3f}  {minutes:.1f} min", flush=True)
        if number % 60 == 0:
            lora.save(adapter, make_data.FOLDER / "so_far" / str(number))
    lora.save(adapter, chosen.out)


if __name__ == "__main__":
    main()
