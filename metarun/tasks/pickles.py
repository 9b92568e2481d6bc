"""Pickled data read without running anything: arrays of numbers, dictionaries, lists, strings, numbers, nothing else.

A pickle is a program: by its own choice it calls any function that it can name. Here the only names it gets are those
that numpy's arrays, numbers and Python 2's strings need, and each stands for code of this module, never for numpy's
own: arrays are put together from a shape, a plain type and as many bytes as these take, all three checked. What stands
for a name has no attribute that a pickle could set.
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
"""Length of an axis."""
DEEPEST = 100
"""Levels of lists and dictionaries in each other."""
MOST = 20_000_000
"""Values, those counted again to which a pickle refers again."""


class Refused(pickle.UnpicklingError):
    """What the pickle asks for is nothing that data consist of."""


class _Type:
    """Stands for ``numpy.dtype``: a byte order and one of numpy's plain numeric types."""

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
    """What an array of ``shape`` is made of: ``data``, if that is as long as it must be."""
    if isinstance(data, str):  # a string of Python 2
        data = data.encode("latin1")
    whole = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n <= LARGEST for n in shape)
    if not whole or not isinstance(data, bytes | bytearray):
        raise Refused("an array without shape or bytes")
    if len(data) != prod(shape) * kind.itemsize:
        raise Refused(f"an array of shape {shape} from {len(data)} bytes")
    return data


class _Array(np.ndarray):
    """What an array is until its state arrives."""

    def __setstate__(self, state: Any) -> None:
        # (version, shape, type, whether in Fortran's order, bytes)
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array without a state")
        _, shape, kind, fortran, data = state
        found, by_columns = _plain(kind), bool(fortran is True or fortran == 1)
        super().__setstate__((1, shape, found, by_columns, bytes(_memory(shape, found, data))))  # type: ignore[arg-type]


class _Name:
    """Stands for a function or class of the same name; has no state and no attributes."""

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
    """``_codecs.encode(text, "latin1")`` is how old protocols store bytes."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
            raise Refused("a text in another encoding")
        return arguments[0].encode("latin1")


class _bytes(_Name):  # noqa: N801
    """``bytes()`` is how old protocols store none."""

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


# Python's own reader rather than the one in C: that one's memory grows with the largest number that a pickle gives
# to an object, be it four thousand millions.
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

    # Keys are names and numbers: to hash a tuple of tuples of tuples may take for ever.

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
        raise Refused("a set, or another thing that data have no need of")

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
    """``value``, refused if it is too deep, contains itself, or unfolds to far more than there is of it."""
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
                raise Refused(f"more than {MOST:,} values, many of them the same ones again and again")
        elif id(each) in open_now or len(open_now) > DEEPEST:
            raise Refused("a list that contains itself, or lists too deep in each other")
        else:
            open_now[id(each)] = None
            waiting.append((each, True))
            waiting += [(one, False) for one in inner if isinstance(one, dict | list | tuple)]
    return value


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, size: int = ..., /) -> bytes: ...

    def readline(self, size: int = ..., /) -> bytes: ...


def read_pickle(file: Readable, name: str | Path) -> Any:
    """The data in ``file``, strings of Python 2 as ``str``; arrays may be read-only.

    Raises :class:`~metarun.errors.UserError` for a damaged pickle, and for one that asks for anything but data;
    nothing of it has then been run.
    """
    try:
        return _measured(_Reader(file, encoding="latin1").load())
    except Refused as error:
        raise UserError(f"{name}: is not read, since it asks for more than data: {error}") from error
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError),
        *(ImportError, MemoryError, OverflowError, RecursionError, OSError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: not a readable pickle ({type(error).__name__}: {reason})") from error


def load_pickle(path: Path) -> Any:
    """:func:`read_pickle` of a file."""
    try:
        with path.open("rb") as file:
            return read_pickle(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
