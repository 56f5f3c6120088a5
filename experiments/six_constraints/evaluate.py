"""How well base and special obey, judged by the IFEval checkers of lm-eval (strict), on prompts and wordings nobody trained on.

    pip install -e '.[gguf,ifeval]'
    python experiments/six_constraints/evaluate.py            # about 10 minutes on 2 CPU cores

Writes build/six_constraints/evaluation.json and prints the table of the model card.
"""

import argparse
import json
from pathlib import Path

import langdetect
import make_data
from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

import jaxpatch as jp
from jaxpatch import fetch
from jaxpatch.measuring import prompts, tasks

HERE = Path(__file__).parent
MAX_NEW = 160


def is_followed(constraint: str, prompt: str, kwargs: dict, answer: str) -> bool:
    """The strict verdict of lm-eval's IFEval; an empty answer never follows."""
    example = InputExample(key=0, instruction_id_list=[constraint], prompt=prompt, kwargs=[kwargs])
    return bool(answer.strip()) and test_instruction_following_strict(example, answer).follow_all_instructions


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapter", type=Path, default=HERE / "adapter")
    options.add_argument("--prompts", type=int, default=32)
    options.add_argument("--tasks", nargs="*", default=list(tasks.TASKS))
    options.add_argument("--no-base", action="store_true", help="judge special alone")
    chosen = options.parse_args()

    langdetect.DetectorFactory.seed = 0
    pair = jp.load_pair(fetch.smollm2(), chosen.adapter)
    requests = prompts.prompts("behaviour", chosen.prompts)
    models = {"special": pair.special} if chosen.no_base else {"base": pair.base, "special": pair.special}
    found: dict[str, dict] = {}
    for model, params in models.items():
        plain = jp.generate(pair, params, jp.encode(pair, requests), max_new=MAX_NEW)
        for name, task in tasks.TASKS.items():
            if name not in chosen.tasks:
                continue
            asked = [tasks.instruct(task, text, index=number, split="held_out") for number, text in enumerate(requests)]
            texts = jp.generate(pair, params, jp.encode(pair, [user for user, _ in asked]), max_new=MAX_NEW)
            strict = [
                is_followed(task.constraint, user, instruction.kwargs, text)
                for (user, instruction), text in zip(asked, texts, strict=True)
            ]
            ours = [tasks.follows(task, text, i) for (_, i), text in zip(asked, texts, strict=True)]
            unasked = [
                is_followed(task.constraint, request, instruction.kwargs, text)
                for request, (_, instruction), text in zip(requests, asked, plain, strict=True)
            ]
            cell = {"asked": sum(strict), "asked, our rule": sum(ours), "not asked": sum(unasked), "of": len(texts)}
            found.setdefault(name, {})[model] = cell | {"texts": list(texts), "strict": strict}
            print(f"{model:8} {name:28} " + "  ".join(f"{k} {v}" for k, v in cell.items()), flush=True)
        found.setdefault("plain", {})[model] = {"texts": list(plain)}
    (make_data.FOLDER / "evaluation.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
