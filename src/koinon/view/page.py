"""The frame of every page that Koinon writes: no script, no request to anywhere, nothing but the file itself."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from koinon.core.errors import Unavailable
from koinon.durable.checkpoint import replacing
from koinon.view import figures
from koinon.view.markup import Html, element


def page(title: str, sections: Iterable[Html]) -> str:
    """An HTML document with the report's style."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} · Koinon"),
        element("style", Html(resources.files(__package__).joinpath("report.css").read_text("utf-8"))),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{element("body", element("main", *sections))}\n</html>\n'


def write_page(path: Path, text: str) -> None:
    """Write a page; whoever reads `path` meanwhile sees the old one or the new one, whole.

    Raises:
        Unavailable: if the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise Unavailable(f"cannot write the page {path}: {error.strerror}; check the folder and the disk") from error


def heading(eyebrow: str, title: str, *facts: tuple[str, str]) -> Html:
    """The head of a study's page: what it is, of what, and its settings."""
    return element(
        "header",
        element("p", eyebrow, class_="eyebrow"),
        element("h1", figures.line(title)),
        element(
            "dl", *(element("div", element("dt", name), element("dd", text)) for name, text in facts), class_="facts"
        ),
    )
