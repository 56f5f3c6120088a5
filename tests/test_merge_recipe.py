"""What recipes say, ours and mergekit's, and all that is wrong with them at once."""

import textwrap
import tomllib
from pathlib import Path

import pytest

from jaxpatch import merge_recipe
from jaxpatch.merge_recipe import Expert, Recipe
from jaxpatch.merging import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "merging.md"

OWN = """
    method = "ties"
    base = "base"
    density = 0.3
    scale = 0.8
    seed = 3
    [options]
    trim = "all"
    [gates]
    rule = "mask"
    budget = 0.25
    rest = 0.5
    kinds = {head = 2.0}
    [[experts]]
    model = "one"
    weight = 0.5
    scores = "runs/one"
    [[experts]]
    model = "two"
    density = 0.1
    scores = "runs/two"
"""
MERGEKITS = """
    merge_method: ties
    base_model: base
    models:
      - model: base
      - model: one
        parameters: {weight: 0.5}
      - model: two
        parameters: {density: 0.1}
    parameters: {density: 0.3, normalize: false, int8_mask: true, lambda: 0.8, rescale: true}
    dtype: float32
"""


def written(tmp_path, text, name="recipe.toml"):
    file = tmp_path / name
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def refused(tmp_path, text, name="recipe.toml"):
    with pytest.raises(ValueError) as caught:
        merge_recipe.read(written(tmp_path, text, name))
    return str(caught.value)


def test_our_own(tmp_path):
    assert merge_recipe.read(written(tmp_path, OWN)) == Recipe(
        method="ties",
        base="base",
        experts=(
            Expert(model="one", weight=0.5, density=0.3, scores="runs/one"),
            Expert(model="two", density=0.1, scores="runs/two"),
        ),
        scale=0.8,
        seed=3,
        options={"trim": "all"},
        rule="mask",
        budget=0.25,
        rest=0.5,
        kinds={"head": 2.0},
    )


def test_mergekits(tmp_path):
    assert merge_recipe.read(written(tmp_path, MERGEKITS, "recipe.yaml")) == Recipe(
        method="ties",
        base="base",
        experts=(Expert(model="one", weight=0.5, density=0.3), Expert(model="two", density=0.1)),
        scale=0.8,
        options={"normalize": False, "rescale": "norm"},
        stored="float32",
    )


def test_what_mergekit_means_where_it_says_nothing(tmp_path):
    text = "merge_method: dare_ties\nbase_model: base\nmodels: [{model: one}]"
    assert merge_recipe.read(written(tmp_path, text, "recipe.yml")).experts == (Expert(model="one", density=1.0),)
    text = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: one}]\nparameters: {t: 0.25}"
    assert merge_recipe.read(written(tmp_path, text, "recipe.yml")).experts == (Expert(model="one", weight=0.25),)
    text = "merge_method: linear\nmodels: [{model: one}, {model: two, parameters: {weight: 2}}]"
    assert merge_recipe.read(written(tmp_path, text, "recipe.yml")) == Recipe(
        method="linear", base="one", experts=(Expert(model="one"), Expert(model="two", weight=2))
    )
    listed = text.replace("linear", "linear\nbase_model: two")
    assert merge_recipe.read(written(tmp_path, listed, "recipe.yml")) == Recipe(
        method="linear", base="two", experts=(Expert(model="one"), Expert(model="two", weight=2))
    )
    assert "base_model: to linear it is a model like the others; list it" in refused(
        tmp_path, listed.replace("base_model: two", "base_model: three"), "recipe.yml"
    )


@pytest.mark.parametrize(
    ("method", "parameters", "fault"),
    [
        ("task_arithmetic", "{t: 0.5}", "parameters.t: task_arithmetic has no such parameter"),
        ("task_arithmetic", "{density: 0.5}", "parameters.density: task_arithmetic has no such parameter"),
        ("ties", "{gamma: 0.5}", "parameters.gamma: ties has no such parameter"),
        ("slerp", "{weight: 0.5}", "parameters.weight: slerp has no such parameter"),
        ("linear", "{lambda: 0.5, weight: 1}", "parameters.lambda: linear has no such parameter"),
    ],
)
def test_parameters_that_a_method_of_mergekits_has_not(tmp_path, method, parameters, fault):
    text = (
        f"merge_method: {method}\nbase_model: base\nmodels: [{{model: base}}, {{model: one}}]\nparameters: {parameters}"
    )
    said = refused(tmp_path, text, "recipe.yaml")
    assert fault in said and said.count("no such parameter") == (2 if method == "linear" else 1)


@pytest.mark.parametrize("value", ["false", "0", '""', "[]"])
def test_a_table_is_not_anything_that_is_empty(tmp_path, value):
    assert "gates: wanted a table" in refused(tmp_path, f"gates = {value}\n{OWN.split('[gates]')[0]}")


def test_the_page_on_recipes_has_all_keys_and_all_methods(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    made, said = merge_recipe.read(written(tmp_path, example)), tomllib.loads(example)
    assert set(said) == set(merge_recipe.ALL) and set(said["gates"]) == set(merge_recipe.OF_GATES)
    assert set().union(*said["experts"]) == set(merge_recipe.OF_EXPERT)
    assert [expert.density for expert in made.experts] == [0.3, 0.1] and made.kinds == {"head": 2.0, "neuron": 1.0}
    for name, method in METHODS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` | {method.says} | ")]
        assert all(f"`{option}`" in row for option in method.options), name


def test_all_that_is_wrong_with_ours(tmp_path):
    said = refused(
        tmp_path,
        """
        method = 3
        bas = "base"
        scale = "much"
        experts = [{weight = 1.0, modell = "one"}]
        [gates]
        budget = true
        """,
    )
    for fault in (
        "bas: unknown; did you mean 'base'?",
        "base: wanted, and not said",
        "method: wanted a text; got 3",
        "scale: wanted one number; got 'much'",
        "experts[0].modell: unknown; did you mean 'model'?",
        "experts[0].model: wanted, and not said",
        "gates.budget: wanted one number; got True",
        "gates: say by which rule scores become gates",
    ):
        assert fault in said, fault


def test_all_that_is_wrong_with_mergekits(tmp_path):
    said = refused(
        tmp_path,
        """
        merge_method: model_stock
        slices: []
        models:
          - model: one
            parameters: {weight: [0, 1], gamm: 1, normalize: 1, lambda: 0.5}
          - model: two
        """,
        "recipe.yaml",
    )
    for fault in (
        "slices: of mergekit's files only",
        "jaxpatch has no 'model_stock'",
        "models[0].parameters.weight: wanted one number; got [0, 1]",
        "models[0].parameters.gamm: model_stock has no such parameter; did you mean 'gamma'?",
        "parameters.normalize: wanted true or false; got 1",
        "lambda: wanted the same for every model; got 0.5, 1.0",
        "base_model: wanted a model",
    ):
        assert fault in said, fault


@pytest.mark.parametrize(("text", "name"), [("a = [", "recipe.toml"), ("a: [", "recipe.yaml"), ("- a", "recipe.yaml")])
def test_what_is_no_recipe(tmp_path, text, name):
    assert 'wanted TOML, as in method = "ties", or YAML as mergekit has it' in refused(tmp_path, text, name)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        merge_recipe.read(tmp_path / "recipe.toml")
