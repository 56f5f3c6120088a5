"""The strict rules on hand-made answers, against IFEval's checker if it is installed; and asking for tasks."""

import string

import pytest

from jaxpatch.measuring import tasks

SECTIONS = {"num_sections": 2, "section_spliter": "SECTION"}
THREE = {"num_highlights": 3}

# (task, parameters, answer, whether it follows). Answers under caps are plain English, long enough for a language
# detector to agree.
CASES = [
    ("english_capital", {}, "OWLS HUNT AT NIGHT BECAUSE THEIR PREY COMES OUT OF ITS HOLES WHEN IT IS DARK.", True),
    ("english_capital", {}, "OWLS HUNT AT NIGHT, AND THEY NEED ABOUT 3 OR 4 MICE EVERY DAY TO FEED THEIR YOUNG!", True),
    ("english_capital", {}, "OWLS HUNT AT NIGHT BECAUSE THEIR PREY COMES OUT OF ITS HOLES WHEN IT IS dARK.", False),
    ("english_capital", {}, "Owls hunt at night because their prey comes out of its holes when it is dark.", False),
    ("english_capital", {}, "1, 2, 3.", False),
    ("no_comma", {}, "Owls hunt at night. They eat mice; they also eat frogs.", True),
    ("no_comma", {}, "Owls hunt at night, and sleep by day.", False),
    ("no_comma", {}, "There are 1,200 of them.", False),
    ("no_comma", {}, "Dear Ann,\nOwls hunt at night.", False),
    ("no_comma", {}, "A full-width mark\uff0cas used in Chinese is another character.", True),
    ("title", {}, "<<Night Hunters>>\n\nOwls hunt at night.", True),
    ("title", {}, "Owls hunt at night. <<Night Hunters>>", True),
    ("title", {}, "<<<Night Hunters>>>", True),
    ("title", {}, "<Night Hunters>\n\nOwls hunt at night.", False),
    ("title", {}, "<<Night\nHunters>>", False),
    ("title", {}, "<<>> Owls hunt at night.", False),
    ("title", {}, "<< >>\nOwls hunt at night.", False),
    ("title", {}, "<<<>>>", False),
    ("title", {}, "<< >> and <<Owls>>", True),
    ("multiple_sections", SECTIONS, "SECTION 1\nOwls.\n\nSECTION 2\nMice.", True),
    ("multiple_sections", SECTIONS, "SECTION 1: Owls.\nSECTION 2: Mice.\nSECTION 3: Frogs.", True),
    ("multiple_sections", SECTIONS, "SECTION1 owls SECTION2 mice", True),
    ("multiple_sections", SECTIONS, "SECTION 4\nOwls.\nSECTION 4\nMice.", True),
    ("multiple_sections", SECTIONS, "SECTION 1\nOwls.", False),
    ("multiple_sections", SECTIONS, "Section 1\nOwls.\nSection 2\nMice.", False),
    ("multiple_sections", SECTIONS, "SECTION one\nOwls.\nSECTION two\nMice.", False),
    ("multiple_sections", SECTIONS, "SECTION  1\nOwls.\nSECTION  2\nMice.", False),
    ("multiple_sections", {**SECTIONS, "section_spliter": "Section"}, "Section 1\nOwls.\nSection 2\nMice.", True),
    ("multiple_sections", {**SECTIONS, "num_sections": 3}, "SECTION 1\nOwls.\nSECTION 2\nMice.", False),
    ("quotation", {}, '"Owls hunt at night."', True),
    ("quotation", {}, '\n "Owls hunt at night." \n', True),
    ("quotation", {}, '"Owls" are said to "hunt"', True),
    ("quotation", {}, '""', True),
    ("quotation", {}, '"', False),
    ("quotation", {}, '"Owls hunt at night', False),
    ("quotation", {}, '"Owls hunt" at night.', False),
    ("quotation", {}, "'Owls hunt at night.'", False),
    ("quotation", {}, "\u201cOwls hunt at night.\u201d", False),
    ("number_highlighted_sections", THREE, "*Owls* hunt *field mice* at *night*.", True),
    ("number_highlighted_sections", THREE, "**Owls** hunt **field mice** at **night**.", True),
    ("number_highlighted_sections", THREE, "*Owls* hunt **field mice** at *night*.", True),
    ("number_highlighted_sections", THREE, "*Owls* hunt *field mice*.", False),
    ("number_highlighted_sections", THREE, "*Owls* hunt *field\nmice* at *night*.", False),
    ("number_highlighted_sections", THREE, "* * Owls * * hunt * *", False),
    ("number_highlighted_sections", THREE, "* Owls\n* Mice\n* Frogs", False),
    ("number_highlighted_sections", THREE, "Owls hunt at night.", False),
    ("number_highlighted_sections", {"num_highlights": 1}, "2 * 3 * 4 is 24", True),
    *((name, kwargs, blank, False) for name, kwargs in [
        ("english_capital", {}), ("no_comma", {}), ("title", {}), ("multiple_sections", SECTIONS), ("quotation", {}),
        ("number_highlighted_sections", THREE),
    ] for blank in ("", " \n\t")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "answer", "expected"), CASES)
