"""`jaxpatch merge`, from checkpoints to a checkpoint that transformers loads."""

import errno
import hashlib
import json
import shutil
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import jaxpatch as jp
from jaxpatch import merge_run, testing
from jaxpatch.merge_run import Merge
from jaxpatch.models import tensor_file
from jaxpatch.reporting import manifest
from jaxpatch.scoring import archive
from jaxpatch.trees import paths

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """base, special, two: checkpoints. runs/one, runs/two: what runs left that scored them."""
    home = tmp_path_factory.mktemp("merging")
    base, special = testing.tiny_checkpoints(home)
    pair = jp.load_pair(base, special)
    jp.save_checkpoint(
        pair, jax.tree.map(lambda one, two: one + 0.5 * (one - two), pair.base, pair.special), home / "two"
    )
    for axis, name in enumerate(("special", "two")):
        own, folder = jp.load_pair(base, home / name), home / "runs" / name
        folder.mkdir(parents=True)
        anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[axis])
        found = jp.score(own, testing.tiny_inputs(), anchor)
        jp.save_scores(found, folder / "scores.safetensors")
        jp.save_anchor(anchor, folder / "anchor.safetensors")
        said = manifest.build(
            command="jaxpatch run",
            seed=0,
            dtype="float32",
            precision="highest",
            files=own.files,
            times={},
            options={},
            pair={},
        )
        said |= {"prompts": {}, "scores": archive.digest(found)}
        (folder / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    return home


def asked(home, out, **options):
    """Two experts of one base."""
    return Merge(
        **{"base": str(home / "base"), "experts": (str(home / "special"), str(home / "two")), "out": out} | options
    )


def loaded(folder, home):
    """What was written, as parameters."""
    return jp.load_pair(home / "base", folder).special


def assert_same(one, two):
    for path, leaf in paths.leaves(one).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(paths.leaves(two)[path]), err_msg=path)


def experts(home):
    pairs = [jp.load_pair(home / "base", home / name) for name in ("special", "two")]
    return pairs[0].base, [pair.special for pair in pairs]


def test_flags(home, tmp_path):
    out = merge_run.merge(
        asked(home, tmp_path / "out", method="ties", density=(0.5, 0.2), weights=(0.7,), set=("trim=all",)),
        console=QUIET,
    )
    base, trees = experts(home)
    assert_same(loaded(out, home), jp.merge("ties", base, trees, density=[0.5, 0.2], weights=0.7, trim="all"))
    card, said = (
        (out / "README.md").read_text(encoding="utf-8"),
        json.loads((out / "merge.json").read_text(encoding="utf-8")),
    )
    assert f"| `{home / 'two'}` | 0.7 | 0.2 |" in card and "Method: **ties**" in card
    assert "scale 1.0, normalize True, trim all, rescale none" in card, "what was not said, too"
    assert said["recipe"]["experts"][1]["density"] == 0.2 and said["files"]["expert 1"][0]["sha256"] in card


