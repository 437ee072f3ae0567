"""A machine for pickles with bounds: on its operations, on what it copies, on what it hashes.

A few bytes of a pickle can ask for any amount of memory or time: a bytearray of a length that is only claimed, one long
list that is copied again and again, nested tuples that share their parts, whose hash takes twice as long with each
level. It is written in Python, as the standard library's own in C can be made to allocate without bound by its memo.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar

MAX_OPERATIONS = 12_000_000
"""Of one pickle; torch writes 30 for each tensor."""

MAX_ARGUMENTS = 64
"""Of a call; torch makes none with as many."""

_Operation = Callable[[Any], None]
_BASE: dict[int, _Operation] = pickle._Unpickler.dispatch


class BoundedUnpickler(pickle._Unpickler):
    """Runs a pickle that names only what a subclass finds; dicts keep entries whose keys are strings, sets nothing.

    Raises:
        pickle.UnpicklingError: a bound is passed.
    """

    dispatch: ClassVar[dict[int, _Operation]] = dict(_BASE)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._meter = _Metered(type(self).dispatch)
        self.dispatch = self._meter  # type: ignore[misc]  # `load` looks it up on the instance

    def load_reduce(self) -> None:
        self._require_arguments(self.stack[-1])
        _BASE[pickle.REDUCE[0]](self)

    def load_newobj(self) -> None:
        self._require_arguments(self.stack[-1])
        _BASE[pickle.NEWOBJ[0]](self)

    def load_binpersid(self) -> None:
        self._require_arguments(self.stack[-1])
        _BASE[pickle.BINPERSID[0]](self)

    def load_dict(self) -> None:
        entries: dict[Any, Any] = {}
        _set(entries, self.pop_mark())
        self.append(entries)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set(self.stack[-1], items)

    def load_empty_set(self) -> None:
        self.append(None)

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(None)

    def load_bytearray8(self) -> None:
        raise pickle.UnpicklingError("it holds a bytearray, which torch never writes")

    def _require_arguments(self, arguments: object) -> None:
        """Refuse arguments that are too many, and count what a call may copy of them as operations."""
        if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"it makes a call with other than a tuple of up to {MAX_ARGUMENTS} arguments")
        self._meter.count(sum(len(one) for one in arguments if isinstance(one, (list, tuple, dict))))

    for _code, _operation in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.BINPERSID, load_binpersid),
        (pickle.DICT, load_dict),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.EMPTY_SET, load_empty_set),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
        (pickle.BYTEARRAY8, load_bytearray8),
    ):
        dispatch[_code[0]] = _operation
    del _code, _operation


class _Metered(dict[int, _Operation]):
    """The operations by their codes; each look-up is one that is run."""

    def __init__(self, operations: dict[int, _Operation]) -> None:
        super().__init__(operations)
        self._left = MAX_OPERATIONS

    def __getitem__(self, code: int) -> _Operation:
        self._left -= 1
        if self._left < 0:
            raise pickle.UnpicklingError(f"it takes more than {MAX_OPERATIONS} operations")
        return dict.__getitem__(self, code)

    def count(self, operations: int) -> None:
        self._left -= operations


def _set(target: Any, items: list[Any]) -> None:
    """Put keys and values, in turn, into what a pickle fills; dicts take no key but strings, which hash in no time."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str) or not isinstance(target, dict):
            target[key] = value