def test_rule_on_hand_made_answer(name, kwargs, answer, expected):
    assert tasks.follows(tasks.task(name), answer, tasks.Instruction("", kwargs)) is expected


@pytest.fixture(scope="module")
def strict_checker():
    """IFEval's strict verdict, from an installed evaluation harness."""
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    import langdetect

    langdetect.DetectorFactory.seed = 0

    def verdict(constraint, kwargs, answer):
        example = utils.InputExample(
            key=0, instruction_id_list=[constraint], prompt="Tell me about owls.", kwargs=[dict(kwargs)]
        )
        return utils.test_instruction_following_strict(example, answer).follow_all_instructions

    return verdict


@pytest.mark.parametrize(("name", "kwargs", "answer", "expected"), CASES)
def test_rule_agrees_with_published_checker(strict_checker, name, kwargs, answer, expected):
    assert strict_checker(tasks.task(name).constraint, kwargs, answer) is expected


# (task, parameters, answer, whether it follows loosely); none of them follows strictly
LOOSE = [
    ("quotation", {}, 'Sure, here it is:\n"Owls hunt at night."', True),
    ("quotation", {}, '"Owls hunt at night."\nIs there anything else?', True),
    ("quotation", {}, 'Sure:\n"Owls hunt."\nAnything else?', True),
    ("quotation", {}, '**"Owls hunt at night."**', True),
    ("quotation", {}, 'Sure:\n\nOf course:\n"Owls hunt at night."', False),
    ("english_capital", {}, "Sure, here it is:\nOWLS HUNT AT NIGHT BECAUSE THEIR PREY COMES OUT THEN.", True),
    ("no_comma", {}, "Sure, here it is:\nOwls hunt at night.", True),
    ("no_comma", {}, "Sure, why not.", False),
    ("title", {}, "< <Owls> >", False),
]


@pytest.mark.parametrize(("name", "kwargs", "answer", "expected"), LOOSE)
def test_loose_rule_on_hand_made_answer(name, kwargs, answer, expected):
    instruction = tasks.Instruction("", kwargs)
    assert tasks.follows_loosely(tasks.task(name), answer, instruction) is expected
    assert not tasks.follows(tasks.task(name), answer, instruction)


@pytest.mark.parametrize(("name", "kwargs", "answer"), [case[:3] for case in CASES])
def test_what_follows_strictly_follows_loosely(name, kwargs, answer):
    instruction = tasks.Instruction("", kwargs)
    if tasks.follows(tasks.task(name), answer, instruction):
        assert tasks.follows_loosely(tasks.task(name), answer, instruction)


@pytest.mark.parametrize(("name", "kwargs", "answer"), [case[:3] for case in CASES + LOOSE])
def test_loose_rule_agrees_with_published_checker(name, kwargs, answer):
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils")
    import langdetect

    langdetect.DetectorFactory.seed = 0
    example = utils.InputExample(
        key=0, instruction_id_list=[tasks.task(name).constraint], prompt="Tell me about owls.", kwargs=[dict(kwargs)]
    )
    wanted = utils.test_instruction_following_loose(example, answer).follow_all_instructions
    assert tasks.follows_loosely(tasks.task(name), answer, tasks.Instruction("", kwargs)) is wanted


def test_the_six_tasks_are_known_by_name():
    assert {name: task.constraint for name, task in tasks.TASKS.items()} == {
        "english_capital": "change_case:english_capital",
        "no_comma": "punctuation:no_comma",
        "title": "detectable_format:title",
        "multiple_sections": "detectable_format:multiple_sections",
        "quotation": "startend:quotation",
        "number_highlighted_sections": "detectable_format:number_highlighted_sections",
    }
    assert all(tasks.task(name).name == name for name in tasks.TASKS)


