"""Hashes of values by their content, functions and classes of users included; equal before and after saving."""

import copyreg
import functools
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from scipy import special

LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "joblib", "numpy", "rlkd", "scipy", "sklearn", "torch", "transformers"}
)
"""Code of these is told by its name: it changes with their releases, not between two runs of a user."""
_FUNCTION_TYPES = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
_PLAIN = (str, bytes, int, float, complex, np.generic, types.NoneType, types.EllipsisType)
_WRAPPERS = (staticmethod, classmethod)


class Digest(Protocol):
    """What takes bytes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


def feed(digest: Digest, value: Any) -> None:
    """Hash one value by its content, and what it holds.

    Of a user's function that is its code, its defaults, what its closure holds and the globals that it names; of a
    user's object its class likewise. Code of ``LIBRARIES`` is told by its name.

    Args:
        digest: Takes the bytes.
        value: Any value. One whose content cannot be told apart from that of its like raises.

    Raises:
        TypeError: It holds something without content that can be read, such as an open file.
    """
    _Feeding(digest).feed(value)


def is_library(value: Any) -> bool:
    """Whether a class, function or module is of ``LIBRARIES``."""
    if isinstance(value, types.FunctionType):  # a wrapper bears the module of what it wraps
        name = value.__globals__.get("__name__", "")
    elif isinstance(value, types.ModuleType):
        name = value.__name__
    else:  # a method of a built-in type (str.lower) has a class and no module
        name = getattr(getattr(value, "__objclass__", value), "__module__", None)
    return str(name).partition(".")[0] in LIBRARIES


class _Feeding:
    """One walk through a value; functions, classes and what holds itself are fed once."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._open: set[int] = set()
        self._told: list[Any] = []
        kinds: list[tuple[Any, Callable[[Any], None]]] = [
            (np.ndarray, self._array),
            (torch.Tensor, self._tensor),
            (Mapping, self._mapping),
            ((list, tuple), self._sequence),
            ((set, frozenset), lambda value: self.feed(sorted(map(repr, value)))),
            (_PLAIN, lambda value: self._text(repr(_plain(value)))),
            (functools.partial, lambda value: self._named(value, [value.func, value.args, value.keywords])),
            (functools._lru_cache_wrapper, lambda value: self._named(value, value.__wrapped__)),
            (types.CodeType, self._code),
            (types.ModuleType, lambda value: self._text(f"<module {value.__name__}>")),
            (_FUNCTION_TYPES, self._function),
            (_WRAPPERS, lambda value: self._named(value, value.__func__)),
            (property, lambda value: self._named(value, [value.fget, value.fset])),
            (type, self._class),
        ]
        self._kinds = kinds

    def feed(self, value: Any) -> None:
        if id(value) in self._open:
            self._text("<itself>")
            return
        self._open.add(id(value))
        for kind, feed_kind in self._kinds:
            if isinstance(value, kind):
                feed_kind(value)
                break
        else:
            self._object(value)
        self._open.discard(id(value))

    def _text(self, text: str) -> None:
        self._digest.update(text.encode("utf-8", "replace"))

    def _named(self, value: Any, content: Any) -> None:
        self._text(_type_name(value))
        self.feed(content)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        if value.dtype == object:
            self._sequence(list(value))
        else:
            self._digest.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())

    def _tensor(self, value: torch.Tensor) -> None:
        values = value.detach().cpu().contiguous()
        self._text(f"{tuple(values.shape)} {values.dtype}")
        self._digest.update(values.flatten().view(torch.uint8).numpy().tobytes())

    def _mapping(self, value: Mapping[Any, Any]) -> None:
        for key in sorted(value, key=repr):
            self._text(repr(_plain(key)))
            self.feed(value[key])

    def _sequence(self, value: Any) -> None:
        self._text(f"[{len(value)}]")
        for item in value:
            self.feed(item)

    def _function(self, value: Any) -> None:
        self._text(_type_name(value))
        if self._is_told(value):
            return
        owner = getattr(value, "__self__", None)
        inner = getattr(value, "__func__", value)
        if owner is not None and not isinstance(owner, types.ModuleType):  # a bound method answers by what it holds
            self.feed(owner)
        elif not isinstance(inner, types.FunctionType) and not is_library(inner):
            raise TypeError(f"{value!r} is compiled code, which cannot be read")
        if is_library(inner) and hasattr(inner, "__wrapped__"):  # scikit-learn wraps the methods of users' classes
            self.feed(inner.__wrapped__)
        if isinstance(inner, types.FunctionType) and not is_library(inner):
            self.feed([inner.__code__, inner.__defaults__, inner.__kwdefaults__, _cells(inner), vars(inner)])
            self._globals(inner)

    def _code(self, code: types.CodeType) -> None:
        """What a function does; where it stands in its file is left out."""
        signature = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.feed([code.co_code, code.co_consts, signature, names, code.co_exceptiontable])

    def _globals(self, function: types.FunctionType) -> None:
        names = set(_names(function.__code__))
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            self._text(name)
            self.feed(value)
            if isinstance(value, types.ModuleType) and not is_library(value):
                self.feed({name: vars(value)[name] for name in names & vars(value).keys()})

    def _class(self, value: type) -> None:
        self._text(_type_name(value))
        for base in value.__mro__:
            if not is_library(base) and not self._is_told(base):
                self.feed({name: part for name, part in vars(base).items() if _decides(name, part)})

    def _is_told(self, code: Any) -> bool:
        if any(code is other for other in self._told):
            return True
        self._told.append(code)
        return False

    def _object(self, value: Any) -> None:
        self._text(_type_name(value))
        if isinstance(value, np.ufunc) and not any(value is vars(home).get(value.__name__) for home in (np, special)):
            raise TypeError(f"{value!r} hides the function that it was made of")
        if hasattr(value, "__qualname__") and is_library(value):
            return
        if not is_library(type(value)):
            self.feed(type(value))
        state = _state(value)
        if state is not None:
            self.feed(state)


def _state(value: Any) -> Any:
    """What an object holds, as pickle would see it; None where that is its type alone."""
    own: Any = type(value).__getstate__
    if own is not object.__getstate__:
        state = value.__getstate__()
        # scikit-learn adds its version, which changes no answer.
        return {k: v for k, v in state.items() if k != "_sklearn_version"} if isinstance(state, dict) else state
    reduce = copyreg.dispatch_table.get(type(value))
    parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
    if isinstance(parts, str):
        raise TypeError(f"{value!r} is compiled code, which cannot be read")
    arguments, state, *rest = [list(part) if hasattr(part, "__next__") else part for part in (*parts[1:], None)]
    bare = all(argument is type(value) for argument in arguments) and all(part is None for part in rest)
    return state if bare else [arguments, state, *rest]


def _decides(name: str, part: Any) -> bool:
    """Whether a part of a class decides what its objects do: code, and plain values of its author."""
    if isinstance(part, (*_FUNCTION_TYPES, *_WRAPPERS, property)):
        return True
    return isinstance(part, (*_PLAIN, list, tuple, dict)) and not name.startswith("__")


def _cells(function: types.FunctionType) -> list[Any]:
    cells = function.__closure__ or ()
    return [_content(cell) for cell in cells]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "<empty>"


def _names(code: types.CodeType) -> Iterable[str]:
    """Names that code reads from its globals, or from modules that it finds there."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _type_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"<{getattr(named, '__module__', 'builtins')}.{named.__qualname__}>"
