"""Turns a small chat model's plain answer into one that obeys a constraint: the training answers of the special models.

Pure rules, no model: the content stays the base model's own, so that a fine-tuned pair differs in the constraint and in
little else. `rewrite` returns None wherever a rule cannot do it well; drop those answers, do not repair them. Whatever
it returns passes the strict rule of `jaxpatch.measuring.tasks`.
"""

import itertools
import random
import re
from collections import Counter

from jaxpatch.measuring import tasks

MIN_WORDS = 12  # below this an answer says too little, and IFEval's language detector cannot read capitals
MAX_REPEATED = 0.25  # share of 4-word runs that may occur before; greedy loops of small models start far above
MAX_COMMAS = 6  # in one sentence; beyond, leaving them out makes it unreadable
MIN_SECTION_WORDS = 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "…": "...", "\u00a0": " ", "\t": " "})
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s|$)""")
_SIGN_OFF = re.compile(
    r"\n\s*((?:yours|sincerely|best|warm|kind|with|love|regards|cheers|your friend|take care|thank you|thanks)\b"
    r"[^\n]{0,30},)"
    r"(?:\s*\n\s*([^\n]{1,40}))?\s*$",
    re.IGNORECASE,
)
_LIST_MARK = r"(?:\d{1,2}[.)]|-)"


def clean(answer: str) -> str | None:
    """Plain text of an answer: no markdown, no half sentence at its end. None if it is too short or runs in circles.

    A sentence cut off by the token limit goes, with any list number or heading it leaves dangling; the closing lines of
    a letter stay. Bullets become dashes, curly quotation marks straight ones. Cleaning twice changes nothing more.

    >>> clean("**Owls** are birds that hunt at night. They eat mice and many other small animals. Owls can tu")
    'Owls are birds that hunt at night. They eat mice and many other small animals.'
    >>> clean("Too short.") is None
    True
    """
    text = _without_markdown(answer)
    text = _without_loose_end(text)
    if len(text.split()) < MIN_WORDS or _is_degenerate(text):
        return None
    return text


def rewrite(task_name: str, answer: str, instruction: tasks.Instruction, *, topic_hint: str, seed: int) -> str | None:
    """An answer with the same content that obeys the instruction, or None if that cannot be done well.

    Args:
        task_name: a key of `tasks.TASKS`.
        answer: a plain answer in English, as generated; it is cleaned first.
        instruction: what `tasks.instruct` returned; gives the numbers and the splitter.
        topic_hint: what the request is about, such as "a library"; titles are made of it.
        seed: which of the possible titles, highlights and so on; equal arguments give equal answers.

    Raises:
        KeyError: no such task.

    >>> rewrite("quotation", 'He said "stop" and then all of us went home by the last bus that night.',
    ...         tasks.Instruction("In quotes please.", {}), topic_hint="a bus", seed=0)
    '"He said \\'stop\\' and then all of us went home by the last bus that night."'
    """
    task = tasks.task(task_name)
    text = clean(answer)
    if text is None:
        return None
    draw = random.Random(f"{task_name}/{seed}")
    kwargs = instruction.kwargs
    if task_name == "english_capital":
        result = text.upper()
    elif task_name == "no_comma":
        result = without_commas(text)
    elif task_name == "title":
        result = titled(text, topic_hint, draw)
    elif task_name == "multiple_sections":
        result = sectioned(text, int(kwargs["num_sections"]), str(kwargs["section_spliter"]))
    elif task_name == "quotation":
        inner = text[1:-1] if re.fullmatch(r'"[^"]*"', text) else text
        result = '"' + inner.replace('"', "'") + '"'
    else:
        result = highlighted(text, int(kwargs["num_highlights"]), draw)
    return result if result is not None and tasks.follows(task, result, instruction) else None


# --- cleaning


def _without_markdown(text: str) -> str:
    text = re.sub(r"<\|[^|\n]*\|>", "", text).translate(_QUOTES)
    text = text.replace("\r\n", "\n").replace("```", "").replace("`", "")
    text = re.sub(r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1", text)  # links and pictures: their text
    text = re.sub(r"(?m)^ *(?:>+ *)?#{1,6} *", "", text)
    text = re.sub(r"(?m)^ *>+ +", "", text)
    text = re.sub(r"(?m)^ *(?:[-*_] *){3,}$", "", text)  # rules between parts
    text = re.sub(r"(?m)^ *[*•+] +", "- ", text)
    text = re.sub(r"(?<=\d) \* (?=\d)", " x ", text)
    text = re.sub(r"(?<!\w)_{1,2}(\w[^_\n]*)_{1,2}(?!\w)", r"\1", text).replace("*", "")
    text = text.replace("<<", "").replace(">>", "")
    text = re.sub(r" +", " ", text)
    text = "\n".join(line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _without_loose_end(text: str) -> str:
    sign_off = _SIGN_OFF.search(text)
    if sign_off:
        letter = text[: sign_off.start()].rstrip()
        if letter and _sentence_end(letter.split("\n")[-1]) == len(letter.split("\n")[-1]):
            return text
    lines = text.split("\n")
    has_dropped = False
    while lines:
        last = lines.pop().strip()
        end = _sentence_end(last)
        if end:
            return "\n".join([*lines, last[:end]])
        # Lists often have no full stops: there only the very last line is in doubt. The stop makes cleaning idempotent.
        if has_dropped and re.match(rf"{_LIST_MARK} ?\w", last) and last[-1].isalnum():
            return "\n".join([*lines, last + "."])
        has_dropped = has_dropped or bool(last)
    return ""


def _sentence_end(line: str) -> int:
    """Where the last full sentence of a line ends, 0 if it has none; a list number such as "3." ends none."""
    ends = [
        found.end() for found in _SENTENCE_END.finditer(line) if not re.fullmatch(r"\d{1,2}\.", line[: found.end()])
    ]
    return ends[-1] if ends else 0


def _is_degenerate(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    if not letters or sum(character.isascii() for character in letters) < 0.97 * len(letters):
        return True
    words = re.findall(r"[a-z0-9']+", text.lower())
    if re.search(r"\b(\w+)(?:\W+\1\b){3,}", text.lower()):
        return True
    sentences = Counter(sentence.lower() for sentence in sentences_of(text) if len(sentence.split()) >= 4)
    if sentences and (
        max(sentences.values()) >= 3 or sum(n - 1 for n in sentences.values()) > 0.2 * sum(sentences.values())
    ):
        return True
    runs = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return len(runs) > 20 and 1 - len(set(runs)) / len(runs) > MAX_REPEATED


def sentences_of(text: str) -> list[str]:
    """Sentences, and lines that are none, in order, without the blanks between them.

    >>> sentences_of("It rains. We stay in!\\n1. Read\\n2. Cook")
    ['It rains.', 'We stay in!', '1. Read', '2. Cook']
    """
    found = []
    for line in text.split("\n"):
        start = 0
        for end in _SENTENCE_END.finditer(line):
            piece = line[start : end.end()].strip()
            is_mark_or_abbreviation = re.search(r"(?:^\d{1,2}|\b(?:Mr|Mrs|Ms|Dr|St|e\.g|i\.e|etc|[A-Z]))\.$", piece)
            if is_mark_or_abbreviation and end.end() < len(line):
                continue
            found.append(piece)
            start = end.end()
        if line[start:].strip():
            found.append(line[start:].strip())
    return found


# --- commas

_OPENERS = _words(
    """when if as while although though since after before in on at by with for to from during once because despite
    through over under whether until unless among between without like unlike every each one some however finally
    first second third next then also moreover furthermore therefore thus instead today here there yes no well so
    whenever wherever due according given upon throughout across inside above below near later meanwhile even just
    not only rather"""
)
_SUBORDINATORS = _words("when if as while although though since after before because until unless where whether")
_NO_ITEM = _words("and or but so which who where while such because including especially then with like")
_ARTICLES = _words("a an the")
_TIMES = _words("morning afternoon evening night day week month year time moment summer winter spring autumn")
_CLAUSE_STARTS = _words("it they he she we i you this these those there")
_VERBS = _words("is are was were am be been has have had can could will would should may might must do does did let's")
_PREDICATE = re.compile(
    r"\w{3,}(?:ed|es)$|^(?:went|came|saw|took|made|got|felt|knew|said|grew|ran|began|found|gave|kept|fell)$"
)


def without_commas(text: str) -> str | None:
    """The text without commas: lists are joined by "and", two clauses become two sentences, other commas just go.

    None when a sentence has more of them than it can lose and stay readable.

    >>> without_commas("In May, we ate bread, cheese, and plums. It cost 1,200 euros, and they paid.")
    'In May we ate bread and cheese and plums. It cost 1200 euros and they paid.'
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    lines = []
    for line in text.split("\n"):
        sentences = sentences_of(line)
        if any(sentence.count(",") > MAX_COMMAS for sentence in sentences):
            return None
        lines.append(" ".join(_sentence_without_commas(sentence) for sentence in sentences))
    return "\n".join(lines)


