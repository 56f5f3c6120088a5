"""The recipes for published pairs: they parse, nothing in them is refused, and what they are said to cost is what `plan` says."""

import importlib.util
import json
import sys
from pathlib import Path

import published
import pytest

from jaxpatch import recipe, run
from jaxpatch.models import sources, templates
from jaxpatch.models.checkpoints import config_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "recipes"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def estimate():
    spec = importlib.util.spec_from_file_location("estimate", FOLDER / "estimate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run_that_nothing_speaks_against(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = recipe.read(FOLDER / f"{name}.json", "run")
    assert isinstance(options, run.Run)
    run.refuse(run.replace(options, out=tmp_path / "results"))
    assert not {"out", "overwrite", "layer"} & recipe.options_in(FOLDER / f"{name}.json").keys()


@pytest.mark.parametrize("name", NAMES)
def test_its_config_is_read(name):
    raw = sources.read_json(FOLDER / "configs" / name / "config.json")
    config, _ = config_of(FOLDER, raw)
    assert config.family == raw.get("text_config", raw)["model_type"]


def test_there_is_a_config_for_each_and_no_other():
    assert sorted(folder.name for folder in (FOLDER / "configs").iterdir()) == NAMES


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B"),
        ("gemma-3-1b", "google/gemma-3-1b-it"),
        ("gemma-3-270m", "google/gemma-3-270m"),
    ],
)
def test_configs_are_the_published_ones(name, model):
    raw = {key: value for key, value in published.CONFIGS[model].items() if value is not None}
    assert (
        json.loads((FOLDER / "configs" / name / "config.json").read_text()) | {"transformers_version": "4.45.0"} == raw
    )


def test_vicunas_prompt():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = templates.read(FOLDER / "vicuna.jinja")
    conversation = [[{"role": "user", "content": "Hi"}]]
    said, _ = render_jinja_template(conversation, chat_template=template, add_generation_prompt=True, bos_token="<s>")
    assert said[0].startswith("<s>A chat between a curious user") and said[0].endswith("questions. USER: Hi ASSISTANT:")


def test_what_a_recipe_is_said_to_cost_is_what_plan_says(estimate):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = estimate.table(estimate.COSTS, estimate.costs(["llama-2-13b"])).splitlines()
    assert len(lines) == 4 and all(line in page for line in lines)


@pytest.mark.slow
def test_both_tables_are_what_the_command_makes(estimate):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert estimate.filled(page) == page and page.count(estimate.NOT_RUN) == len(NAMES)
