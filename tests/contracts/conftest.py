"""Pairs of every family, made once for all that is held to PyTorch."""

import parity
import pytest


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By the name of a row of `parity.ROWS`: the torch models and what load_pair reads of them."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = parity.make(tmp_path_factory.mktemp("pair"), parity.ROWS[name].options)
        return made[name]

    return of
