"""An adapter of SmolLM2-135M-Instruct for one of the tasks of `examples`: an expert to be merged.

    python experiments/experts/train.py sums             # how long it took stands in the card
    python experiments/experts/train.py records

Writes experiments/experts/TASK/: PEFT's files, and a card with what it was trained on and what it reaches. What was trained so
far is kept in build/experts, and the same command goes on from there.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import examples
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

import jaxpatch as jp
from jaxpatch import fetch
from jaxpatch.models import checkpoints, decoder, templates

sys.path.append(str(Path(__file__).parents[1]))
import lora

HERE = Path(__file__).parent
BUILD = Path("build/experts")
BATCH = 16
EXAMPLES = 4000
RATE = 1e-3
WIDTH_STEP = 16
MAX_NEW = {"sums": 64, "records": 64}
NUM_JUDGED = 100
"""Prompts of a split on which base and the expert are judged."""
KEEP_EVERY = 25
"""Steps, after which what was trained is kept."""


def rows(tokenizer, template: str, some: list[examples.Example]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each, as tokens; the answer ends as the model's own do."""
    made = []
    for example in some:
        prompt = templates.filled(tokenizer, template, example.user)
        made.append((tokenizer(prompt)["input_ids"], [*tokenizer(example.answer)["input_ids"], tokenizer.eos_token_id]))
    return made


def batches(pairs: list[tuple[list[int], list[int]]], steps: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens [B, T], is_answer [B, T]) of each step: all examples once, then again in another order."""
    draw, made, order = np.random.default_rng(seed), [], []
    while len(made) < steps:
        if len(order) < BATCH:
            order = draw.permutation(len(pairs)).tolist()
        take, order = order[:BATCH], order[BATCH:]
        longest = max(len(pairs[each][0]) + len(pairs[each][1]) for each in take)
        width = -(-longest // WIDTH_STEP) * WIDTH_STEP
        tokens, is_answer = np.zeros((BATCH, width), np.int32), np.zeros((BATCH, width), np.float32)
        for row, each in enumerate(take):
            prompt, answer = pairs[each]
            tokens[row, : len(prompt) + len(answer)] = prompt + answer
            is_answer[row, len(prompt) : len(prompt) + len(answer)] = 1
        made.append((tokens, is_answer))
    return made


def loss_fn(adapter, config, params, tokens, is_answer):
    """Mean surprise of the answers' tokens, in nats."""
    x = lora.hidden(config, params, adapter, tokens[:, :-1])
    logits = decoder.Decoder(config).apply({"params": params}, x, method="read_out")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return (losses * is_answer[:, 1:]).sum() / is_answer[:, 1:].sum()


def judged(pair: jp.Pair, task: str, split: str, count: int) -> dict[str, float]:
    """Share of right answers of base and special."""
    make, is_right = examples.TASKS[task]
    asked_for = make(split, count, seed=1)
    asked = jp.encode(pair, [example.user for example in asked_for])
    found = {}
    for who, params in (("base", pair.base), ("expert", pair.special)):
        texts = jp.generate(pair, params, asked, max_new=MAX_NEW[task])
        right = [is_right(text, example.target) for text, example in zip(texts, asked_for, strict=True)]
        found[who] = float(np.mean(right))
    return found


def card(task: str, command: str, steps: int, loss: float, minutes: float, found: dict[str, float]) -> str:
    """What stands beside the adapter."""
    says = {
        "sums": "sums of two numbers below 100, worked out digit by digit",
        "records": "records out of sentences, as JSON",
    }
    lines = (
        f"# {task.capitalize()}, a LoRA adapter for SmolLM2-135M-Instruct",
        "",
        f"A PEFT LoRA adapter (rank {lora.RANK}, alpha {lora.ALPHA}, all linear layers, bfloat16) for {says[task]}:",
        "an expert to be merged, and good for nothing else. Its data are made by rule (`experiments/experts/examples.py`);",
        "no split has a prompt of another.",
        "Base: SmolLM2-135M-Instruct (Apache-2.0; arXiv 2502.02737), Q4_1 GGUF, dequantised. Licence of the adapter: Apache-2.0.",
        "",
        f"`{command}`: {steps} steps of {BATCH}, of {EXAMPLES} examples, Adam, cosine from {RATE:g}, float32; last loss {loss:.3f}",
        f"(mean of 10 steps); {minutes:.0f} minutes.",
        "",
        f"| right answers, {NUM_JUDGED} test prompts, greedy | base | expert |",
        "|---|---|---|",
        f"| {task} | {found['base']:.0%} | {found['expert']:.0%} |",
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("task", choices=list(MAX_NEW))
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    checkpoint = checkpoints.load(fetch.smollm2(), "float32")
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    make, _ = examples.TASKS[chosen.task]
    plan = batches(
        rows(tokenizer, tokenizer.chat_template, make("train", EXAMPLES, chosen.seed)), chosen.steps, chosen.seed
    )
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, max(1, len(plan) // 20), len(plan), RATE / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    adapter = lora.init_adapter(config, jax.random.key(chosen.seed))
    state = optimizer.init(adapter)

    @jax.jit
    def step(adapter, state, params, tokens, is_answer):
        loss, slope = jax.value_and_grad(loss_fn)(adapter, config, params, tokens, is_answer)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(adapter, updates), state, loss

    kept, began, losses, spent = BUILD / f"{chosen.task}-{chosen.steps}-{chosen.seed}.msgpack", time.time(), [], 0.0
    if kept.is_file():
        done = serialization.msgpack_restore(kept.read_bytes())
        adapter = serialization.from_state_dict(adapter, done["adapter"])
        state = serialization.from_state_dict(state, done["state"])
        losses, spent = done["losses"].tolist(), float(done["minutes"])
    for number, (tokens, is_answer) in enumerate(plan[len(losses) :], len(losses) + 1):
        adapter, state, loss = step(adapter, state, params, tokens, is_answer)
        losses.append(float(loss))
        if number % 10 == 0:
            minutes = spent + (time.time() - began) / 60
            print(f"step {number}/{len(plan)}  loss {np.mean(losses[-10:]):.3f}  {minutes:.1f} min", flush=True)
        if number % KEEP_EVERY == 0:
            minutes = spent + (time.time() - began) / 60
            kept.parent.mkdir(parents=True, exist_ok=True)
            done = {"adapter": adapter, "state": state, "losses": np.array(losses), "minutes": minutes}
            partial = kept.with_suffix(".partial")
            partial.write_bytes(serialization.to_bytes(done))
            partial.replace(kept)
    minutes, place = spent + (time.time() - began) / 60, HERE / chosen.task
    lora.save(adapter, place)
    found = judged(jp.load_pair(fetch.smollm2(), place), chosen.task, "test", NUM_JUDGED)
    command = shlex.join(["python", "experiments/experts/train.py", *sys.argv[1:]])
    (place / "README.md").write_text(
        card(chosen.task, command, len(plan), float(np.mean(losses[-10:])), minutes, found), encoding="utf-8"
    )
    print(found)


if __name__ == "__main__":
    main()