def test_transformers_loads_it(home, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    out = merge_run.merge(asked(home, tmp_path / "out", method="linear"), console=QUIET)
    pair = jp.load_pair(home / "base", out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)(torch.tensor([[1, 2, 3]])).logits
    np.testing.assert_allclose(theirs.detach().numpy(), pair.apply(pair.special, [[1, 2, 3]]), atol=1e-5)


def test_recipes_say_the_same_as_flags(home, tmp_path):
    own = f"""
        method = "dare_linear"
        base = "{home / "base"}"
        density = 0.4
        scale = 0.5
        experts = [{{model = "{home / "special"}"}}, {{model = "{home / "two"}", weight = 0.25}}]
    """
    mergekits = f"""
        merge_method: dare_linear
        base_model: {home / "base"}
        models:
          - model: {home / "special"}
            parameters: {{weight: 1.0}}
          - model: {home / "two"}
            parameters: {{weight: 0.25}}
        parameters: {{density: 0.4, lambda: 0.5}}
    """
    base, trees = experts(home)
    wanted = jp.merge("dare_linear", base, trees, density=0.4, scale=0.5, weights=[1.0, 0.25])
    for name, text in (("own.toml", own), ("theirs.yaml", mergekits)):
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        out = merge_run.merge(Merge(recipe=tmp_path / name, out=tmp_path / f"of {name}"), console=QUIET)
        assert_same(loaded(out, home), wanted)


def test_scores_decide(home, tmp_path):
    runs = tuple(home / "runs" / name for name in ("special", "two"))
    options = asked(home, tmp_path / "out", method="task_arithmetic", scores=runs, rule="hard", budget=0.2)
    out = merge_run.merge(options, console=QUIET)
    base, trees = experts(home)
    scores = [jp.load_scores(run / "scores.safetensors") for run in runs]
    gates = jp.apportion("hard", scores, base, budget=0.2)
    assert_same(loaded(out, home), jp.merge("task_arithmetic", base, trees, gates=gates))
    card, said = (
        (out / "README.md").read_text(encoding="utf-8"),
        json.loads((out / "merge.json").read_text(encoding="utf-8")),
    )
    assert "rule hard, budget 0.2" in card
    for own, gate, taken in zip(scores, gates, said["taken"], strict=True):
        assert taken["components"] == {kind: int(np.nansum(each > 0)) for kind, each in gate.items()}
        best = max(float(np.nanmax(np.where(gate[kind] > 0, own.values[kind], 0))) for kind in gate)
        for name, score in taken["best"][:1]:
            assert score == pytest.approx(best) and f"{name} {score:.3g}" in card
        assert bool(taken["best"]) == (best > 0)
    assert sum(map(bool, (taken["best"] for taken in said["taken"]))) >= 1
    for number, folder in enumerate(("special", "two")):
        named = {file["name"]: file["sha256"] for file in said["files"][f"scores of expert {number}"]}
        read = (home / "runs" / folder / "scores.safetensors").read_bytes()
        assert named["scores.safetensors"] == hashlib.sha256(read).hexdigest() and "manifest.json" in named


def test_scores_of_other_models_are_refused(home, tmp_path):
    runs = tuple(home / "runs" / name for name in ("two", "special"))
    options = asked(home, tmp_path / "out", method="task_arithmetic", scores=runs, rule="hard")
    with pytest.raises(ValueError, match="these are not the models that were scored"):
        merge_run.merge(options, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_at_once(home, tmp_path):
    options = asked(
        home,
        home / "two",
        experts=(str(home / "special"), "nowhere"),
        method="tie",
        density=(0.1, 0.2, 0.3),
        set=("trim",),
        rule="mask",
        scores=(home / "runs" / "special",),
    )
    with pytest.raises(ValueError) as caught:
        merge_run.merge(options, console=QUIET)
    for fault in (
        "--density: wanted 1 or 2, one for each expert; got 3",
        "--scores: wanted 2, one for each expert; got 1",
        "--set trim: wanted NAME=VALUE",
        "there is no method 'tie'; did you mean 'ties'?",
        "expert 1 nowhere: no such directory or file",
        "it exists and is not overwritten",
    ):
        assert fault in str(caught.value), fault
    with pytest.raises(ValueError) as caught:  # numbers too, before any model is looked for
        wrong = dict(method="ties", density=(2.0,), scale=np.nan, set=("trim=foo", "bar=1"), rule="firm", budget=3.0)
        merge_run.merge(asked(home, tmp_path / "out", experts=("nowhere",), **wrong), console=QUIET)
    for fault in (
        "density: wanted shares from 0 to 1; got [2.0]",
        "scale: wanted a finite number; got nan",
        "trim: wanted 'tensor' or 'all'; got 'foo'",
        "ties has no option 'bar'; Known: normalize, trim, rescale",
        "there is no rule 'firm'",
        "budget: wanted a share from 0 to 1; got 3.0",
        "expert 0 nowhere: no such directory or file",
    ):
        assert fault in str(caught.value), fault
    with pytest.raises(ValueError, match="budget: it is for gates, and no rule is said"):
        merge_run.merge(asked(home, tmp_path / "out", method="linear", budget=0.5), console=QUIET)
    with pytest.raises(ValueError) as caught:
        merge_run.merge(Merge(out=tmp_path / "out"), console=QUIET)
    with pytest.raises(ValueError, match="there is no method 'tie'"):
        merge_run.merge(Merge(out=tmp_path / "out", method="tie"), console=QUIET)
    for fault in ("--base: wanted, or a --recipe", "--method: wanted", "--experts: wanted at least one model"):
        assert fault in str(caught.value), fault
    (tmp_path / "recipe.toml").write_text('method = "linear"\nbase = "b"\nexperts = [{model = "m"}]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"--density: --recipe .* says this; leave one of them out"):
        merge_run.merge(Merge(out=tmp_path / "out", recipe=tmp_path / "recipe.toml", density=(0.5,)), console=QUIET)


def test_experts_of_another_architecture_are_refused(home, tmp_path):
    other = testing.tiny_checkpoints(tmp_path / "other", seed=1)[0]
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"num_attention_heads|q_proj"):
        merge_run.merge(asked(home, tmp_path / "out", experts=(str(other),), method="linear"), console=QUIET)
    assert not (tmp_path / "out").exists()


def test_the_average_of_models_needs_no_base(home, tmp_path):
    """mergekit's linear: whichever is listed first, or is named as base, is a model like the others."""
    models = f"models: [{{model: {home / 'base'}}}, {{model: {home / 'special'}, parameters: {{weight: 3}}}}]"
    text = f"merge_method: linear\n{models}\nparameters: {{weight: 1}}\ndtype: bfloat16"
    recipe = tmp_path / "recipe.yaml"
    pair = jp.load_pair(home / "base", home / "special")
    wanted = jax.tree.map(lambda base, special: base / 4 + 3 * special / 4, pair.base, pair.special)
    for number, base in enumerate(("base", "special", "")):
        recipe.write_text(text + (f"\nbase_model: {home / base}" if base else ""), encoding="utf-8")
        out = merge_run.merge(Merge(out=tmp_path / str(number), recipe=recipe), console=QUIET)
        assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
        got = paths.leaves(jp.load_pair(home / "base", out).special)
        for path, leaf in paths.leaves(wanted).items():
            np.testing.assert_allclose(got[path], leaf, rtol=2**-8, atol=1e-6)


def test_an_expert_that_is_base_is_refused(home, tmp_path):
    options = asked(
        home, tmp_path / "out", experts=(str(home / "special"), str(home / "base")), method="task_arithmetic"
    )
    with pytest.raises(ValueError, match=r"expert 1 .* are identical"):
        merge_run.merge(options, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_no_model_that_is_merged_is_replaced(home, tmp_path):
    shutil.copytree(home / "two", tmp_path / "two")
    options = asked(home, tmp_path / "two", experts=(str(home / "special"), str(tmp_path / "two")), method="linear")
    with pytest.raises(ValueError, match="it is one of the models that are merged; name another"):
        merge_run.merge(replace(options, overwrite=True), console=QUIET)
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (home / "two" / "model.safetensors").read_bytes()


def test_what_is_wrong_with_every_expert_is_said_at_once(home, tmp_path):
    """Scores of other models; before these are read, what is no run, and kinds that no score is of."""
    runs = tuple(home / "runs" / name for name in ("two", "special"))
    options = asked(home, tmp_path / "out", method="task_arithmetic", scores=runs, rule="hard")
    with pytest.raises(ValueError) as caught:
        merge_run.merge(options, console=QUIET)
    assert str(caught.value).count("these are not the models that were scored") == 2
    recipe = tmp_path / "recipe.toml"
    lines = [
        'method = "linear"',
        f'base = "{home / "base"}"',
        'stored = "float31"',
        "[gates]",
        'rule = "mask"',
        "kinds = {heads = 1}",
    ]
    lines += [f'[[experts]]\nmodel = "{home / name}"\nscores = "{home / "runs" / name}"' for name in ("special", "two")]
    recipe.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="stored: dtype 'float31' is unknown; did you mean 'float32'"):
        merge_run.merge(Merge(out=tmp_path / "out", recipe=recipe), console=QUIET)
    recipe.write_text("\n".join(lines).replace("float31", "float32"), encoding="utf-8")
    with pytest.raises(ValueError, match="kinds: no expert has scores of 'heads'; did you mean 'head'"):
        merge_run.merge(Merge(out=tmp_path / "out", recipe=recipe), console=QUIET)
    recipe.write_text("method = 3", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        merge_run.merge(Merge(out=home / "two", recipe=recipe, density=(0.5,)), console=QUIET)
    for fault in ("--density: --recipe", "it exists and is not overwritten", "method: wanted a text; got 3"):
        assert fault in str(caught.value), fault


def test_a_full_disk_leaves_nothing(home, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        merge_run.merge(asked(home, tmp_path / "out", method="linear"), console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_model_for_which_there_is_no_room_is_not_merged(home, tmp_path, monkeypatch):
    """Two bytes a parameter do not fit where one has room for files beside the weights."""
    pair = jp.load_pair(home / "base", home / "special")
    count = sum(leaf.size for leaf in jax.tree.leaves(pair.base))
    free = merge_run.ROOM_NEEDED + 2 * count - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(merge_run.merger, "merge", None)
    with pytest.raises(ValueError, match=r"MB are free at .* MB are needed"):
        merge_run.merge(asked(home, tmp_path / "out", method="linear", stored="bfloat16"), console=QUIET)
    monkeypatch.undo()
    free += 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    merge_run.merge(asked(home, tmp_path / "out", method="linear", stored="bfloat16"), console=QUIET)


def test_weights_that_are_no_numbers_are_refused(home, tmp_path):
    shutil.copytree(home / "special", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="NaN"):
        merge_run.merge(
            asked(home, tmp_path / "out", experts=(str(tmp_path / "broken"),), method="linear"), console=QUIET
        )
    assert not (tmp_path / "out").exists()


def test_lm_eval_loads_it(home, tmp_path):
    """Where the extra `ifeval` is installed."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    out = merge_run.merge(asked(home, tmp_path / "out", method="linear"), console=QUIET)
    theirs = huggingface.HFLM(pretrained=str(out), device="cpu", dtype="float32")
    asked_for = instance.Instance("loglikelihood", {}, ("a b", " c"), 0)
    ((log_p, _),) = theirs.loglikelihood([asked_for], disable_tqdm=True)
    assert np.isfinite(log_p) and log_p < 0


def test_an_earlier_merge_is_replaced_where_it_may_be(home, tmp_path):
    merge_run.merge(asked(home, tmp_path / "out", method="linear"), console=QUIET)
    out = merge_run.merge(asked(home, tmp_path / "out", method="task_arithmetic", overwrite=True), console=QUIET)
    base, trees = experts(home)
    assert_same(loaded(out, home), jp.merge("task_arithmetic", base, trees))
