"""The page of several experts: what it says, where it leads, and that it takes nothing as markup."""

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxpatch.reporting import experts_page, wording
from jaxpatch.scoring.conflict import Conflicts, Shared
from jaxpatch.scoring.stability import Overlap

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def told(exact):
    """Two that were scored, one of them forced, and one that was refused."""
    return [
        experts_page.Expert("caps", f"models/{HOSTILE}", "english_capital", exact.scores, 2),
        experts_page.Expert("title", "models/title", HOSTILE, exact.scores, 1, forced=("gap is -1",)),
        experts_page.Expert("quotes", "models/quotes", "quotation", None, None, f"the anchor fails: {HOSTILE}"),
    ]


@pytest.fixture
def made():
    shared = np.array([[3, 2], [2, 3]])
    overlap = Overlap("head", 3, ("caps", "title"), shared, shared / 10, shared / 4)
    both = (Shared("caps", "title", "head 1.2", -0.75, 10, 8), Shared("caps", "title", "head 0.1", 0.5, 10, 1))
    return {"head": Conflicts(overlap, both)}


def render(told, made) -> str:
    return experts_page.render(HOSTILE, told, made).replace(wording.SPACE, " ")


def test_it_says_what_is_shared_and_what_is_pulled_apart(told, made):
    text = render(told, made)
    for words in (
        "Of their first 3 heads caps and title share most: 2, where 0.2 would by chance. 1 of these is pulled apart.",
        ">2 (0.2)<",
        ">caps and title<",
        ">−0.125<",
        ">45 %<",
        ">head 1.2<",
        ">−0.750<",
        "Left out, because the anchor fails its checks: quotes.",
        "title was forced: read nothing into its scores (gap is -1).",
        'href="caps/report.html"',
        'href="title/report.html"',
    ):
        assert words in text
    assert 'href="quotes/report.html"' not in text and "Why quotes was refused" in text
    assert text.index("head 1.2<") < text.index("head 0.1<"), "the most opposed first"


def test_nothing_is_taken_as_markup(told, made):
    text, seen = render(told, made), []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: seen.append(tag)
    reader.feed(text)
    assert "script" not in seen and text.count("&lt;script&gt;") == 4


def test_where_nothing_is_shared_or_compared(told):
    none = Overlap("head", 3, ("caps", "title"), np.diag([3, 3]), np.ones((2, 2)), np.ones((2, 2)))
    text = render(told, {"head": Conflicts(none, ())})
    assert "no two experts share any" in text and "nan" not in text
    alone = render(told[2:], {})
    assert "Fewer than two experts were scored" in alone


def test_scores_may_be_of_other_kinds(told, exact):
    few = [told[0]._replace(scores=dataclasses.replace(exact.scores))]
    assert "strongest component" in render(few, {})
