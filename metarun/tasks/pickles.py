"""Safe reading of pickled data: arrays of numbers, dictionaries, lists, strings and numbers, and nothing else.

A pickle is a program that may call any function it can name. Here it can name only the functions that numpy arrays,
numbers and Python 2 strings need, and each name resolves to code of this module, never to numpy's own. An array is
built from a shape, a plain dtype and a matching number of bytes, all checked. The stand-ins have no attributes that a
pickle could set.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from metarun.errors import UserError

LARGEST = 1 << 40
"""Largest length of an axis."""
DEEPEST = 100
"""Largest nesting depth of lists and dictionaries."""
MOST = 20_000_000
"""Largest number of values; a value referred to several times counts each time."""


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that data do not need."""


class _Type:
    """Stand-in for ``numpy.dtype``: a byte order and one of numpy's plain numeric types."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or len(code) > 3:
            raise Refused("an array of another type than numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, field names, fields, size, alignment[, flags[, metadata]])
        plain = isinstance(state, tuple) and 8 <= len(state) <= 9 and state[2:5] == (None, None, None)
        if not plain or not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
            raise Refused("an array of a compound type")
        self.order = state[1]

    def plain(self) -> np.dtype[Any]:
        try:
            found = np.dtype(self.code)
        except (TypeError, ValueError) as error:
            raise Refused(f"an array of type {self.code!r}") from error
        if found.kind not in "biuf":
            raise Refused(f"an array of type {self.code!r}; numbers alone are read")
        return found if self.order in "|=" else found.newbyteorder("<" if self.order == "<" else ">")


def _plain(given: Any) -> np.dtype[Any]:
    if not isinstance(given, _Type):
        raise Refused("an array without a type")
    return given.plain()


def _memory(shape: Any, kind: np.dtype[Any], data: Any) -> bytes | bytearray:
    """Return ``data`` as the memory of an array, if its length matches ``shape`` and ``kind``."""
    if isinstance(data, str):  # a string of Python 2
        data = data.encode("latin1")
    whole = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n <= LARGEST for n in shape)
    if not whole or not isinstance(data, bytes | bytearray):
        raise Refused("an array without shape or bytes")
    if len(data) != prod(shape) * kind.itemsize:
        raise Refused(f"an array of shape {shape} from {len(data)} bytes")
    return data


class _Array(np.ndarray):
    """An array before its state is set."""

    def __setstate__(self, state: Any) -> None:
        # (version, shape, type, whether in Fortran's order, bytes)
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array without a state")
        _, shape, kind, fortran, data = state
        found, by_columns = _plain(kind), bool(fortran is True or fortran == 1)
        super().__setstate__((1, shape, found, by_columns, bytes(_memory(shape, found, data))))  # type: ignore[arg-type]


class _Name:
    """Base class of stand-ins for a function or class of the same name; they have no state and no attributes."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise Refused(f"a call of {type(self).__name__[1:]}")

    def __setstate__(self, state: Any) -> None:
        raise Refused("a changed function")

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a changed function")

    def __reduce__(self) -> Any:
        raise Refused("a stored function")


class _ndarray(_Name):  # noqa: N801
    __slots__ = ()


class _reconstruct(_Name):  # noqa: N801
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != 3 or not isinstance(arguments[0], _ndarray):
            raise Refused("an object made as an array is")
        return np.ndarray.__new__(_Array, (0,), np.uint8)


class _dtype(_Name):  # noqa: N801
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if not 1 <= len(arguments) <= 3:
            raise Refused("a type with more than a name")
        return _Type(arguments[0])


class _scalar(_Name):  # noqa: N801
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != 2:
            raise Refused("a number without its bytes")
        kind = _plain(arguments[0])
        return np.frombuffer(_memory((), kind, arguments[1]), kind)[0].item()


class _frombuffer(_Name):  # noqa: N801
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != 4 or arguments[3] not in ("C", "F"):
            raise Refused("an array without shape or bytes")
        data, kind, shape, order = arguments
        found = _plain(kind)
        return np.frombuffer(_memory(shape, found, data), found).reshape(shape, order=order)