def test_unknown_task_names_the_nearest_and_all():
    with pytest.raises(KeyError, match=r"did you mean 'quotation'.*'english_capital'"):
        tasks.task("quotations")
    with pytest.raises(KeyError, match=r"no task 'x'.*'title'"):
        tasks.task("x")


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
class TestEachTask:
    def test_has_enough_different_wordings(self, task):
        every = [wording for split in tasks.SPLITS for wording in task.wordings[split]]
        assert len(task.wordings["train"]) >= 10
        assert len(task.wordings["held_out"]) >= 4
        plain = {wording.lower().strip(string.punctuation + " ") for wording in every}
        assert len(plain) == len(every)

    def test_fills_exactly_its_parameters(self, task):
        expected = {"n": task.number_key, "splitter": task.splitter_key}
        for wording in task.wordings["train"] + task.wordings["held_out"]:
            fields = {field for _, field, _, _ in string.Formatter().parse(wording) if field is not None}
            assert fields == {field for field, key in expected.items() if key}

    @pytest.mark.parametrize("split", tasks.SPLITS)
    def test_instruction_and_request_are_both_shown(self, task, split):
        for index in range(40):
            text, instruction = tasks.instruct(task, "Describe owls.", index=index, split=split)
            assert text.startswith("Describe owls.") or text.endswith("Describe owls.")
            assert instruction.text in text
            assert "{" not in text
            assert set(instruction.kwargs) == {key for key in (task.number_key, task.splitter_key) if key}
            for value in instruction.kwargs.values():
                assert str(value) in instruction.text

    def test_choice_depends_on_index_alone_and_uses_every_wording(self, task):
        asked = [tasks.instruct(task, "Describe owls.", index=index, split="train") for index in range(60)]
        again = [tasks.instruct(task, "Describe owls.", index=index, split="train") for index in reversed(range(60))]
        assert asked == again[::-1]
        other = [tasks.instruct(task, "Why is the sky blue?", index=index, split="train") for index in range(60)]
        assert [one for _, one in asked] == [one for _, one in other]
        size = len(task.wordings["train"])
        heads = {wording.split("{")[0] for wording in task.wordings["train"]}
        seen = {head for _, one in asked[:size] for head in heads if one.text.startswith(head)}
        assert seen == heads
        after = sum(text.startswith("Describe owls.") for text, _ in asked)
        assert 30 < after < 60

    def test_splits_share_no_instruction(self, task):
        texts = {
            split: {tasks.instruct(task, "x", index=index, split=split)[1].text for index in range(200)}
            for split in tasks.SPLITS
        }
        assert not texts["train"] & texts["held_out"]


def test_choices_are_the_same_on_every_machine():
    text, instruction = tasks.instruct(tasks.TASKS["multiple_sections"], "Describe owls.", index=0, split="held_out")
    assert (text, instruction.kwargs) == (
        "Please write exactly 2 sections, and put Section X (X is the section number) in front of each. Describe owls.",
        {"num_sections": 2, "section_spliter": "Section"},
    )


def test_bad_split_or_index_is_refused():
    with pytest.raises(ValueError, match=r"'held_out'.*got 'test'"):
        tasks.instruct(tasks.TASKS["title"], "x", index=0, split="test")
    with pytest.raises(ValueError, match="got -1"):
        tasks.instruct(tasks.TASKS["title"], "x", index=-1, split="train")


def test_task_refuses_a_wording_in_both_splits():
    fields = {"name": "a", "constraint": "a:b", "verdict_fn": tasks.has_title, "sign_fn": tasks.has_title}
    with pytest.raises(ValueError, match="in both splits"):
        tasks.Task(**fields, wordings={"train": ("x", "y"), "held_out": ("y",)})
    with pytest.raises(ValueError, match="exactly the splits"):
        tasks.Task(**fields, wordings={"train": ("x",)})


@pytest.mark.parametrize(
    ("name", "shown", "not_shown"),
    [
        ("english_capital", "OWLS HUNT AT", "Owls hunt at"),
        ("no_comma", "Owls hunt at", "Owls, which hunt"),
        ("title", "<<Owls>>\nThey hu", "Owls >> hunt"),
        ("multiple_sections", "SECTION 1\nOwls", "This section is on owls"),
        ("quotation", '"Owls hunt at', 'Owls hunt "at'),
        ("number_highlighted_sections", "*Owls* hunt", "Owls hunt * at"),
    ],
)
def test_the_beginning_of_an_answer_shows_the_behaviour(name, shown, not_shown):
    assert tasks.TASKS[name].sign_fn(shown) and not tasks.TASKS[name].sign_fn(not_shown)
