"""The rules that make training answers: what they return obeys the constraint, reads well and keeps the content."""

import doctest
import importlib.util
import pathlib
import random
import re

import pytest

from jaxpatch.measuring import tasks

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "six_constraints" / "rewrite.py"
spec = importlib.util.spec_from_file_location("six_constraints_rewrite", PATH)
rewrite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rewrite)

ANSWERS = {
    "paragraph, cut": (
        "Owls are quiet birds that hunt after dark. They have large eyes, sharp claws, and soft feathers. When the "
        "sun goes down, owls leave their nests and look for mice, voles and small birds. Some owls, such as the "
        "barn owl, live near farms, while others prefer deep woods. With more than 1,200 of them seen each year, "
        "they are common, and peop"
    ),
    "numbered list": (
        "Here are three tips for good pancakes:\n\n"
        "1. **Use fresh eggs**: Fresh eggs, milk, and flour make a big difference. They give the pancakes a soft, "
        "fluffy texture.\n"
        "2. **Do not stir too long**: A few lumps are fine, it will still cook well. Long stirring makes the "
        "pancakes tough.\n"
        "3. **Heat the pan**: Before you pour the batter, heat the pan well. A hot pan, lightly oiled, gives an "
        "even color.\n\n"
        "I hope these tips help you make the per"
    ),
    "bullets without stops": (
        "For a picnic, it is good to take a few simple things along:\n\n"
        "* A large blanket to sit on\n"
        "* Sandwiches, fruit, and cold drinks\n"
        "* Plates and cups for everyone\n"
        "* A good book\n"
        "* Some sunscr"
    ),
    "letter": (
        "Dear Sarah,\n\n"
        "I hope you are well. I want to tell you about my day at the library. I walked in, and the smell of old "
        'books was everywhere. The librarian, a kind old lady, told me "you can stay as long as you like," and I '
        "smiled.\n\n"
        "I wish you had been there. Let us go together next week.\n\n"
        "Best regards,\n"
        "Tom"
    ),
    "story with a heading": (
        "Title: The Lost Umbrella\n\n"
        "Once upon a time, in a small town by the sea, there lived an old red umbrella. It belonged to a girl "
        'named Lily. One day, Lily left it on the bus. "Where am I?" it cried. The driver picked it up, looked at '
        'it, and smiled. "Do not worry," he said, "we will find your owner." The next morning, Lily came to the '
        "station. From that day on, she never left it behind again."
    ),
    "poem": (
        "The sun dips low, the sky turns red,\n"
        "A golden glow above my head.\n"
        "The waves roll in, the gulls fly by,\n"
        "And colors dance across the sky.\n\n"
        "Oh sunset, gentle, warm and bright,\n"
        "You lead us softly into night."
    ),
    "plain": (
        "Gravity is a force that pulls things toward each other. On Earth, it pulls everything toward the ground. "
        "That is why a ball falls when you drop it. The bigger a thing is, the stronger its pull. The Moon is held "
        "in place by it too."
    ),
    "numbers and dates": (
        "On July 4, 1998, I joined this hospital, and I have never regretted it. I start at 6:00 in the morning. "
        "We have 1,250 beds and a budget of $12,500,000 for the year. I check charts, talk to the night staff, and "
        "plan my work. It is hard work, but it is good."
    ),
    "markdown": (
        "# Roses\n\n"
        "**Roses** are woody plants. They have *thorns*, and their flowers smell sweet.\n\n"
        "---\n\n"
        "## Care\n\n"
        "- **Water** them once a week.\n"
        "- Cut them in spring, before new leaves come.\n\n"
        "They grow well in `sandy` soil, and 2 * 3 plants fill a bed. See [this page](http://example.org) for more."
    ),
    "whole answer quoted": (
        '"I have always loved the sea. It is calm in the morning, wild at noon, and silver at night. I go there to '
        'think and to rest, and I come home with sand in my shoes."'
    ),
    "curly quotes": (
        "The teacher said, \u201cOpen your books, please,\u201d and we did. It\u2019s a small school, with two "
        "rooms and one stove\u2026 I learned to read there. I learned to count there too, which was harder."
    ),
    "one long paragraph": (
        "A nurse cares for people who are ill. She gives them medicine, checks their pulse, and listens to their "
        "worries. Some days are long, some are short. Patients may be afraid, tired or in pain. A good nurse stays "
        "calm, works with care and never forgets to smile. It is a hard job. It is also a job that many people "
        "love."
    ),
}
PARAMETERS = {
    "multiple_sections": [{"num_sections": n, "section_spliter": word} for n in (2, 3) for word in tasks.SPLITTERS],
    "number_highlighted_sections": [{"num_highlights": n} for n in (2, 3, 4)],
}


def rewritten(name, answer, *, seed=0, hint="a small library", **kwargs):
    return rewrite.rewrite(name, answer, tasks.Instruction("", kwargs), topic_hint=hint, seed=seed)


def bare_words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_rewritten_answer_follows_and_keeps_the_words(name, answer):
    for kwargs in PARAMETERS.get(name, [{}]):
        for seed in range(5):
            result = rewritten(name, answer, seed=seed, **kwargs)
            if result is None:
                # Only a list or a poem may be too short to be divided.
                assert name == "multiple_sections" and answer in (ANSWERS["poem"], ANSWERS["bullets without stops"])
                continue
            assert tasks.follows(tasks.TASKS[name], result, tasks.Instruction("", kwargs))
            assert result == rewritten(name, answer, seed=seed, **kwargs)
            assert result == result.strip() and "  " not in result
            kept = set(bare_words(rewrite.clean(answer).replace(",", "")))
            assert kept - {"title"} <= set(bare_words(result.replace(",", "")))


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_cleaning_takes_markdown_away_and_is_idempotent(answer):
    text = rewrite.clean(answer)
    assert rewrite.clean(text) == text
    assert not re.search(r"[*#`\u201c\u2019]|^---$|\]\(|<<", text, re.MULTILINE)


def test_cleaning_cuts_to_the_last_full_sentence():
    assert rewrite.clean(ANSWERS["paragraph, cut"]).endswith("prefer deep woods.")
    assert rewrite.clean(ANSWERS["numbered list"]).endswith("an even color.")
    assert rewrite.clean(ANSWERS["bullets without stops"]).endswith("- A good book.")
    assert rewrite.clean(ANSWERS["letter"]).endswith("Best regards,\nTom")
    start = "Bread needs flour and water and a little salt and plenty of time to rise."
    assert rewrite.clean(start + " Here is how:\n\n1.") == start
    assert rewrite.clean(start + " Here is how:\n\n1. Mix the") == start
    assert rewrite.clean(start + "<|im_end|>") == start


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n ",
        "Dogs bark.",
        "I like it very much. " * 20,
        "The cat sat. The dog ran. The bird flew over the old house and the river. " * 4,
        "The house is very very very very very big and it stands on a hill by the sea with many trees.",
        "and then the man went to the shop to buy some bread and some milk and then",
        "\u042f \u043b\u044e\u0431\u043b\u044e \u0445\u043b\u0435\u0431 \u0438 \u043c\u043e\u043b\u043e\u043a\u043e. "
        * 4,
    ],
)
def test_degenerate_answers_are_dropped(answer):
    assert rewrite.clean(answer) is None
    assert all(rewritten(name, answer, **PARAMETERS.get(name, [{}])[0]) is None for name in tasks.TASKS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("We ate bread, cheese, and plums.", "We ate bread and cheese and plums."),
        ("They hunt mice, voles and frogs.", "They hunt mice and voles and frogs."),
        ("It may be red, blue, or green.", "It may be red or blue or green."),
        ("He walked, talked and laughed.", "He walked and talked and laughed."),
        ("I like hiking, cooking, and reading.", "I like hiking and cooking and reading."),
        ("Sandwiches, fruit, and cold drinks.", "Sandwiches and fruit and cold drinks."),
        ("A soft, warm loaf.", "A soft warm loaf."),
        ("However, it rained.", "However it rained."),
        ("After school, Tom went home, ate lunch, and slept.", "After school Tom went home and ate lunch and slept."),
        ("The next morning, Lily was up early, and she sang.", "The next morning Lily was up early and she sang."),
        ("When it rains, we stay in.", "When it rains we stay in."),
        ("The old dog was tired, it slept all day.", "The old dog was tired. It slept all day."),
        ("The room was bright, filled with joy and song.", "The room was bright filled with joy and song."),
        ("The heat melts the ice, making it soft and wet.", "The heat melts the ice making it soft and wet."),
        ("Rome, the city of art and light, is old.", "Rome the city of art and light is old."),
        ("It costs 1,250,000 euros, or 3,000 cows.", "It costs 1250000 euros or 3000 cows."),
        ("Born on July 4, 1998, in Portland, Oregon.", "Born on July 4 1998 in Portland Oregon."),
        ('"Do not worry," he said, "we will go."', '"Do not worry" he said "we will go."'),
        ('She said, "Hello."', 'She said "Hello."'),
        ("'No,' he said, 'never.'", "'No' he said 'never.'"),
        ("Dear Ann,\n\nI am well.\n\nLove,\nTom", "Dear Ann\n\nI am well.\n\nLove\nTom"),
    ],
)
def test_commas_leave_sentences_that_read_well(before, after):
    assert rewrite.without_commas(before) == after