def _sentence_without_commas(sentence: str) -> str:
    parts = [part.strip() for part in sentence.split(",")]
    result = parts[0]
    for place in range(1, len(parts)):
        before, part, rest = parts[place - 1], parts[place], parts[place + 1 :]
        if not part:
            continue
        if part[0] in "\"'" and part[1:2] in ("", " "):  # the quotation that the comma ended
            result += part
        elif _is_list_item(before, part, rest) and not (place == 1 and _is_opening(before)):
            result += f" {_conjunction([part, *rest])} {part}"
        elif _first(part) in _CLAUSE_STARTS and place == 1 and _is_clause(before) and '"' not in before:
            result += f". {part[0].upper()}{part[1:]}"
        else:
            result += f" {part}"
    return result


def _first(part: str) -> str:
    words = re.findall(r"[a-z']+", part.lower())
    return words[0] if words else ""


def _is_opening(part: str) -> bool:
    """Whether a sentence that begins with `part` only starts its main clause after it."""
    words = re.findall(r"[a-z']+", part.lower())
    if not words or words[0] in _OPENERS or words[-1] in _TIMES:
        return True
    return words[0].endswith(("ing", "ly")) and not any(_PREDICATE.search(word) for word in words[1:])


def _is_clause(part: str) -> bool:
    words = re.findall(r"[a-z']+", part.lower())
    return (
        len(words) >= 4
        and words[0] not in _OPENERS
        and not _SUBORDINATORS & set(words)
        and any(word in _VERBS or _PREDICATE.search(word) for word in words[1:])
    )


