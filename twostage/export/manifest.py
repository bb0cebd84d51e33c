"""`manifest.json`: what an exported folder holds, what its networks expect, and the digests of its files.

A folder comes from elsewhere, so nothing in it is believed: names are plain names of files inside it, digests
are compared before a file is opened.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from twostage.data.atomic import replacing
from twostage.download import digest_of
from twostage.errors import TwostageError

MANIFEST = "manifest.json"
FORMAT, VERSION = "twostage-onnx", 1
STAGE_ONE, CLIP_IMAGE, WORDS = "stage_one.onnx", "clip_image.onnx", "words.npz"
Facts = TypeVar("Facts")


class ExportError(TwostageError):
    """A system cannot be exported, or an exported folder cannot be used."""


@dataclass(frozen=True)
class StageOneFacts:
    """Input and output of stage one's file.

    says: "text" (classes come from its input `text`), "linear" (its own classes) or "masks" (none); mean,
    std: of RGB in 0..255; size_divisibility: images are padded right and below by 0, after normalisation, to
    a multiple of it; embedding_dim: D of `text`; logit_scale: factor on cosines inside the file.
    """

    says: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_divisibility: int
    embedding_dim: int
    num_queries: int
    logit_scale: float

    def __post_init__(self) -> None:
        if self.says not in ("text", "linear", "masks"):
            raise ValueError(f"says is {self.says!r}")
        _require_numbers(self.std, 3)
        _require_numbers(self.mean, 3, least=-1e9)
        _require_numbers((self.size_divisibility, self.embedding_dim), 2, whole=True)


@dataclass(frozen=True)
class ClipImageFacts:
    """Input and output of the image tower's file.

    image_size: height and width of the crops; mean, std: of RGB in 0..1; dim: D of `features`; model, digest:
    the model it was taken from.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dim: int
    model: str
    digest: str

    def __post_init__(self) -> None:
        _require_numbers(self.image_size, 2, whole=True)
        _require_numbers(self.std, 3)
        _require_numbers(self.mean, 3, least=-1e9)
        _require_numbers((self.dim,), 1, whole=True)


@dataclass(frozen=True)
class WordsFacts:
    """The words that come with the folder. classes: names of each class; logit_scale: factor on cosines of
    CLIP's features.
    """

    classes: tuple[tuple[str, ...], ...]
    logit_scale: float


@dataclass(frozen=True)
class Manifest:
    """All of it. config: the resolved configuration as YAML text; trained_names: what stage one has learned;
    inputs, outputs: of each .onnx file, tensor -> shape, in words; files: name -> sha256; check: largest
    differences from torch, by what was compared; versions: of the packages that wrote it.
    """

    config: str
    opset: int
    trained_names: tuple[str, ...]
    stage_one: StageOneFacts | None
    clip_image: ClipImageFacts | None
    words: WordsFacts | None
    inputs: Mapping[str, Mapping[str, str]]
    outputs: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]
    versions: Mapping[str, str | None] = field(default_factory=dict)
    check: Mapping[str, float] = field(default_factory=dict)


def _require_numbers(values: object, count: int, whole: bool = False, least: float = 0.0) -> None:
    """Raises ValueError unless these are so many numbers above `least`."""
    kinds = (int,) if whole else (int, float)
    if not isinstance(values, tuple) or len(values) != count:
        raise ValueError(f"expected {count} numbers, got {values!r}")
    if not all(type(value) in kinds and value > least for value in values):
        raise ValueError(f"expected {count} {'whole ' if whole else ''}numbers, got {values!r}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it in one step; the last file of an export."""
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    with replacing(folder / MANIFEST) as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all there and unchanged.

    Raises:
        ExportError: no such folder, no manifest, one of another version, a file that is missing, outside the
            folder, or not the one that was exported.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(
            f"{folder}: expected a folder that `twostage export` wrote; it holds no {MANIFEST}. Was the "
            "export broken off?"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no manifest of `twostage export` ({error}).") from error
    if content.get("version") != VERSION:
        raise ExportError(
            f"{path}: expected version {VERSION}, got {content.get('version')!r}: another twostage wrote it. "
            "Export again with this one, or run it with that one."
        )
    try:
        manifest = _manifest(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}): export again.") from error
    for name, digest in manifest.files.items():
        _require_file(folder, name, digest)
    parts = {STAGE_ONE: manifest.stage_one, CLIP_IMAGE: manifest.clip_image, WORDS: manifest.words}
    for name, facts in parts.items():
        if facts is not None and name not in manifest.files:
            raise ExportError(f"{path} speaks of {name}, but does not list it: export again.")
    return manifest


def _manifest(content: Mapping[str, Any]) -> Manifest:
    known = {f.name: content[f.name] for f in dataclasses.fields(Manifest)}
    known["trained_names"] = tuple(str(name) for name in known["trained_names"])
    known["stage_one"] = _facts(StageOneFacts, known["stage_one"])
    known["clip_image"] = _facts(ClipImageFacts, known["clip_image"])
    known["words"] = _facts(WordsFacts, known["words"])
    if not isinstance(known["config"], str):
        raise TypeError("config is no text")
    known["files"] = {str(name): str(digest) for name, digest in known["files"].items()}
    return Manifest(**known)


def _facts(kind: type[Facts], content: Mapping[str, Any] | None) -> Facts | None:
    if content is None:
        return None
    return kind(**{name: _tuples(value) for name, value in content.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def require_plain(name: str) -> None:
    """Raises ExportError unless `name` is a file's name and no path."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or Path(name).name != name:
        raise ExportError(f"{MANIFEST}: {name!r} is no plain name of a file in the folder.")


def _require_file(folder: Path, name: str, digest: str) -> None:
    require_plain(name)
    path = folder / name
    if not path.is_file():
        raise ExportError(
            f"{folder} is incomplete: {name} is missing. Copy the whole folder, or export again."
        )
    if path.resolve().parent != folder.resolve():
        raise ExportError(f"{path} leads out of the folder: copy the file itself, not a link.")
    found = digest_of(path)
    if found != digest:
        raise ExportError(
            f"{path}: its sha256 is {found[:16]}..., the manifest says {digest[:16]}...: damaged, or of "
            "another export. Copy it again, or export again."
        )
