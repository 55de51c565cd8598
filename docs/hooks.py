"""What the documentation says of commands and messages is generated from the code, so it cannot be out of date.

A page asks for it by a comment: `<!-- commands -->` or `<!-- messages -->`.
"""

import logging
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import typer

from koinon.cli.main import app
from koinon.protocol import messages


def on_startup(**_: object) -> None:
    """Let warnings through: `--strict` counts only what is logged, and `--quiet` would hide them from it."""
    logger = logging.getLogger("mkdocs")
    logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put generated text where a page asks for it; mkdocs calls this for every page."""
    for mark, generate in {"<!-- commands -->": commands, "<!-- messages -->": message_tables}.items():
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n".join(_command(path, command) for path, command in walk(typer.main.get_command(app), "koinon"))


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(full name, command) of everything that can be run, groups left out."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from walk(inner, f"{path} {name}")
        else:
            yield f"{path} {name}", inner


def message_tables() -> str:
    """Every message with its fields, as Markdown, by who sends it."""
    senders = {
        "Handshake": messages.Handshake,
        "From a node": messages.FromNode,
        "From the server": messages.FromServer,
    }
    lines = []
    for title, union in senders.items():
        lines += [f"### {title}", "", "| message | meaning | fields |", "|---|---|---|"]
        for message in typing.get_args(union):
            meaning = message.__doc__.split("\n\n")[0].replace("\n", " ")
            fields = ", ".join(f"`{field.name}`: {_type(field.type)}" for field in msgspec.structs.fields(message))
            lines.append(f"| `{message.__name__}` | {meaning} | {fields or 'none'} |")
        lines.append("")
    return "\n".join(lines)


def _command(path: str, command: Any) -> str:
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    options = [part for part in command.params if part.param_type_name == "option"]
    usage = " ".join([path, *(part.metavar for part in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"### {path}", "", f"    {usage}", "", command.help, ""]
    if command.params:
        lines += ["| argument or option | meaning | default |", "|---|---|---|"]
    lines += [f"| `{part.metavar}` | {part.help} | required |" for part in arguments]
    lines += [f"| `{_option(part)}` | {part.help} | {_default(part)} |" for part in options]
    return "\n".join([*lines, ""])


def _option(part: Any) -> str:
    if part.is_flag:
        return part.opts[0]
    return f"{part.opts[0]} {part.metavar or part.name.upper()}"


def _default(part: Any) -> str:
    if part.required:
        return "required"
    if part.is_flag:
        return "off"
    return "" if part.default in (None, "") else f"`{part.default}`"


def _type(kind: Any) -> str:
    """A field's type in a word or two; its bounds are in the source."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if part is type(None) else _type(part) for part in arguments)
    if origin is dict:
        return "statistics by name"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", bytes: "bytes"}
    return names.get(kind, f"`{kind.__name__}`")