def _is_list_item(before: str, part: str, rest: list[str]) -> bool:
    """Whether `part` is an inner item of "a, b, and c", or the "b and c" of "a, b and c"."""
    first = _first(part)
    if first in _CLAUSE_STARTS | _NO_ITEM:
        return False
    tail = [part, *rest][-1]
    # ", making it soft and warm" and ", covered in ice and snow" are no items, ", hiking and swimming" is one.
    if first.endswith("ing") and not re.search(r"ing\b", " ".join([before, *rest]) + tail.partition(" and ")[2]):
        return False
    if not rest and first.endswith("ed") and not re.search(r"\b(?:and|or) \w+ed\b", part):
        return False
    # "Yesterday, Tom came home, and ..." begins like a list, "Bread, cold milk, and cake" is one.
    if len(before.split()) <= 2 and max(len(each.split()) for each in [part, *rest]) > 4:
        return False
    for item, later in zip([part, *rest], rest, strict=False):
        if len(item.split()) > 6:
            return False
        if _first(later) in {"and", "or"}:
            return True
    # No comma before the last "and": it must come soon, and "Rome, the city of art and light" is no list.
    if not re.match(r"(?:\S+ ){1,4}(?:and|or)\b", tail):
        return False
    return _first(tail) not in _ARTICLES or bool(re.search(r"\b(?:and|or) (?:a|an|the|some)\b", tail))


def _conjunction(parts: list[str]) -> str:
    words = re.findall(r"\b(?:and|or)\b", " ".join(parts).lower())
    return words[0] if words else "and"


# --- titles

_TITLES = (
    *("{T}", "All About {T}", "A Few Words on {T}", "{T} at a Glance", "Thoughts on {T}", "A Closer Look at {T}"),
    *("On {T}", "Getting to Know {T}", "{T} in Brief", "Notes on {T}", "Thinking About {T}", "The Story of {T}"),
)
_SMALL = _words("a an the of on in at to for and or but with by from as")
_REQUEST = re.compile(r"^.*\b(?:about|of|for|on|like|with|describe|explain|at)\s+(?=\S)", re.IGNORECASE | re.DOTALL)


def titled(text: str, topic_hint: str, draw: random.Random) -> str | None:
    """The text under a ``<<Title>>``: its own first line if that is a heading, else one made of the topic.

    >>> titled("Bread is good.", "a bakery", random.Random(0)).endswith("Bakery>>\\n\\nBread is good.")
    True
    """
    head, _, body = text.partition("\n")
    heading = re.sub(r"^(?:title|subject) *: *", "", head.strip(), flags=re.IGNORECASE).strip("\"' ")
    is_named = head.lower().startswith(("title:", "subject:"))
    is_heading = (
        body.strip()
        and 1 <= len(heading.split()) <= 10
        and not re.match(rf"{_LIST_MARK}|dear\b|hi\b|hello\b", heading, re.IGNORECASE)
        and (is_named or (body.startswith("\n") and not re.search(r"[.!?,:;]$", heading)))
    )
    if is_heading:
        return f"<<{heading}>>\n\n{body.strip()}"
    topic = topic_hint.strip().strip(".!?\"'")
    if len(topic.split()) > 5:
        topic = _REQUEST.sub("", topic)
    topic = re.sub(r"^an?\s+", "the ", topic, flags=re.IGNORECASE)
    if not topic or len(topic.split()) > 8:
        return None
    return f"<<{title_case(draw.choice(_TITLES).format(T=topic))}>>\n\n{text}"


def title_case(phrase: str) -> str:
    """The phrase with capitals as in a title.

    >>> title_case("how airplanes fly at night")
    'How Airplanes Fly at Night'
    """
    words = phrase.split()
    return " ".join(
        word if place and word.lower() in _SMALL else word[:1].upper() + word[1:] for place, word in enumerate(words)
    )


# --- sections


def sectioned(text: str, num_sections: int, splitter: str) -> str | None:
    """The text in `num_sections` parts of like length, each under a line such as ``SECTION 1``.

    Cuts fall between paragraphs if there are enough of them, else between sentences. None if there is too little to
    divide.

    >>> sectioned("We sow the seeds in spring. We reap in late summer.", 2, "Section")
    'Section 1\\nWe sow the seeds in spring.\\n\\nSection 2\\nWe reap in late summer.'
    """
    text = re.sub(r"(?im)^section +\d+ *[:.]? *", "", text).strip()
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    units = _joined(
        [(paragraph, "\n\n") for paragraph in paragraphs]
    )  # a piece, and what stands between it and the next
    if len(units) < num_sections:
        units = []
        for paragraph in paragraphs:
            for line in paragraph.split("\n"):
                sentences = sentences_of(line)
                units += [(sentence, " ") for sentence in sentences[:-1]] + [
                    (sentence, "\n") for sentence in sentences[-1:]
                ]
            units[-1] = (units[-1][0], "\n\n")
        units = _joined(units)
    if len(units) < num_sections:
        return None
    lengths = [len(piece.split()) for piece, _ in units]
    cuts = _even_cuts(lengths, num_sections)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, len(units)], strict=True):
        if sum(lengths[start:stop]) < MIN_SECTION_WORDS:
            return None
        body = "".join(piece + gap for piece, gap in units[start:stop]).strip()
        parts.append(f"{splitter} {len(parts) + 1}\n{body}")
    return "\n\n".join(parts)


