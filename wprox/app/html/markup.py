"""HTML as text that is known to be HTML: all other text is escaped when it enters."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence


class Markup(str):
    """HTML."""


def escaped(text: object) -> str:
    """Text as HTML shows it; markup as it is. Half of a pair of surrogates, which no file holds, is shown as "?"."""
    if isinstance(text, Markup):
        return str(text)
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; `kind` is its class.

    Example:
        >>> tag("p", "a < b ", tag("b", "c"), kind="note")
        '<p class="note">a &lt; b <b>c</b></p>'
    """
    named = {"class" if key == "kind" else key: value for key, value in attributes.items()}
    said = "".join(f' {key}="{escaped(value)}"' for key, value in named.items())
    return Markup(f"<{name}{said}>{''.join(map(escaped, content))}</{name}>")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], text: Collection[int] = (0,), best: int | None = None
) -> Markup:
    """A table that scrolls sideways where it is wider than the page.

    Arguments:
        heads: of the columns.
        rows: of entries.
        text: the places of the columns that hold text; others hold numbers.
        best: the row in bold.
    """
    top = tag("tr", *(tag("th", head, kind="text" if k in text else "number") for k, head in enumerate(heads)))
    body = []
    for number, row in enumerate(rows):
        cells = (tag("td", entry, kind="text" if k in text else "number") for k, entry in enumerate(row))
        body.append(tag("tr", *cells, **({"kind": "best"} if number == best else {})))
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), kind="scroll")


def panel(title: str, picture: Markup, note: str = "") -> Markup:
    """A picture with its title above it and a note below."""
    return tag("figure", tag("figcaption", title), picture, *([tag("small", note)] if note else []))


def grid(panels: Iterable[Markup], kind: str = "panels") -> Markup:
    """Pictures beside each other, as many as there is room for."""
    return tag("div", *panels, kind=kind)


def paragraph(*content: object) -> Markup:
    return tag("p", *content)


def section(title: str, name: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content, id=name)