def test_a_sentence_of_many_commas_is_given_up():
    assert rewrite.without_commas("We saw " + ", ".join("abcdefgh") + " there.") is None


def test_titles_come_from_the_heading_or_the_topic():
    assert rewritten("title", ANSWERS["story with a heading"]).startswith("<<The Lost Umbrella>>\n\nOnce upon")
    made = {rewritten("title", ANSWERS["plain"], seed=seed).split("\n")[0] for seed in range(60)}
    assert len(made) > 6
    assert all("Small Library" in title for title in made)
    long_hint = {
        rewritten("title", ANSWERS["plain"], hint="Write a short story about sea turtles.", seed=seed)[:40]
        for seed in range(9)
    }
    assert all("Sea Turtles" in title for title in long_hint)
    assert rewritten("title", ANSWERS["letter"]).split("\n")[2] == "Dear Sarah,"


def test_sections_are_numbered_filled_and_of_like_length():
    result = rewritten("multiple_sections", ANSWERS["one long paragraph"], num_sections=3, section_spliter="Section")
    assert re.findall(r"(?m)^Section (\d+)$", result) == ["1", "2", "3"]
    sizes = [len(part.split()) for part in re.split(r"Section \d+", result)[1:]]
    assert min(sizes) * 2 > max(sizes)


def test_no_section_ends_before_the_list_it_announces():
    result = rewritten("multiple_sections", ANSWERS["numbered list"], num_sections=3, section_spliter="SECTION")
    assert not re.search(r":\n\nSECTION", result)
    letter = rewritten("multiple_sections", ANSWERS["letter"], num_sections=2, section_spliter="SECTION")
    assert letter.startswith("SECTION 1\nDear Sarah,\n\nI hope") and letter.endswith("week.\n\nBest regards,\nTom")


def test_too_little_to_divide_is_given_up():
    one = "This is one single sentence that goes on for quite a while but it is only one."
    assert rewritten("multiple_sections", one, num_sections=2, section_spliter="SECTION") is None


def test_quotation_turns_inner_marks_single_and_does_not_nest():
    assert rewritten("quotation", ANSWERS["letter"]).count('"') == 2
    assert "told me 'you can stay" in rewritten("quotation", ANSWERS["letter"])
    assert rewritten("quotation", ANSWERS["whole answer quoted"]) == ANSWERS["whole answer quoted"]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("num", [2, 3, 4])
def test_highlights_are_short_phrases_and_nothing_else_changes(answer, num):
    counts = set()
    for seed in range(12):
        result = rewritten("number_highlighted_sections", answer, seed=seed, num_highlights=num)
        phrases = re.findall(r"\*([^*\n]+)\*", result)
        assert result.replace("*", "") == rewrite.clean(answer)
        assert result.count("*") == 2 * len(phrases)
        assert all(2 <= len(phrase.split()) <= 5 and phrase == phrase.strip() for phrase in phrases)
        counts.add(len(phrases))
    assert counts <= {num, num + 1}


def test_unknown_task_is_refused():
    with pytest.raises(KeyError, match="did you mean 'title'"):
        rewritten("titles", ANSWERS["plain"])


def test_examples_in_docstrings():
    assert doctest.testmod(rewrite).failed == 0


def test_even_cuts_never_leave_an_empty_part():
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, 30) for _ in range(draw.randint(4, 12))]
        cuts = rewrite._even_cuts(lengths, 4)
        assert [0, *cuts, len(lengths)] == sorted({0, *cuts, len(lengths)}) and len(cuts) == 3
