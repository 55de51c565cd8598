"""Settings that a person writes in a TOML file."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from koinon.core.errors import AdmissionError, Unavailable

_S = TypeVar("_S", bound=msgspec.Struct)


def read(path: Path, kind: type[_S], called: str) -> _S:
    """A struct of settings from a file.

    Args:
        path: The file.
        kind: What its settings are, by name and type.
        called: What it is, in messages.

    Raises:
        Unavailable: if the file cannot be read.
        AdmissionError: if it is not TOML, lacks a setting, or has an unknown one or a value that the setting cannot take.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unavailable(
            f"cannot read the {called} {path}: {error.strerror}; name a file that you can read"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AdmissionError(f"{path} is not valid TOML: {error}") from error
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    checked = {name: _checked(path, known, name, value) for name, value in settings.items()}
    lacking = [name for name, field in known.items() if field.required and name not in checked]
    if lacking:
        raise AdmissionError(f"{path}: {lacking[0]} is missing; a {called} needs it")
    return kind(**checked)


def _checked(path: Path, known: dict[str, msgspec.structs.FieldInfo], name: str, value: object) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise AdmissionError(f"{path}: there is no setting {name}; {meant}Settings are {', '.join(known)}")
    try:
        return msgspec.convert(value, known[name].type)
    except msgspec.ValidationError as error:
        raise AdmissionError(f"{path}: {name} = {value!r}: {str(error).lower()}") from error
