"""What an object is, as text that is equal on every machine: the basis of a definition's digest.

Values are described by their values, objects by the arguments they were made with, and functions and classes by
name; those that do not come with Koinon, PyTorch or Python by their source as well, since that is what differs
between two sites that believe they run the same thing.
"""

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Mapping
from types import FunctionType, ModuleType

import torch
from torch import nn

_PUBLISHED = frozenset({"builtins", "collections", "functools", "koinon", "math", "numpy", "sklearn", "torch"})


def describe(thing: object) -> str:
    """A canonical description of a value, object, function or class."""
    match thing:
        case None | bool() | int() | float() | str() | bytes() | torch.dtype():
            return repr(thing)
        case torch.Tensor():
            return f"tensor({thing.dtype}, {list(thing.shape)}, {tensor_digest(thing)})"
        case nn.Module():
            return _module(thing)
        case functools.partial():
            return f"partial({describe(thing.func)}, {describe(thing.args)}, {describe(thing.keywords)})"
        case list() | tuple():
            return f"[{', '.join(describe(item) for item in thing)}]"
        case set() | frozenset():
            return f"{{{', '.join(sorted(describe(item) for item in thing))}}}"
        case Mapping():
            return f"{{{', '.join(sorted(f'{describe(key)}: {describe(value)}' for key, value in thing.items()))}}}"
        case type():
            return _named(thing)
        case FunctionType():
            return _function(thing)
        case ModuleType():
            return thing.__name__
    if callable(thing) and hasattr(thing, "__qualname__"):  # a function written in C
        return f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"
    return _made(thing)


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes, in hex."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


def _named(thing: type | FunctionType) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if thing.__module__.partition(".")[0] in _PUBLISHED:
        return name
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(thing, "__code__", None)
        source = f"{code.co_code.hex()} {code.co_consts} {code.co_names}" if code is not None else ""
    # An app is a file here and a module there: where it was loaded from is not part of what it is.
    return f"{thing.__qualname__}[{textwrap.dedent(source).strip()}]"


def _function(function: FunctionType) -> str:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return f"{_named(function)}({describe(function.__defaults__)}, {describe(cells)})"


def _module(module: nn.Module) -> str:
    classes = {describe(type(part)) for part in module.modules()}
    named = [*module.named_parameters(), *module.named_buffers()]
    local = {name: tensor for name, tensor in named if not (tensor.requires_grad or _is_float_buffer(tensor))}
    return f"module({module!r}, {describe(classes)}, {describe(local)})"


def _is_float_buffer(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not isinstance(tensor, nn.Parameter)


def _made(thing: object) -> str:
    arguments = {
        name: getattr(thing, name)
        for name in inspect.signature(type(thing).__init__).parameters
        if name != "self" and hasattr(thing, name)
    }
    return f"{_named(type(thing))}({describe(arguments)})"