class _encode(_Name):  # noqa: N801
    """Stand-in for ``_codecs.encode(text, "latin1")``, by which old protocols store bytes."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
            raise Refused("a text in another encoding")
        return arguments[0].encode("latin1")


class _bytes(_Name):  # noqa: N801
    """Stand-in for ``bytes()``, by which old protocols store empty bytes."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if arguments:
            raise Refused("bytes made of something")
        return b""


ADMITTED: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _ndarray(),
    ("numpy", "dtype"): _dtype(),
    ("_codecs", "encode"): _encode(),
    ("__builtin__", "bytes"): _bytes(),
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct()),
            ("multiarray", "scalar", _scalar()),
            ("numeric", "_frombuffer", _frombuffer()),
        )
    },
}


# The reader in Python rather than the one in C: the latter allocates memory for the largest memo index that a pickle
# names, which may be 2^32.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}"[:100]) from None

    # Keys are restricted to names and numbers because hashing deeply nested tuples takes exponential time.

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def load_setitem(self) -> None:
        items = [self.stack.pop(), self.stack.pop()]
        self._fill(items[::-1])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, items: list[Any]) -> None:
        filled = self.stack[-1]
        if type(filled) is not dict or not all(isinstance(key, str | bytes | int | float | None) for key in items[::2]):
            raise Refused("a dictionary with keys that are neither names nor numbers")
        filled.update(zip(items[::2], items[1::2], strict=True))

    def refuse(self) -> None:
        raise Refused("a set or another object that data do not need")

    dispatch |= {
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        **dict.fromkeys(
            pickle.EMPTY_SET + pickle.ADDITEMS + pickle.FROZENSET + pickle.NEWOBJ + pickle.NEWOBJ_EX + pickle.INST
            + pickle.OBJ + pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.PERSID + pickle.BINPERSID,
            refuse,
        ),
    }  # fmt: skip


def _measured(value: Any) -> Any:
    """Return ``value``; refuse it if it is too deep, contains itself, or expands to too many values."""
    sizes: dict[int, int] = {}
    open_now: dict[int, None] = {}
    waiting: list[tuple[Any, bool]] = [(value, False)]
    while waiting:
        each, done = waiting.pop()
        if not isinstance(each, dict | list | tuple) or id(each) in sizes:
            continue
        inner = list(each.values()) if isinstance(each, dict) else each
        if done:
            del open_now[id(each)]
            sizes[id(each)] = 1 + sum(sizes.get(id(one), 1) for one in inner)
            if sizes[id(each)] > MOST:
                raise Refused(f"more than {MOST:,} values, counting repeated references")
        elif id(each) in open_now or len(open_now) > DEEPEST:
            raise Refused("a list that contains itself, or lists nested too deeply")
        else:
            open_now[id(each)] = None
            waiting.append((each, True))
            waiting += [(one, False) for one in inner if isinstance(one, dict | list | tuple)]
    return value


class Readable(Protocol):
    """A file that a pickle is read from."""

    def read(self, size: int = ..., /) -> bytes: ...

    def readline(self, size: int = ..., /) -> bytes: ...


def read_pickle(file: Readable, name: str | Path) -> Any:
    """Read the data in ``file``. Strings of Python 2 become ``str``; arrays may be read-only.

    Raises:
        UserError: The pickle is damaged or asks for anything but data. No code of it has been run.
    """
    try:
        return _measured(_Reader(file, encoding="latin1").load())
    except Refused as error:
        raise UserError(f"{name}: refused, because the pickle asks for more than data: {error}") from error
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError),
        *(ImportError, MemoryError, OverflowError, RecursionError, OSError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: not a readable pickle ({type(error).__name__}: {reason})") from error


def load_pickle(path: Path) -> Any:
    """Read a pickle file with :func:`read_pickle`."""
    try:
        with path.open("rb") as file:
            return read_pickle(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