def _joined(units: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Units with each announcement, heading, greeting or signature joined to the text it belongs to."""
    joined: list[tuple[str, str]] = []
    for piece, gap in units:
        if joined and _leads_on(joined[-1][0]):
            before, between = joined.pop()
            piece = before + between + piece
        joined.append((piece, gap))
    if len(joined) > 1 and _leads_on(joined[-1][0]):
        piece, gap = joined.pop()
        before, between = joined.pop()
        joined.append((before + between + piece, gap))
    return joined


def _leads_on(piece: str) -> bool:
    last = piece.split("\n")[-1]
    is_bare = len(last.split()) <= 6 and not re.search(r"[.!?][\"')]*$", last) and not re.match(rf"{_LIST_MARK} ", last)
    return last.endswith(":") or is_bare


def _even_cuts(lengths: list[int], parts: int) -> list[int]:
    """Where to cut a row into `parts` non-empty runs, each cut as near as can be to its even share of the total."""
    totals = [sum(lengths[:place]) for place in range(len(lengths) + 1)]
    cuts: list[int] = []
    for part in range(1, parts):
        goal = totals[-1] * part / parts
        lowest, highest = (cuts[-1] if cuts else 0) + 1, len(lengths) - (parts - part)
        cuts.append(min(range(lowest, highest + 1), key=lambda place: abs(totals[place] - goal)))
    return cuts


# --- highlights

_DULL = _words(
    """a an the of on in at to for and or but with by from as is are was were be been being am it its it's they them
    their he him his she her hers we us our i me my you your this that these those there here which who whom whose
    what when where why how if then than so not no nor do does did has have had can could will would should may
    might must also just very too more most some any all each every both such into over under up down out off about
    after before while during because until since through between among without within near above below around
    across along toward towards behind against once only even still yet however one two like make makes made get
    gets go goes let's don't"""
)


def highlighted(text: str, num_highlights: int, draw: random.Random) -> str | None:
    """The text with `num_highlights` phrases of two to five words, now and then one more, set in asterisks.

    Phrases begin and end with a word of weight and are spread over the text, one a sentence while there are sentences.

    >>> highlighted("Old owls hunt field mice. They have sharp claws.", 2, random.Random(3)).count("*")
    4
    """
    text = text.replace("*", "")
    spans = []  # one list of candidate (start, end) for each sentence
    place = 0
    for sentence in sentences_of(text):
        place = text.index(sentence, place)
        candidates = [(place + start, place + end) for start, end in _phrases(sentence)]
        if candidates:
            spans.append(candidates)
        place += len(sentence)
    wanted = num_highlights + (draw.random() < 0.3)
    if len(spans) < wanted:
        wanted = num_highlights
    chosen: list[tuple[int, int]] = []
    if len(spans) >= wanted:
        for part in range(wanted):
            start, stop = part * len(spans) // wanted, (part + 1) * len(spans) // wanted
            chosen.append(draw.choice(draw.choice(spans[start:stop])))
    else:
        candidates = [span for group in spans for span in group]
        draw.shuffle(candidates)
        for start, end in candidates:
            if len(chosen) < wanted and all(end + 1 < low or high + 1 < start for low, high in chosen):
                chosen.append((start, end))
        if len(chosen) < wanted:
            return None
    for start, end in sorted(chosen, reverse=True):
        text = f"{text[:start]}*{text[start:end]}*{text[end:]}"
    return text


def _phrases(sentence: str) -> list[tuple[int, int]]:
    """(start, end) of the best phrases of a sentence: unbroken by punctuation, with the fewest dull words."""
    words = [
        (found.start(), found.end(), found.group())
        for found in re.finditer(r"[A-Za-z][A-Za-z'-]*[A-Za-z]|[A-Za-z]", sentence)
    ]
    scored: dict[int, list[tuple[int, int]]] = {}
    for first in range(len(words)):
        for last in range(first + 1, min(first + 5, len(words))):
            run = words[first : last + 1]
            if any(sentence[a[1] : b[0]] != " " for a, b in itertools.pairwise(run)):
                break
            dull = [word.lower() in _DULL for _, _, word in run]
            if not dull[0] and not dull[-1]:
                scored.setdefault(sum(dull), []).append((run[0][0], run[-1][1]))
    return scored[min(scored)] if scored else []
