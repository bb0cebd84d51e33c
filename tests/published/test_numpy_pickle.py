"""Arrays out of pickles: every form that NumPy and Python have written them in, and no program."""

from __future__ import annotations

import datetime
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twostage.published.errors import PublishedError
from twostage.published.numpy_pickle import read_arrays

ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "float64": np.linspace(-1, 1, 5),
    "half": np.array([0.5, -2.0], dtype=np.float16),
    "int64": np.arange(-3, 3),
    "uint8": np.arange(256, dtype=np.uint8).reshape(16, 16),
    "bool": np.array([True, False]),
    "scalar": np.array(3.5, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f4"),
    "strided": np.arange(20, dtype=np.float32)[::3],
}


def written(tmp_path: Path, content: Any, protocol: int = 2) -> Path:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def check(path: Path) -> None:
    got = read_arrays(path)["model"]
    assert got.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        expected = torch.tensor(array.tolist(), dtype=got[name].dtype)
        assert torch.equal(got[name], expected.reshape(array.shape)), name
        assert str(got[name].dtype).removeprefix("torch.") == array.dtype.newbyteorder("=").name


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_all_protocols(tmp_path: Path, protocol: int) -> None:
    check(written(tmp_path, {"model": ARRAYS, "__author__": "somebody", "flag": True}, protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core.", "numpy._core."])
def test_both_generations_of_numpy(tmp_path: Path, protocol: int, core: str) -> None:
    """NumPy 2 renamed the package that a pickle names; only that name differs in the file."""
    path = written(tmp_path, {"model": ARRAYS}, protocol)
    data = path.read_bytes()
    for other in ("numpy._core.", "numpy.core."):
        for module in ("multiarray", "numeric"):
            old, new = (other + module).encode(), (core + module).encode()
            data = data.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
            data = data.replace(b"c" + old + b"\n", b"c" + new + b"\n")
    path.write_bytes(_without_frames(data))
    check(path)


def _without_frames(data: bytes) -> bytes:
    """Protocol 4 counts bytes in frames, which a longer name makes wrong; they are optional."""
    while (at := data.find(b"\x95")) == 2:
        data = data[:at] + data[at + 9 :]
    return data


def python2_text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def test_a_file_of_python_2(tmp_path: Path) -> None:
    """As written there: names and bytes are both its plain strings (opcodes by hand, protocol 2)."""
    raw = struct.pack("<3f", 1.5, -2.0, 1e-3)
    data = b"T" + struct.pack("<i", len(raw)) + raw
    dtype = b"cnumpy\ndtype\n" + python2_text("f4") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + python2_text("<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_text("b") + b"\x87R"
    array += b"(K\x01K\x03\x85" + dtype + b"\x89" + data + b"tb"
    model = b"}" + python2_text("stem.conv1.weight") + array + b"s"
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}" + python2_text("model") + model + b"s.")
    got = read_arrays(path)["model"]["stem.conv1.weight"]
    assert torch.equal(got, torch.tensor([1.5, -2.0, 1e-3]))


def test_scalars_ordered_dictionaries_and_bare_dictionaries(tmp_path: Path) -> None:
    model = OrderedDict(a=np.float32(2.5), b=np.int64(7), c=3.0, d=np.bool_(True))
    for content in ({"model": model}, dict(model)):
        got = read_arrays(written(tmp_path, content))["model"]
        assert {name: tensor.item() for name, tensor in got.items()} == {
            "a": 2.5,
            "b": 7,
            "c": 3.0,
            "d": True,
        }


def test_tensors_may_be_written_to(tmp_path: Path) -> None:
    got = read_arrays(written(tmp_path, {"model": {"a": np.ones(3, np.float32)}}))["model"]["a"]
    got += 1
    assert got.tolist() == [2.0, 2.0, 2.0]


class Call:
    """A hostile object: reading it would call `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("echo hello > {}",), f"{os.system.__module__}.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (exec, ("open('{}', 'w')",), "exec"),
        (open, ("{}", "w"), "open"),
        (getattr, ("{}", "upper"), "getattr"),
        (__import__, ("os",), "__import__"),
        (np.save, ("{}", 1), "numpy"),
        (np.load, ("{}",), "numpy"),
        (np.fromfile, ("{}",), "numpy"),
        (torch.load, ("{}",), "torch"),
        (pickle.loads, (b"N.",), "loads"),
        (datetime.date, (2020, 1, 1), "datetime.date"),
    ],
)
def test_programs_are_refused_by_name(
    tmp_path: Path, protocol: int, function: Any, arguments: tuple[Any, ...], named: str
) -> None:
    mark = tmp_path / "mark"
    filled = tuple(a.format(mark) if isinstance(a, str) else a for a in arguments)
    for content in ({"model": {"a": Call(function, *filled)}}, Call(function, *filled)):
        path = written(tmp_path, content, protocol)
        with pytest.raises(PublishedError, match="is refused, because reading it would need") as caught:
            read_arrays(path)
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([1, "a", None], dtype=object), "'O8', which are no plain numbers"),
        (np.array(["a", "bc"]), "'U2', which are no plain numbers"),
        (np.zeros(2, dtype=[("x", "f4")]), "no plain numbers"),
        (np.zeros(2, dtype=complex), "'c16', which are no plain numbers"),
        (np.zeros(2, dtype="M8[s]"), "no plain numbers"),
    ],
)
def test_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    with pytest.raises(PublishedError, match="would need an array of") as caught:
        read_arrays(written(tmp_path, {"model": {"a": array}}))
    assert words in str(caught.value)


FLOAT = b"cnumpy\ndtype\nU\x02f4\x85R"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NEW_ARRAY = RECONSTRUCT + b")R"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (RECONSTRUCT + b"}U\x0c__defaults__)sb.", "a change of what a name means"),
        (RECONSTRUCT + b"N}U\x0c__defaults__)s\x86b.", "a change of what a name means"),
        (b"ccollections\nOrderedDict\n}U\x01xNsb.", "a change of what a name means"),
        (b"cnumpy\nndarray\n)R.", "a call of numpy.ndarray"),
        (b"cnumpy\nndarray\n)\x81.", "damaged"),
        (b"ccollections\nOrderedDict\n)\x81.", "damaged"),
        (b"U\x05outerQ.", "an object kept outside the file"),
        (b"cnumpy\ncore.multiarray\n.", "numpy.core.multiarray"),
        (b"c__main__\n__builtins__\n.", "__main__.__builtins__"),
        (b"\x82\x01.", "damaged"),
        (NEW_ARRAY + b"(K\x01K\x03\x85" + FLOAT + b"\x89U\x04abcdtb.", "shape (3,) with 4 bytes"),
        (NEW_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT + b"\x89U\x04abcdtb.", "shape (-1,)"),
        (NEW_ARRAY + b"(K\x01K\x01\x85" + FLOAT + b"\x89]tb.", "an array of objects"),
        (NEW_ARRAY + b"(K\x01K\x01\x85N\x89U\x04abcdtb.", "number format is none"),
        (b"cnumpy\ndtype\nU\x01O\x85R.", "'O', which are no plain numbers"),
        (b"cnumpy\ndtype\nU\x03f16\x85R.", "'f16', which are no plain numbers"),
        (b"cnumpy.core.multiarray\nscalar\nNU\x04abcd\x86R.", "without a number format"),
        (b"cbuiltins\nbytes\nU\x01a\x85R.", "a call of bytes"),
        (b"c_codecs\nencode\nU\x01aU\x03zip\x86R.", "text in 'zip'"),
    ],
)
def test_admitted_names_cannot_be_misused(tmp_path: Path, program: bytes, words: str) -> None:
    path = tmp_path / "crafted.pkl"
    path.write_bytes(b"\x80\x02" + program)
    for _ in range(2):  # an attack on what a name means must not show in the next reading either
        with pytest.raises(PublishedError) as caught:
            read_arrays(path)
        assert words in str(caught.value)
    check(written(tmp_path, {"model": ARRAYS}))


def test_damaged_and_other_files(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": ARRAYS}, protocol=2)
    path = tmp_path / "part.pkl"
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PublishedError, match="is damaged or no pickle"):
            read_arrays(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PublishedError, match="is damaged or no pickle"):
        read_arrays(path)
    with pytest.raises(PublishedError, match="There is no weights file"):
        read_arrays(tmp_path / "none.pkl")
    for content in ([1, 2], {"model": {}}, {}, {"model": 3}):
        with pytest.raises(PublishedError, match="expected a dictionary of arrays"):
            read_arrays(written(tmp_path, content))
    with pytest.raises(PublishedError, match="a is no array but str"):
        read_arrays(written(tmp_path, {"model": {"a": "text"}}))
    with pytest.raises(PublishedError, match="b is no array but list"):
        read_arrays(written(tmp_path, {"model": {"b": [np.zeros(1)]}}))
