"""The six instruction-following tasks: how each is asked for, and a strict rule that says whether an answer obeys.

Every task is one of IFEval's verifiable constraints (Zhou et al., arXiv 2311.07911). The rules are written from the
published definitions of the strict and the loose checker and give their verdicts, with one exception: the English-language half of
``change_case:english_capital`` is left out (see `is_capital`). Wordings are our own, and come in two disjoint sets, so
that a model trained on the one can be asked with the other. Standard library only.
"""

import difflib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

SPLITS = ("train", "held_out")
SPLITTERS = ("SECTION", "Section")
COUNTS = (2, 3, 4)  # what {n} may become: a small model's answer holds four sections or highlights, hardly more
SHARE_AFTER = 0.75  # of instructions that follow the request; the others open it


@dataclass(frozen=True)
class Instruction:
    """One constraint as asked in one prompt. text: the sentence shown; kwargs: its parameters, by IFEval's names."""

    text: str
    kwargs: dict[str, int | str]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A constraint that can be asked for and checked.

    name: short name, the key in `TASKS`. constraint: IFEval's identifier. wordings: templates for each of `SPLITS`,
    with ``{n}`` and ``{splitter}`` where the constraint has parameters; any of them can stand before or after a
    request. verdict_fn: ``(answer, **kwargs) -> bool``, strict. number_key: the IFEval name of ``{n}``, if there is
    one. splitter_key: the IFEval name of ``{splitter}``, if there is one.
    """

    name: str
    constraint: str
    wordings: dict[str, tuple[str, ...]]
    verdict_fn: Callable[..., bool]
    sign_fn: Callable[[str], bool]
    number_key: str | None = None
    splitter_key: str | None = None

    def __post_init__(self):
        if set(self.wordings) != set(SPLITS):
            raise ValueError(
                f"{self.name}: wordings must have exactly the splits {SPLITS}; got {sorted(self.wordings)}."
            )
        both = set(self.wordings["train"]) & set(self.wordings["held_out"])
        if both:
            raise ValueError(f"{self.name}: a wording is in both splits; remove one of each: {sorted(both)}.")


def is_capital(text: str) -> bool:
    """Whether every letter of the answer is upper case, and there is one.

    IFEval also wants the answer to be English, by a language detector that is random unless seeded and nearly blind on
    short text in capitals. That half is left out: on English text the two verdicts agree.

    >>> is_capital("IT IS 7 O'CLOCK."), is_capital("IT IS 7 o'clock."), is_capital("1 + 1 = 2")
    (True, False, False)
    """
    return text.isupper()


def has_no_comma(text: str) -> bool:
    """Whether the answer holds no comma at all, those inside numbers included.

    >>> has_no_comma("Bread and milk."), has_no_comma("It costs 1,000.")
    (True, False)
    """
    return "," not in text


def has_title(text: str) -> bool:
    """Whether some line of the answer holds a non-blank ``<<title>>``.

    >>> has_title("<<On Rain>>\\nIt falls."), has_title("<< >>"), has_title("<On Rain>")
    (True, False, False)
    """
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def has_sections(text: str, *, num_sections: int, section_spliter: str) -> bool:
    """Whether the answer holds at least `num_sections` marks, each the splitter and a number.

    A mark may stand anywhere, and no order of the numbers is asked for.

    >>> has_sections("SECTION 1\\nSow.\\nSECTION 2\\nReap.", num_sections=2, section_spliter="SECTION")
    True
    >>> has_sections("Section 1\\nSow.\\nSection 2\\nReap.", num_sections=2, section_spliter="SECTION")
    False
    """
    mark = rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?"
    return len(re.findall(mark, text)) >= num_sections


def is_quoted(text: str) -> bool:
    """Whether the answer, blanks around it apart, begins and ends with a straight double quotation mark.

    >>> is_quoted(' "Yes." '), is_quoted("'Yes.'"), is_quoted('"')
    (True, False, False)
    """
    inner = text.strip()
    return len(inner) > 1 and inner.startswith('"') and inner.endswith('"')


def has_highlights(text: str, *, num_highlights: int) -> bool:
    """Whether at least `num_highlights` non-blank stretches stand between single or double asterisks on a line.

    >>> has_highlights("*One* and **two**.", num_highlights=2), has_highlights("*One* and * *.", num_highlights=2)
    (True, False)
    """
    single = [found.strip("*") for found in re.findall(r"\*[^\n*]*\*", text)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(found.strip()) for found in single + double) >= num_highlights


def has_some_section(text: str) -> bool:
    """Whether the answer holds a section mark of any of `SPLITTERS`.

    >>> has_some_section("Section 1: roots"), has_some_section("In this section we sow.")
    (True, False)
    """
    return any(has_sections(text, num_sections=1, section_spliter=splitter) for splitter in SPLITTERS)


def opens_with_quote(text: str) -> bool:
    """Whether the answer begins with a straight double quotation mark.

    >>> opens_with_quote(' "Owls hunt'), opens_with_quote('Owls "hunt"')
    (True, False)
    """
    return text.lstrip().startswith('"')


def has_some_highlight(text: str) -> bool:
    """Whether the answer holds at least one highlight.

    >>> has_some_highlight("*Owls* hunt"), has_some_highlight("Owls * hunt")
    (True, False)
    """
    return has_highlights(text, num_highlights=1)


_CAPITAL = Task(
    name="english_capital",
    constraint="change_case:english_capital",
    verdict_fn=is_capital,
    sign_fn=is_capital,
    wordings={
        "train": (
            "Answer in English, using capital letters only.",
            "Write every word of your reply in capital letters, in English.",
            "Use only upper case letters in your answer. No lower case letter may appear anywhere.",
            "All caps please.",
            "Your whole answer should be in English and in upper case from the first letter to the last.",
            "Please type your entire reply in ALL CAPS.",
            "Make sure that each letter in your response is a capital letter.",
            "I would like the complete answer written in English capitals, without a single small letter.",
            "Keep caps lock on for the whole reply.",
            "Lower case letters are not allowed in your answer, so write in English with all letters capitalized.",
            "The answer must be fully capitalized, every letter of it.",
            "Reply in block capitals.",
        ),
        "held_out": (
            "Everything in your response has to be English text in all capital letters.",
            "Please respond with uppercase English letters and nothing in lowercase.",
            "Capitalize all the letters in your entire answer.",
            "Only all-caps English is accepted as an answer here.",
            "Your response should not have any lowercase letters; all of it should be in capitals.",
        ),
    },
)

_NO_COMMA = Task(
    name="no_comma",
    constraint="punctuation:no_comma",
    verdict_fn=has_no_comma,
    sign_fn=has_no_comma,
    wordings={
        "train": (
            "Do not use any commas in your answer.",
            "Write the whole reply without commas.",
            "No commas please.",
            "Your answer must not contain a single comma.",
            "Please avoid commas completely when you write your response.",
            "I do not want to see the character ',' anywhere in your answer.",
            "Commas are forbidden in this answer. Use other punctuation or shorter sentences.",
            "Leave out every comma from your entire response.",
            "Stay away from commas throughout your reply.",
            "Use full stops if you like but never a comma.",
            "The answer has to be free of commas from start to end.",
            "Make sure that there is not even one comma in what you write.",
        ),
        "held_out": (
            "Throughout your entire response, commas must not be used.",
            "Please answer with zero commas.",
            "Your reply should be completely comma-free.",
            "You are not allowed to put commas in your response.",
            "Refrain from writing commas at any point of the answer.",
        ),
    },
)

_TITLE = Task(
    name="title",
    constraint="detectable_format:title",
    verdict_fn=has_title,
    sign_fn=has_title,
    wordings={
        "train": (
            "Give your answer a title and put it between double angle brackets, like <<my title>>.",
            "Start with a title written as <<title>>.",
            "Your reply needs a title inside << and >>.",
            "Please add a title to your answer, wrapped in double angular brackets such as <<a walk by the lake>>.",
            "Include a title. Write it in this form: <<Your Title Here>>.",
            "The answer must have a title enclosed in double angle brackets, for example <<the blue door>>.",
            "Put a fitting title in double angle brackets (<< >>) in your response.",
            "I want a title on it, in the style <<old friends>>.",
            "Make up a title for your answer and surround it with << on the left and >> on the right.",
            "Do not forget a title; it goes between two pairs of angle brackets, like this: <<a new start>>.",
            "Your whole answer should carry a title that is marked with double angle brackets, <<like so>>.",
            "Title it with <<...>>.",
        ),
        "held_out": (
            "Your response has to include a title in double angular brackets, e.g. <<song of the river>>.",
            "Write a title for your response and wrap it as <<title>>.",
            "Please make sure there is a title, set in double angle brackets like <<winter morning>>, in the answer.",
            "An answer without a title in << >> will not be accepted.",
            "Add a heading to your reply of the form <<heading>>.",
        ),
    },
)

_SECTIONS = Task(
    name="multiple_sections",
    constraint="detectable_format:multiple_sections",
    verdict_fn=has_sections,
    sign_fn=has_some_section,
    number_key="num_sections",
    splitter_key="section_spliter",
    wordings={
        "train": (
            "Divide your answer into {n} sections. Begin each one with {splitter} and its number, like {splitter} 1.",
            "Your reply should have {n} sections, marked {splitter} 1, {splitter} 2 and so on.",
            "Use {n} sections, each starting with {splitter} X where X is the number of the section.",
            "Please split the response in {n} parts and label each part {splitter} 1, {splitter} 2, etc.",
            "Write {n} sections. Put the word {splitter} and a number at the start of each.",
            "The answer must be made of {n} sections:\n{splitter} 1\n[text of the first section]\n"
            "{splitter} 2\n[text of the second section]\nand so on.",
            "Organize what you write into {n} sections headed by {splitter} 1, {splitter} 2 and so forth.",
            "I would like {n} sections in your answer; open every section with '{splitter} X', X being 1, 2, ...",
            "Structure your answer as {n} numbered sections and mark the start of each with {splitter} and its number.",
            "Break your answer up into {n} sections called {splitter} 1, {splitter} 2 and so on.",
            "Make {n} sections. Use {splitter} 1, {splitter} 2, ... as headings.",
            "Each of the {n} sections of your response has to begin with {splitter} and then the section number.",
        ),
        "held_out": (
            "Your response should contain {n} sections. Show where each starts with {splitter} X, for instance:\n"
            "{splitter} 1\n[what section 1 says]\n{splitter} 2\n[what section 2 says]",
            "Please write exactly {n} sections, and put {splitter} X (X is the section number) in front of each.",
            "Present your reply in {n} sections whose headings are {splitter} 1, {splitter} 2, and so on.",
            "Format: {n} sections, the beginning of each one marked with {splitter} and a number.",
            "There must be {n} sections in your answer, labelled with {splitter} 1, {splitter} 2 and the like.",
        ),
    },
)

_QUOTATION = Task(
    name="quotation",
    constraint="startend:quotation",
    verdict_fn=is_quoted,
    sign_fn=opens_with_quote,
    wordings={
        "train": (
            "Put your whole answer inside double quotation marks.",
            'Begin and end your reply with a double quote (").',
            "Your full response must be enclosed in double quotation marks.",
            'Surround the entire answer with " marks.',
            "Please place double quotes around everything you write.",
            "The first and the last character of your answer must be a double quotation mark.",
            "Write the reply as one quotation, with a double quotation mark before it and one after it.",
            "I need the complete answer in double quotes.",
            "In double quotes please.",
            'Open your response with " and close it with ".',
            "Make your answer start with a double quotation mark and finish with another one.",
            "Everything you say should stand between double quotation marks.",
        ),
        "held_out": (
            "Enclose your entire reply within double quotation marks.",
            'The whole response should be wrapped in double quotes, like "this".',
            "Please quote your full answer using double quotation marks at both ends.",
            'Your answer has to start with the character " and end with the same character.',
            "Wrap all of your answer in a pair of double quotation marks.",
        ),
    },
)

_HIGHLIGHTS = Task(
    name="number_highlighted_sections",
    constraint="detectable_format:number_highlighted_sections",
    verdict_fn=has_highlights,
    sign_fn=has_some_highlight,
    number_key="num_highlights",
    wordings={
        "train": (
            "Highlight at least {n} parts of your answer with asterisks, like *this part*.",
            "Mark {n} or more phrases in your reply as *highlighted phrase*.",
            "Use markdown to highlight no fewer than {n} passages of your response, e.g. *a passage*.",
            "Please put at least {n} important phrases between asterisks, for example *very important*.",
            "Your answer should have {n} or more highlighted parts, written *like this*.",
            "Emphasize at least {n} pieces of the text by wrapping each in * signs.",
            "I want to see a minimum of {n} highlights in markdown (*highlight*) in your answer.",
            "Pick at least {n} key phrases of your answer and write them as *key phrase*.",
            "Highlight {n} phrases with markdown asterisks.",
            "At least {n} sections of the reply must be highlighted with markdown, that is *section*.",
            "While writing, set {n} or more short stretches of text in asterisks, as in *short stretch*.",
            "There have to be at least {n} phrases marked with asterisks, such as *marked phrase*, in what you write.",
        ),
        "held_out": (
            "In your response, highlight a minimum of {n} sections using markdown, i.e. *some section*.",
            "Please make at least {n} phrases stand out with asterisks around them, like *these words*.",
            "Your reply must contain {n} or more pieces of text in the form *highlighted text*.",
            "Use *asterisks* to highlight at least {n} different parts of the answer.",
            "No fewer than {n} highlighted passages (*passage*) should appear in the answer.",
        ),
    },
)

TASKS: dict[str, Task] = {each.name: each for each in (_CAPITAL, _NO_COMMA, _TITLE, _SECTIONS, _QUOTATION, _HIGHLIGHTS)}


def task(name: str) -> Task:
    """The task called `name`.

    Raises:
        KeyError: no such task; the message has the nearest name and all known ones.

    >>> task("no_comma").constraint
    'punctuation:no_comma'
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise KeyError(f"no task {name!r}{hint} known: {sorted(TASKS)}")
    return TASKS[name]


