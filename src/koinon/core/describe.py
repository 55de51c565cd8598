"""What an object is, as text that is equal on every machine: the basis of a definition's digest.

Values are described by their values, objects by the arguments they were made with, and functions and classes by
name; those that do not come with Koinon, PyTorch or Python also by their source and by what that source refers to
(functions, classes and plain values of its module), since that is what differs between two sites that believe
they run the same thing.
"""

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType

import torch
from torch import nn

_PUBLISHED = frozenset({"builtins", "collections", "functools", "koinon", "math", "numpy", "sklearn", "torch"})
_PLAIN = (type(None), bool, int, float, str, bytes)


def describe(thing: object) -> str:
    """A canonical description of a value, object, function or class.

    An object with a method `described()` is described by what that returns.
    """
    return _Description().of(thing)


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes, in hex."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


class _Description:
    """One description; functions and classes that it has described before are named only."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def of(self, thing: object) -> str:
        match thing:
            case None | bool() | int() | float() | str() | bytes() | torch.dtype():
                return repr(thing)
            case torch.Tensor():
                return f"tensor({thing.dtype}, {list(thing.shape)}, {tensor_digest(thing)})"
            case nn.Module():
                return self._module(thing)
            case functools.partial():
                return f"partial({self.of(thing.func)}, {self.of(thing.args)}, {self.of(thing.keywords)})"
            case list() | tuple():
                return f"[{', '.join(self.of(item) for item in thing)}]"
            case set() | frozenset():
                return f"{{{', '.join(sorted(self.of(item) for item in thing))}}}"
            case Mapping():
                return f"{{{', '.join(sorted(f'{self.of(key)}: {self.of(thing[key])}' for key in thing))}}}"
            case type() | FunctionType():
                return self._source(thing)
            case ModuleType():
                return thing.__name__
        if callable(thing) and hasattr(thing, "__qualname__"):  # a function written in C
            return f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"
        return self._object(thing)

    def _source(self, thing: type | FunctionType) -> str:
        if thing.__module__.partition(".")[0] in _PUBLISHED:
            return f"{thing.__module__}.{thing.__qualname__}"
        # An app is a file here and a module there: where it was loaded from is not part of what it is.
        own = thing if isinstance(thing, type) else thing.__code__
        text = thing.__qualname__
        if id(own) not in self._told:
            self._told.add(id(own))
            text += f"[{_text(thing)}]{self._referred(thing)}"
        if isinstance(thing, FunctionType):
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            text += f"({self.of(thing.__defaults__)}, {self.of(thing.__kwdefaults__)}, {self.of(cells)})"
        return text

    def _referred(self, thing: type | FunctionType) -> str:
        """What the source's global names stand for, as far as they are code or plain values."""
        functions = [thing] if isinstance(thing, FunctionType) else _methods(thing)
        found: dict[str, object] = {}
        for function in functions:
            for name in _names(function.__code__):
                value = function.__globals__.get(name)
                if name in function.__globals__ and isinstance(value, (*_PLAIN, type, FunctionType)):
                    found[name] = value
        bases = thing.__bases__ if isinstance(thing, type) else ()
        return self.of({**found, **{base.__qualname__: base for base in bases}})

    def _module(self, module: nn.Module) -> str:
        """Its structure, the settings of each part, and every tensor that does not travel in the vector."""
        parts = {name: (type(part), _arguments(part, _PLAIN)) for name, part in module.named_modules()}
        named = [*module.named_parameters(), *module.named_buffers()]
        tensors = {name: tensor for name, tensor in named if not tensor.requires_grad}
        return f"module({module!r}, {self.of(parts)}, {self.of(tensors)})"

    def _object(self, thing: object) -> str:
        described = getattr(thing, "described", None)
        inner = described() if callable(described) else _arguments(thing, object)
        return f"{self._source(type(thing))}({self.of(inner)})"


def _arguments(thing: object, kinds: type | tuple[type, ...]) -> dict[str, object]:
    """What it was made with, where its attributes still tell."""
    names = inspect.signature(type(thing).__init__).parameters
    values = {name: getattr(thing, name) for name in names if name != "self" and hasattr(thing, name)}
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _text(thing: type | FunctionType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(thing)).strip()
    except (OSError, TypeError):  # typed at a prompt
        functions = [thing] if isinstance(thing, FunctionType) else _methods(thing)
        codes = [function.__code__ for function in functions]
        return repr([(code.co_code, code.co_names, [str(constant) for constant in code.co_consts]) for code in codes])


def _methods(kind: type) -> list[FunctionType]:
    return [value for value in vars(kind).values() if isinstance(value, FunctionType)]


def _names(code: CodeType) -> Iterator[str]:
    """Every name that code, and code within it, looks up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
