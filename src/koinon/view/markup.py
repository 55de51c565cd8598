"""HTML and SVG as nested calls. Text is escaped because nothing but `element` makes markup."""

import html
from collections.abc import Iterable, Sequence

DENSE_ROWS = 30
"""A table with more rows is set closer."""

_VOID = frozenset({"meta"})


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float) -> Html:
    """`<name attributes>children</name>`; what is not `Html` is escaped.

    Args:
        name: The element's name.
        children: Markup, or text.
        attributes: `class_` stands for `class`, `aria_label` for `aria-label`.
    """
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(text))}"' for key, text in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other; what is not `Html` is escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Iterable[Sequence[str]] = (),
    kind: str = "numbers",
) -> Html:
    """A table whose first column names the rows.

    Args:
        caption: What the table shows, above it.
        columns: Headings, that of the first column included.
        rows: Cells, row by row.
        foot: Rows that sum up the others.
        kind: Class of the table: `"numbers"` sets cells flush right, `"prose"` flush left.
    """
    body = [_row(cells) for cells in rows]
    head = element("thead", element("tr", *(element("th", column, scope="col") for column in columns)))
    feet = [_row(cells) for cells in foot]
    parts = [element("caption", caption), head, element("tbody", *body), *([element("tfoot", *feet)] if feet else [])]
    dense = " dense" if len(body) > DENSE_ROWS else ""
    return element("div", element("table", *parts, class_=kind + dense), class_="wide")


def _row(cells: Sequence[str]) -> Html:
    first, *others = cells
    return element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
