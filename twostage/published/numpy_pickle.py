"""Arrays out of a pickle without running it: Detectron2 keeps ImageNet weights in such files.

A pickle is a program that may call anything it can name. Here it can name a dozen things, and each of these
names stands for a maker of our own that only collects numbers; NumPy's and Python's functions of those names
are never handed out. Files of Python 2 and 3, of NumPy 1 and 2 are read.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.published.errors import PublishedError

KINDS = "biuf"
"""Kinds of numbers an array may hold: bool, signed, unsigned, floating point."""


class _Refused(pickle.UnpicklingError):
    """The file asks for what is not admitted."""


class _NumberFormat:
    """Stands for a numpy.dtype while the file is read."""

    __slots__ = ("value",)

    def __init__(self, *args: Any) -> None:
        code = _text(args[0]) if args else ""
        if len(code) < 2 or code[0] not in KINDS or not code[1:].isdecimal() or int(code[1:]) > 8:
            raise _Refused(f"an array of {code!r}, which are no plain numbers")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("an array with fields")
        self.value = np.dtype(order + self.value.str[1:])


class _Array:
    """Stands for a numpy.ndarray while the file is read."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, number_format, by_column, raw = state[-4:]
        if not isinstance(number_format, _NumberFormat) or not isinstance(shape, tuple):
            raise _Refused("an array whose shape or number format is none")
        self.value = _array(_bytes(raw), number_format, shape, "F" if by_column else "C")


class _Maker:
    """What a name in the file stands for: it can be called, and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a change of what a name means")


def _array(raw: bytes, number_format: _NumberFormat, shape: tuple[int, ...], order: str) -> np.ndarray:
    dtype = number_format.value
    if any(type(side) is not int or side < 0 for side in shape) or len(shape) > 8:
        raise _Refused(f"an array of shape {shape!r}")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise _Refused(f"an array of shape {shape} with {len(raw)} bytes of {dtype}")
    flat = np.frombuffer(raw, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _text(value: Any) -> str:
    if isinstance(value, (bytes, str)):
        return value.decode("latin1") if isinstance(value, bytes) else value
    raise _Refused(f"{type(value).__name__} where text belongs")


def _bytes(value: Any) -> bytes:
    """The bytes of an array; Python 2 wrote them as text, and a list means an array of objects."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("latin1")
    raise _Refused("an array of objects")


def _reconstruct(*_: Any) -> _Array:
    return _Array()  # class, shape (0,) and type code are placeholders; the state has what counts


def _scalar(number_format: Any, raw: Any) -> Any:
    if not isinstance(number_format, _NumberFormat):
        raise _Refused("a number without a number format")
    return _array(_bytes(raw), number_format, (), "C").item()


def _from_buffer(raw: Any, number_format: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    made = _Array()
    made.__setstate__((shape, number_format, _text(order) == "F", raw))
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if _text(encoding) not in ("latin1", "latin-1", "bytes"):
        raise _Refused(f"text in {encoding!r}")
    return _text(text).encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """How old protocols write the bytes of an empty array."""
    if given:
        raise _Refused("a call of bytes")
    return b""


def _no_class(*_: Any) -> None:
    raise _Refused("a call of numpy.ndarray")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _no_class,
    ("numpy", "dtype"): _NumberFormat,
    ("_codecs", "encode"): _encode,
    **{(builtins, "bytes"): _no_bytes for builtins in ("__builtin__", "builtins")},
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Hands out makers of our own for the admitted names, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _Maker(_ADMITTED[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object kept outside the file")


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The content of a pickle {"model": {name: array}, ...}, arrays as tensors: like a checkpoint's.

    Only names, plain values and arrays of numbers are admitted; the file cannot run code.

    Raises:
        PublishedError: missing, damaged, of another form, or it asks for anything else, which is named.
    """
    try:
        with Path(path).open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise PublishedError(f"There is no weights file {path}.") from error
    except _Refused as error:
        raise PublishedError(
            f"{path} is refused, because reading it would need {error}. Only plain numbers in arrays of "
            "NumPy are read from pickles; anything else could run code."
        ) from error
    except Exception as error:  # a damaged pickle can end in almost any error
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise PublishedError(f"{path} is damaged or no pickle of weights: {first}") from error
    model = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise PublishedError(f"{path}: expected a dictionary of arrays below 'model', as Detectron2 writes.")
    return {"model": {str(name): _tensor(value, str(name), path) for name, value in model.items()}}


def _tensor(value: Any, name: str, path: str | Path) -> Tensor:
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value)
    if not isinstance(value, _Array) or value.value is None:
        raise PublishedError(f"{path}: {name} is no array but {type(value).__name__}.")
    native = value.value.astype(value.value.dtype.newbyteorder("="))  # a copy: tensors may be written to
    return torch.from_numpy(np.ascontiguousarray(native)).reshape(native.shape)
