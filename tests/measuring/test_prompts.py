"""Requests: distinct, repeatable, and with topics that no two splits share, not even word by word."""

import itertools
import re

import pytest

from jaxpatch.measuring import prompts

AT_LEAST = {"train": 260, "anchor": 40, "layer": 16, "scoring": 40, "behaviour": 50}
SMALL_WORDS = {"a", "an", "the", "of", "on", "in", "at", "to", "how", "why", "with"}


def everything(split):
    """All requests a split holds."""
    with pytest.raises(ValueError) as refused:
        prompts.prompts(split, 10**9)
    return prompts.prompts(split, int(re.search(r"holds (\d+)", str(refused.value)).group(1)))


def content_words(topic):
    """Words of a topic without their plural endings."""
    words = set(re.findall(r"[a-z]+", topic.lower())) - SMALL_WORDS
    return {re.sub(r"(?:es|s)$", "", re.sub(r"ies$", "y", word)) for word in words}


def test_splits_hold_enough_topics():
    assert set(AT_LEAST) == set(prompts.SPLITS)
    for split, least in AT_LEAST.items():
        topics = prompts.topics(split)
        assert len(topics) == len(set(topics)) >= least


def test_categories_have_enough_forms():
    for forms in prompts.FORMS.values():
        assert len(set(forms)) == len(forms) >= 8
        assert all(form.count("{x}") == 1 for form in forms)


def test_splits_share_no_word_of_a_topic():
    words = {split: set().union(*map(content_words, prompts.topics(split))) for split in prompts.SPLITS}
    for one, other in itertools.combinations(prompts.SPLITS, 2):
        assert not words[one] & words[other], (one, other)


def test_every_request_is_made_once_in_one_split():
    found = {split: everything(split) for split in prompts.SPLITS}
    union = set().union(*found.values())
    assert len(union) == sum(map(len, found.values()))
    assert not any("{" in prompt or "  " in prompt for prompt in union)
    assert all(prompt[0].isupper() and prompt[-1] in ".?" for prompt in union)


def test_no_request_asks_for_what_a_constraint_asks():
    words = re.compile(
        r"\b(?:caps|capital|case|commas?|title|sections?|quot\w+|highlight\w*|bold|headings?|bullets?)\b", re.I
    )
    assert not [prompt for split in prompts.SPLITS for prompt in everything(split) if words.search(prompt)]


def test_topics_come_before_repeats():
    for split in prompts.SPLITS:
        num_topics = len(prompts.topics(split))
        first = prompts.prompts(split, num_topics, seed=5)
        assert {prompts.topic_of(prompt) for prompt in first} == set(prompts.topics(split))


def test_equal_arguments_give_equal_requests_and_counts_nest():
    assert prompts.prompts("scoring", 30) == prompts.prompts("scoring", 30) == prompts.prompts("scoring", 90)[:30]
    assert prompts.prompts("scoring", 30) != prompts.prompts("scoring", 30, seed=1)
    assert prompts.prompts("scoring", 0) == ()


def test_order_is_the_same_on_every_machine():
    assert prompts.prompts("layer", 3) == (
        "What is a blanket good for?",
        "Write a few sentences that make a child curious about static electricity.",
        "Explain how people should behave at a stadium.",
    )


def test_too_many_or_unknown_is_refused():
    held = len(everything("layer"))
    with pytest.raises(ValueError, match=rf"'layer' holds {held} prompts \(24 topics\); got count={held + 1}"):
        prompts.prompts("layer", held + 1)
    with pytest.raises(ValueError, match="count=-1"):
        prompts.prompts("layer", -1)
    with pytest.raises(ValueError, match=r"'behaviour'.*got 'test'"):
        prompts.prompts("test", 1)
    with pytest.raises(ValueError, match="no split makes"):
        prompts.topic_of("Describe the colour of foxes.")
