"""The comparison of merges: every contender on tiny experts, what scores are made of, and the page out of results made by hand."""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.trees import compare

FOLDER = Path(__file__).parents[2] / "experiments" / "experts"
KINDS = ("head", "kv", "neuron")
TEAM = ("sums", "records")


@pytest.fixture(scope="module")
def parts():
    """The experiment's modules, which import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in ("contenders", "compare", "compare_page")}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def team(parts, tmp_path_factory):
    """Of one change its heads, and its neurons."""
    pair, prompts = testing.tiny_pair(change=0.3), testing.tiny_inputs()
    partition = components.of_decoder(pair.base)

    def of(kind):
        gates = {kind: np.ones(partition[kind].shape, np.float32)}
        return Pair(base=pair.base, special=jp.patch(pair.base, pair.special, gates), config=pair.config)

    pairs = of("head"), of("neuron")
    told = tuple(jp.continuation(each, each.special, prompts, max_new=4) for each in pairs)
    inputs = [parts["compare"].cut(each, 2) for each in told]
    scores = tuple(
        jp.score(each, own, jp.NextToken("kl"), kinds=KINDS, method="integrated", steps=4)
        for each, own in zip(pairs, inputs, strict=True)
    )
    statistics = tuple(
        {
            "fisher": jp.fisher(each, each.special, own),
            "moments": jp.moments(each, each.special, own),
            "mask": jp.learn_mask(each, answers, steps=2),
        }
        for each, own, answers in zip(pairs, inputs, told, strict=True)
    )
    return parts["contenders"].Team(pairs, told, scores, statistics, tmp_path_factory.mktemp("team"))


def test_every_contender_makes_a_model(parts, team):
    for name, contender in parts["contenders"].CONTENDERS.items():
        maker = contender.of(team)
        made = maker.make(contender.tries[-1], 0)
        assert not compare.structure_faults(team.base, made), name
        assert not compare.structure_faults(team.base, maker.start), name
        assert all(compare.is_finite(leaf) for leaf in jax.tree.leaves(made)), name
        if contender.is_random:
            again, other = maker.make(contender.tries[0], 0), maker.make(contender.tries[0], 1)
            assert parts["compare"].taken(team.base, team.experts, again)["differs"] > 0, name
            assert any(map(lambda a, b: (a != b).any(), jax.tree.leaves(again), jax.tree.leaves(other))), name


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "localize_and_stitch", "consensus"])
def test_a_part_of_the_way_is_the_merge_at_that_scale(parts, team, method):
    maker, own = (
        parts["contenders"].published(method)(team),
        {} if method in ("task_arithmetic", "consensus") else {"density": 0.4},
    )
    walked = parts["contenders"].gone(maker.start, maker.make(own, 0), 0.3)
    wanted = jp.merge(method, team.base, team.experts, scale=0.3, **own)
    for one, other in zip(jax.tree.leaves(walked), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_scales_are_climbed_to_the_best_neighbour(parts):
    seen = []

    def judge(scale):
        seen.append(scale)
        return abs(scale - 1.5)

    parts["compare"].climb(judge, 0.5)
    assert seen == [0.4, 0.5, 0.7, 1.0, 1.4], "each once, up to the edge"


def test_controls_take_as_much_of_every_kind(parts, team):
    """Of each layer, in the same places of all experts, where components are shuffled; and where change decides, what changed most."""
    module = parts["contenders"]
    way, settings = module.CONTENDERS["hard"].of, {"budget": 0.3}
    own = way.gates(team, team.base, settings, 0)
    by_chance, other = (module.shuffled(way).gates(team, team.base, settings, seed) for seed in (0, 1))
    by_size = module.sorted_by_change(way).gates(team, team.base, settings, 0)
    for kind in KINDS:
        assert not (by_chance[0][kind] * by_chance[1][kind]).any(), "no component is taken twice"
    for number, kind in itertools.product(range(2), KINDS):
        assert np.array_equal(np.sort(by_chance[number][kind], axis=-1), np.sort(own[number][kind], axis=-1))
        assert np.array_equal(np.sort(by_size[number][kind], axis=None), np.sort(own[number][kind], axis=None))
        changed = module.changed(team.base, team.experts[number], KINDS)[kind]
        assert (np.diff(by_size[number][kind].ravel()[np.argsort(-changed, axis=None, kind="stable")]) <= 0).all()
    assert any(not np.array_equal(by_chance[0][kind], other[0][kind]) for kind in KINDS)
    assert any(0 < each[kind].sum() < each[kind].size for each in own for kind in KINDS)
    mask = module.CONTENDERS["mask, then RegMean"].of
    scored = module.scored_by_change(mask).gates(team, team.base, settings, 0)
    for number in range(2):
        changed = module.changed(team.base, team.experts[number], KINDS)
        goes, stays = ([changed[kind][(scored[number][kind] > 0) == side] for kind in KINDS] for side in (True, False))
        assert np.concatenate(goes).min() >= np.concatenate(stays).max()


def test_what_gates_take_is_said(parts, team):
    module = parts["compare"]
    maker = parts["contenders"].CONTENDERS["mask, then RegMean"].of(team)
    few, all_ = (module.gated(team.base, maker, {"budget": share}) for share in (0.2, 1.0))
    assert all(0 < one <= 0.2 for one in few) and all(one < other for one, other in zip(few, all_, strict=True))


def test_a_mask_comes_back_from_its_file(parts, team, tmp_path):
    one, other = (parts["compare"].kept_mask(tmp_path / "mask.npz", team.pairs[0], team.told[0]) for _ in range(2))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))
    assert any(leaf.any() for leaf in jax.tree.leaves(one)) and len(list(tmp_path.iterdir())) == 1


def test_answers_are_cut_inside(parts, team):
    told = team.told[0]
    made = parts["compare"].cut(told, 2)
    lengths = np.asarray(made.lengths).reshape(-1, 2)
    assert (lengths >= told.starts[:, None]).all() and (lengths < told.ends[:, None]).all()
    assert all(
        (np.asarray(made.tokens)[2 * row + each, :length] == told.tokens[row, :length]).all()
        for row, two in enumerate(lengths)
        for each, length in enumerate(two)
    )


def results(out, verdicts):
    """Of two tasks, ten prompts each. verdicts: method -> (sort, right answers of each task)."""
    asked = {"test": 10, "seeds": 1, "validation": 6}

    def test(counts):
        rows = {name: [place < count for place in range(10)] for name, count in counts.items()}
        return {"verdicts": rows, "neutral KL": 0.1, "neutral perplexity": 2.0}

    alone = {"base": test({"sums": 2, "records": 0}), "asked": asked, "before": {"seconds": 120.0}}
    alone |= {name: test({"sums": 8, "records": 10}) for name in ("sums", "records")}
    files = {"alone": alone, "conflicts": {kind: [] for kind in KINDS}}
    for method, (sort, counts) in verdicts.items():
        said = {"method": method, "sort": sort, "settings": {"scale": 0.5}, "tests": [test(counts)]}
        said["of"] = "soft" if sort == "control" else None
        tries = [(0.7, 0.5), (1.1, 1.0)] if sort == "baseline" else [(0.7, 0.5), (1.1, 1.0), (1.2, 0.1)]
        said["tries"] = [{"left": (kl + 0.5) / 2, "settings": {"scale": scale}} for kl, scale in tries]
        said |= {"grid": {"scale": sorted(scale for _, scale in tries)}, "gates": [0.25, 0.75]}
        files[f"sums-records/{method}"] = said | {"differs": 0.5, "size": 1.0, "seconds": 60.0}
    (out / "sums-records").mkdir()
    for name, said in files.items():
        (out / f"{name.replace(' ', '-')}.json").write_text(json.dumps(said), encoding="utf-8")


def test_the_page_says_who_is_ahead_and_what_got_worse(parts, tmp_path):
    results(
        tmp_path,
        {
            "soft": ("scores", {"sums": 8, "records": 10}),
            "TIES": ("baseline", {"sums": 1, "records": 3}),
            "average": ("baseline", {"sums": 8, "records": 10}),
            "random masks": ("control", {"sums": 4, "records": 5}),
        },
    )
    done = ["soft", "TIES", "average", "random masks"]
    page = parts["compare_page"]
    page.write(tmp_path, tmp_path, {TEAM: [*done, "hard"]}, {TEAM: done}, "command")
    text = (tmp_path / "experts.md").read_text(encoding="utf-8")
    assert "| soft | by scores | 80% (50% to 100%) | 100% (100% to 100%) | 1.00 (1.00 to 1.00) | 2.00 | 0.10 |" in text
    assert "| 50% | 1.00 | 50% | 0.600 | scale 0.5 |" in text and "| 0.600 | scale 0.5 (at the edge) |" in text
    assert "| TIES | looks at no component | 10% (0% to 30%), below base | 30% (0% to 60%) | 0.21" in text
    assert (
        "Of those that go by scores, soft validated best. It is ahead of 1 of 2 baselines outside the interval" in text
    )
    assert "so it does not win over every baseline." in text
    assert "Of its sort soft tested best, and of the baselines average." in text
    assert "| average | 0.00 (0.00 to 0.00) | neither |" in text and "| random masks | 0.50 (" in text
    assert "Not run yet, of sums and records: hard." in text and "that 72% or more are" in text
    assert (
        "| sums | 8 | 2 | 8 | 8 | 0 | 0 | 0 |" in text
        and "Contenders took 4 minutes" in text
        and "which took 2;" in text
    )
    assert "| sums | 80% | 100% | 2.00 |" in text and "| base | 20% | 0% | 2.00 |" in text


def test_results_in_docs_are_gone_on_from(parts, tmp_path):
    """Not where they are by other settings, or of a contender that makes other models now."""
    module = parts["compare"]

    def chosen(out, **other):
        defaults = module.SETTINGS | {"out": tmp_path / out, "docs": tmp_path / "docs", "base": None}
        return argparse.Namespace(**defaults | other)

    module.keep(chosen("here"), "sums-records/TIES", {"method": "TIES", "version": 1, "kl": 0.5})
    module.keep(chosen("here"), "sums-records/soft", {"method": "soft", "version": 0})
    assert module.recalled(chosen("elsewhere"), "sums-records/TIES")
    files = (tmp_path / folder / "sums-records" / "TIES.json" for folder in ("here", "docs/experts", "elsewhere"))
    assert len({file.read_text(encoding="utf-8") for file in files}) == 1
    assert not module.recalled(chosen("elsewhere"), "sums-records/soft")
    assert not module.recalled(chosen("elsewhere"), "sums-records/average")
    assert not module.recalled(chosen("third", test_seed=4), "sums-records/TIES")
    assert not module.recalled(chosen("fourth", base="other"), "sums-records/TIES")


def test_a_control_of_what_is_no_longer_the_best_is_made_again(parts, tmp_path):
    module = parts["compare"]
    chosen = argparse.Namespace(**module.SETTINGS | {"out": tmp_path, "docs": None, "base": None})

    def keep(method, version, left, **said):
        said = {"method": method, "version": version, "tries": [{"left": left}]} | said
        module.keep(chosen, module.place(TEAM, method), said)

    control = "the best by scores, shuffled"
    keep("soft", 1, 0.5)
    keep(control, 1, 0.7, of="soft")
    assert module.recalled(chosen, module.place(TEAM, control))
    keep("hard", 1, 0.6)
    assert module.recalled(chosen, module.place(TEAM, control)), "what validates worse changes nothing"
    keep("hard", 1, 0.4)
    assert not module.recalled(chosen, module.place(TEAM, control))
    keep(control, 1, 0.7, of="hard")
    assert module.recalled(chosen, module.place(TEAM, control))


@pytest.fixture
def tiny_run(parts, tmp_path, monkeypatch):
    """The command on tiny models, three contenders of two experts: (folder) -> the methods that it ran, `stop` of them at most."""
    base, special = testing.tiny_checkpoints(tmp_path / "models")
    pair, module = jp.load_pair(base, special), parts["compare"]
    jp.save_checkpoint(pair, jax.tree.map(lambda a, b: 1.5 * b - 0.5 * a, pair.base, pair.special), base.parent / "two")
    monkeypatch.setattr(module, "ADAPTERS", {"sums": special, "records": base.parent / "two"})
    monkeypatch.setattr(module, "MAX_NEW", {"sums": 3, "records": 3})
    monkeypatch.setattr(parts["compare_page"], "FIRST", dict.fromkeys(KINDS, 5))
    methods = ["average", "soft", "the best by scores, shuffled"]
    few = [word for name in ("learn", "validation", "test", "neutral", "steps") for word in (f"--{name}", "2")]
    contend = module.contend

    def run(out, stop=None):
        ran = []

        def counted(*asked):
            if len(ran) == stop:
                raise KeyboardInterrupt
            ran.append(asked[-1])
            return contend(*asked)

        monkeypatch.setattr(module, "contend", counted)
        words = ["compare.py", "--out", str(tmp_path / out), "--docs", str(tmp_path / "docs"), "--base", str(base)]
        monkeypatch.setattr(sys, "argv", [*words, *few, "--methods", *methods])
        try:
            module.main()
        except KeyboardInterrupt:
            assert stop is not None
        return ran

    return run


@pytest.mark.slow
def test_what_was_interrupted_is_gone_on_with(tiny_run, tmp_path):
    """Here or elsewhere; and at the end there is nothing to do."""
    assert tiny_run("here", stop=2) == ["average", "soft"]
    results = tmp_path / "docs" / "experts"
    before = {file: file.read_bytes() for file in results.rglob("*.json")}
    assert tiny_run("elsewhere") == ["the best by scores, shuffled"] and tiny_run("elsewhere") == []
    assert all(file.read_bytes() == held for file, held in before.items())
    soft, shuffled = (
        json.loads((results / "sums-records" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("soft", "the-best-by-scores-shuffled")
    )
    chosen = min(soft["tries"], key=lambda each: each["left"])
    assert shuffled["of"] == "soft" and soft["settings"] == chosen["settings"] and len(soft["gates"]) == 2
    assert {each["settings"]["budget"] for each in shuffled["tries"]} == set(soft["grid"]["budget"])
    assert len(shuffled["tests"]) == 2 and len(soft["tests"]) == 1
    text = (tmp_path / "docs" / "experts.md").read_text(encoding="utf-8")
    assert "Of those that go by scores, soft validated best." in text and "Not run yet, of sums and records: " in text
