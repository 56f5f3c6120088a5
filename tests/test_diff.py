"""`jaxpatch diff`: what it says of a pair whose differences are known, and what it refuses."""

import csv
import re

import numpy as np
import pytest
from rich.console import Console

import jaxpatch as jp
from jaxpatch import diff, testing
from jaxpatch.diff import Diff
from jaxpatch.reporting import difference_map

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two checkpoints that differ in head 1.2 and neuron 0.5 alone."""
    home = tmp_path_factory.mktemp("diff")
    base, special = testing.tiny_checkpoints(home)
    pair = jp.load_pair(base, special)
    gates = jp.gates(pair, {"head": [(1, 2)], "neuron": [(0, 5)]})
    jp.save_checkpoint(pair, jp.patch(pair.base, pair.special, gates), home / "other", dtype="float32")
    return str(base), str(home / "other")


def test_the_table_names_what_differs(sides):
    console = Console(record=True, width=120)
    diff.diff(Diff(one=sides[0], other=sides[1]), console=console)
    text = console.export_text()
    assert re.search(r"head +12 +1 ", text) and re.search(r"neuron +72 +1 ", text) and re.search(r"kv +6 +0 ", text)
    assert "head 1.2" in text and "neuron 0.5" in text and "head 1.1" not in text


def test_files(sides, tmp_path):
    out = tmp_path / "out"
    diff.diff(Diff(one=sides[0], other=sides[1], out=out), console=QUIET)
    with (out / "components.csv").open(encoding="utf-8") as stream:
        rows = {row["name"]: float(row["relative"]) for row in csv.DictReader(stream)}
    assert len(rows) == 12 + 6 + 72 and {name for name, value in rows.items() if value} == {"head 1.2", "neuron 0.5"}
    assert (out / "heatmap.svg").read_text(encoding="utf-8").count("<svg") == 1
    diff.diff(Diff(one=sides[0], other=sides[1], out=out, kinds=("kv",), overwrite=True), console=QUIET)
    assert not (out / "heatmap.svg").exists(), "of kinds that do not differ there is nothing to draw"


def test_what_no_kind_owns_is_named(sides):
    console = Console(record=True, width=120)
    diff.diff(Diff(one=sides[0], other=sides[1], kinds=("head",)), console=console)
    said = console.export_text()
    assert "What none of these kinds owns differs, too: layers/mlp/" in said and "attn" not in said.split("differs")[1]


def test_a_checkpoint_differs_in_nothing_from_itself(sides):
    console = Console(record=True, width=120)
    diff.diff(Diff(one=sides[0], other=sides[0]), console=console)
    said = console.export_text()
    assert re.search(r"head +12 +0 ", said) and re.search(r"neuron +72 +0 ", said) and "differs, too" not in said


def test_many_components_are_drawn_as_quantiles():
    values = np.array([[np.nan, *np.arange(1.0, 200.0)]])
    shown, is_sorted = difference_map.columns(values)
    assert is_sorted and shown.shape == (1, difference_map.MOST_COLUMNS) and shown[0, 0] == 199
    assert (np.diff(shown[0]) < 0).all()


def test_all_that_is_wrong_at_once(sides, tmp_path):
    (tmp_path / "kept").write_text("", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        diff.diff(Diff(one=sides[0], other="nowhere", kinds=(), top=-1, out=tmp_path, overwrite=True), console=QUIET)
    for fault in ("other nowhere: no such", "--kinds: wanted at least one", "--top -1", "it is no earlier diff's"):
        assert fault in str(caught.value), fault
    with pytest.raises(ValueError, match="it exists and is not overwritten"):
        diff.diff(Diff(one=sides[0], other=sides[1], out=tmp_path), console=QUIET)
    with pytest.raises(KeyError, match="did you mean 'head'"):
        diff.diff(Diff(one=sides[0], other=sides[1], kinds=("heads",)), console=QUIET)