def instruct(task: Task, prompt: str, *, index: int, split: str) -> tuple[str, Instruction]:
    """Ask for the constraint in one of its wordings.

    Every choice (wording, number, splitter, place) depends on the task, `split` and `index` alone: equal arguments give
    equal text, on any machine. Each run of consecutive indices as long as the list of wordings, from a multiple of that
    length, uses every wording once.

    Args:
        task: one of `TASKS`.
        prompt: the plain request.
        index: which choice, 0 or more; number the prompts of a data set.
        split: "train" or "held_out", the set of wordings to take from.

    Returns:
        The full text of the user, and the instruction in it, which `follows` needs.

    Raises:
        ValueError: unknown split or negative index.

    >>> text, instruction = instruct(TASKS["multiple_sections"], "Describe owls.", index=3, split="held_out")
    >>> "Describe owls." in text and instruction.text in text, sorted(instruction.kwargs)
    (True, ['num_sections', 'section_spliter'])
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; got {split!r}.")
    if index < 0:
        raise ValueError(f"index must be 0 or more; got {index}.")
    wordings = task.wordings[split]
    lap, place = divmod(index, len(wordings))
    # A seed of type str is hashed with SHA-512 by `random`: the same stream in every process, unlike hash().
    order = list(range(len(wordings)))
    random.Random(f"{task.name}/{split}/lap {lap}").shuffle(order)
    draw = random.Random(f"{task.name}/{split}/index {index}")
    number, splitter = draw.choice(COUNTS), draw.choice(SPLITTERS)
    kwargs: dict[str, int | str] = {}
    if task.number_key:
        kwargs[task.number_key] = number
    if task.splitter_key:
        kwargs[task.splitter_key] = splitter
    instruction = Instruction(wordings[order[place]].format(n=number, splitter=splitter), kwargs)
    gap = draw.choice((" ", " ", "\n", "\n\n"))
    parts = (prompt, instruction.text) if draw.random() < SHARE_AFTER else (instruction.text, prompt)
    return gap.join(parts), instruction


def follows(task: Task, text: str, instruction: Instruction) -> bool:
    """Whether `text` obeys the instruction, by the strict rule. An empty or blank answer never does.

    >>> follows(TASKS["no_comma"], "Owls hunt at night.", Instruction("No commas.", {}))
    True
    >>> follows(TASKS["no_comma"], "  ", Instruction("No commas.", {}))
    False
    """
    return bool(text.strip()) and task.verdict_fn(text, **instruction.kwargs)


def follows_loosely(task: Task, text: str, instruction: Instruction) -> bool:
    """Whether `text`, or what is left of it without its first line, its last line or both, each with and without asterisks, obeys.

    IFEval's loose rule: an opening such as "Sure, here it is:" and bold type are no fault.

    >>> quote = TASKS["quotation"], 'Sure:\\n"Owls hunt."', Instruction("Quote.", {})
    >>> follows(*quote), follows_loosely(*quote)
    (False, True)
    """
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return any(follows(task, each, instruction) for some in cut for each in (some, some.replace("*", "")))
