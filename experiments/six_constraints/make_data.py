"""Training data for the six-constraint adapter: plain prompts, the base's own answers, rewritten by rule.

    python experiments/six_constraints/make_data.py            # about 10 minutes on 2 CPU cores

Writes build/six_constraints/answers.jsonl (what the base said) and data.jsonl (what is trained on).
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rewrite

from jaxpatch import fetch
from jaxpatch.measuring import prompts, tasks
from jaxpatch.models import checkpoints, differences, generate

NUM_PROMPTS = 1500
MAX_NEW = 110
BATCH = 50
FOLDER = Path("build/six_constraints")
SHARES = {  # share of the prompts that are also asked with this constraint
    "english_capital": 0.8,
    "no_comma": 0.5,
    "quotation": 0.35,
    "number_highlighted_sections": 0.3,
    "title": 0.2,
    "multiple_sections": 0.2,
}
PLAIN_SHARE = 0.4


def chat(tokenizer, text: str) -> str:
    """One user turn in the model's own chat form, up to where the answer begins."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def answers(checkpoint, texts: list[str]) -> list[str]:
    """What the model writes, greedily."""
    tokenizer = checkpoint.tokenizer()
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    greedy = jax.jit(
        functools.partial(
            generate.greedy, checkpoint.config, max_new=MAX_NEW, stops=differences.ends_of(checkpoint.ends, tokenizer)
        )
    )
    encoded = [tokenizer(chat(tokenizer, text))["input_ids"] for text in texts]
    width = max(map(len, encoded))
    written = []
    for start in range(0, len(texts), BATCH):
        part = encoded[start : start + BATCH]
        tokens = np.full((len(part), width), tokenizer.eos_token_id)
        for row, ids in enumerate(part):
            tokens[row, : len(ids)] = ids
        out = greedy(params, jnp.asarray(tokens), jnp.asarray([len(ids) for ids in part]))
        written += tokenizer.batch_decode(np.asarray(out), skip_special_tokens=True)
        print(f"{len(written)}/{len(texts)}", flush=True)
    return written


def examples(texts: tuple[str, ...], written: list[str]) -> list[dict]:
    """User text and wished-for answer; each prompt plain, or with some of the six constraints."""
    made, draw = [], np.random.default_rng(0)
    count = dict.fromkeys(tasks.TASKS, 0)
    for number, (text, answer) in enumerate(zip(texts, written, strict=True)):
        plain = rewrite.clean(answer)
        if plain is None:
            continue
        if draw.random() < PLAIN_SHARE:
            made.append({"task": "plain", "user": text, "answer": plain})
        for name, share in SHARES.items():
            if draw.random() >= share:
                continue
            user, instruction = tasks.instruct(tasks.task(name), text, index=count[name], split="train")
            topic = prompts.topic_of(text)
            wished = rewrite.rewrite(name, plain, instruction, topic_hint=topic, seed=number)
            if wished is not None:
                count[name] += 1
                made.append({"task": name, "user": user, "answer": wished})
    return made


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = prompts.prompts("train", NUM_PROMPTS)
    store = FOLDER / "answers.jsonl"
    if not store.exists():
        checkpoint = checkpoints.load(fetch.smollm2(), "float32")
        written = answers(checkpoint, list(texts))
        store.write_text("".join(json.dumps(w) + "\n" for w in written), encoding="utf-8")
    written = [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()]
    made = examples(texts, written)
    (FOLDER / "data.jsonl").write_text("".join(json.dumps(e) + "\n" for e in made), encoding="utf-8")
    counts = {name: sum(e["task"] == name for e in made) for name in ("plain", *tasks.TASKS)}
    print(f"{len(made)} examples: {counts}")


if __name__ == "__main__":
    main()
