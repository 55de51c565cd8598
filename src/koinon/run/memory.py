"""Memory that passes between processes: shared by a fork, growing as it is written, or one array that is copied."""

import mmap
import os
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import torch

_ALIGNMENT = 64

Bytes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where in a memory a tensor, or bytes, are.

    Attributes:
        start: First byte.
        size: Bytes.
        dtype: Name of the elements' type in torch; empty for plain bytes.
        shape: Of the tensor.
    """

    start: int
    size: int
    dtype: str = ""
    shape: tuple[int, ...] = ()


class Memory:
    """Memory without a name, gone with the last process that holds it. One process writes at a time.

    Args:
        size: Bytes to begin with; what was never written takes no memory.
    """

    def __init__(self, size: int = 0) -> None:
        self._file = os.memfd_create("koinon")
        self._map: mmap.mmap | None = None
        self._rooms: list[tuple[int, int, int]] = []  # (address, first byte here, bytes)
        if size:
            os.ftruncate(self._file, size)

    def __del__(self) -> None:
        os.close(self._file)

    def write(self, items: Sequence[torch.Tensor | bytes | memoryview]) -> list[Place]:
        """Write all of these over what was here; where each of them is now."""
        raw = [_raw(item) for item in items]
        here = [self._found(piece) for piece in raw]
        places, moved = [], []
        end = 0 if all(start is None for start in here) else self._end
        for item, piece, start in zip(items, raw, here, strict=True):
            places.append(Place(end if start is None else start, len(piece), *_kind(item)))
            if start is None:
                moved.append((places[-1], piece))
                end += -len(piece) % _ALIGNMENT + len(piece)
        view = self._view(end)
        for place, piece in moved:
            view[place.start : place.start + place.size] = piece
        self._rooms = []
        return places

    def room(self, rows: int, columns: int) -> torch.Tensor:
        """Memory for a float32 tensor `[rows, columns]`, over what was here; the next `write` leaves its parts in place."""
        start, size = self._end, 4 * rows * columns
        view = self._view(start + size)[start : start + size]
        self._rooms.append((view.ctypes.data, start, size))
        return torch.from_numpy(view).view(torch.float32).view(rows, columns)

    @property
    def _end(self) -> int:
        """First byte after all rooms."""
        return max((start + size + -size % _ALIGNMENT for _, start, size in self._rooms), default=0)

    def _found(self, piece: Bytes) -> int | None:
        """Where in a room a piece is, if it is in one."""
        address = piece.ctypes.data if self._rooms and len(piece) else 0
        return next((start + address - at for at, start, size in self._rooms if at <= address < at + size), None)

    def tensor(self, place: Place) -> torch.Tensor:
        """The tensor there: a view, valid until the next `write` of any process."""
        return _tensor(self._array(place), place)

    def bytes(self, place: Place) -> memoryview:
        """The bytes there: a view, valid until the next `write` of any process."""
        return self._array(place).data

    def _array(self, place: Place) -> Bytes:
        return self._view(place.start + place.size)[place.start : place.start + place.size]

    def _view(self, size: int) -> Bytes:
        """All of it, at least `size` bytes long. An earlier map lives as long as a view of it does."""
        if self._map is None or len(self._map) < size:
            have = os.fstat(self._file).st_size
            if have < max(size, 1):
                os.ftruncate(self._file, max(size, 1))
            self._map = mmap.mmap(self._file, max(have, size, 1))
        return np.frombuffer(self._map, dtype=np.uint8)


class Parcel:
    """One array that goes to another process by a copy, and is only read there.

    Args:
        array: What came, uint8; empty before the first `write`.
    """

    def __init__(self, array: Bytes | None = None) -> None:
        self.array = np.empty(0, dtype=np.uint8) if array is None else array

    def write(self, items: Sequence[torch.Tensor | bytes | memoryview]) -> list[Place]:
        """Make the array of all of these; where each of them is in it."""
        raw, places, end = [_raw(item) for item in items], [], 0
        for item, piece in zip(items, raw, strict=True):
            places.append(Place(end, len(piece), *_kind(item)))
            end += len(piece) + -len(piece) % _ALIGNMENT
        self.array = np.empty(end, dtype=np.uint8)
        for place, piece in zip(places, raw, strict=True):
            self.array[place.start : place.start + place.size] = piece
        return places

    def room(self, rows: int, columns: int) -> torch.Tensor:
        """Memory for a float32 tensor `[rows, columns]`, outside of the array."""
        return torch.empty(rows, columns)

    def tensor(self, place: Place) -> torch.Tensor:
        """The tensor there: a view, to be read."""
        return _tensor(self._array(place), place)

    def bytes(self, place: Place) -> memoryview:
        """The bytes there: a view."""
        return self._array(place).data

    def _array(self, place: Place) -> Bytes:
        return self.array[place.start : place.start + place.size]


def read_only(array: "np.ndarray[tuple[int], np.dtype[np.generic]]") -> torch.Tensor:
    """A tensor over an array that nobody may write to, of which torch would warn; whoever asks only reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _tensor(array: Bytes, place: Place) -> torch.Tensor:
    dtype = getattr(torch, place.dtype)
    if not place.size:
        return torch.empty(place.shape, dtype=dtype)
    return read_only(array).view(dtype).reshape(place.shape)


def _kind(item: torch.Tensor | bytes | memoryview) -> tuple[str, tuple[int, ...]]:
    return (str(item.dtype).removeprefix("torch."), tuple(item.shape)) if isinstance(item, torch.Tensor) else ("", ())


def _raw(item: torch.Tensor | bytes | memoryview) -> Bytes:
    if not isinstance(item, torch.Tensor):
        return np.frombuffer(item, dtype=np.uint8)
    raw: Bytes = item.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw
