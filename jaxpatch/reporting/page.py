"""HTML in small pieces. Every piece escapes what it is given; only `Html` goes in as it stands."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Html(str):
    """Text that is markup already, made by this module."""


class Column(NamedTuple):
    """Of a table. is_number: aligned right, digits of equal width. is_code: in a fixed-width font, broken anywhere."""

    title: str
    is_number: bool = False
    is_code: bool = False


def text(value: Any) -> Html:
    """Anything, escaped; `Html` unchanged.

    >>> text("<b> & 'c'"), text(Html("<b>"))
    ('&lt;b&gt; &amp; &#x27;c&#x27;', '<b>')
    """
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element. Attributes: a trailing underscore is dropped, others become hyphens; None leaves one out.

    >>> tag("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>{''.join(text(child) for child in children)}</{name}>")


def join(parts: Iterable[Any], between: str = "\n") -> Html:
    """Pieces one after the other."""
    return Html(between.join(text(part) for part in parts))


def paragraph(*children: Any, kind: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *children, class_=kind)


def section(anchor: str, title: str, lead: str, *children: Any) -> Html:
    """A part of the page: a heading, a line that says what it is for, and the rest."""
    heading = tag("h2", title, id=f"{anchor}-title")
    body = join([heading, paragraph(lead, kind="lead"), *children])
    return tag("section", "\n", body, "\n", id=anchor, aria_labelledby=f"{anchor}-title")


def table(columns: Sequence[Column], rows: Iterable[Sequence[Any]], caption: str | None = None) -> Html:
    """A table with a header row; its first column names the rows."""

    def kind(column: Column) -> str | None:
        return "number" if column.is_number else "code" if column.is_code else None

    head = tag("tr", *(tag("th", c.title, scope="col", class_=kind(c)) for c in columns))
    body = [
        tag(
            "tr",
            *(
                tag("td" if n else "th", cell, class_=kind(c), scope=None if n else "row")
                for n, (c, cell) in enumerate(zip(columns, row, strict=True))
            ),
        )
        for row in rows
    ]
    title = tag("caption", caption) if caption else ""
    made = tag("table", title, tag("thead", head), tag("tbody", "\n", join(body)))
    return tag("div", made, class_="wide", tabindex="0", role="region", aria_label=caption or columns[0].title)


def facts(pairs: Mapping[str, Any], caption: str | None = None, *, is_code: bool = False) -> Html:
    """A table of names and values."""
    kind = "code" if is_code else None
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value, class_=kind)) for name, value in pairs.items()]
    title = tag("caption", caption) if caption else ""
    return tag("div", tag("table", title, tag("tbody", "\n", join(rows))), class_="wide facts")


def pairs(of: Mapping[str, Any]) -> Html:
    """Short names and values, in two columns where there is room."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in of.items()), class_="pairs")


def figure(svg: str, alt: str, caption: str) -> Html:
    """A drawing, described for those who cannot see it, with a caption for all. svg: our own, already markup."""
    plate = tag("div", Html(svg), class_="plate", role="img", aria_label=alt, tabindex="0")
    return tag("figure", plate, tag("figcaption", caption))


def badge(verdict: bool | None, words: tuple[str, str, str] = ("yes", "no", "—")) -> Html:
    """A verdict: by word and colour. None: nobody can judge.

    >>> badge(None)
    '<span class="badge none">—</span>'
    """
    word, kind = (words[2], "none") if verdict is None else (words[0], "yes") if verdict else (words[1], "no")
    return tag("span", word, class_=f"badge {kind}")


def details(summary: Any, *children: Any, is_open: bool = False) -> Html:
    """A part that can be folded away."""
    return tag("details", tag("summary", summary), *children, open="open" if is_open else None)


def page(title: str, body: Html, style: str) -> str:
    """A whole document that needs no other file."""
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light">'),
            tag("title", title),
            tag("style", Html(style)),
        ]
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
