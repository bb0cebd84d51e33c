"""Checkpoints that are whole or absent, read without running code, and loaded strictly.

Files in OUTPUT_DIR, named as Detectron2's users know them: model_0004999.pth after 5000 updates,
model_final.pth at the end, last_checkpoint with the name of the newest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twostage.errors import TwostageError

log = logging.getLogger(__name__)

LAST = "last_checkpoint"
FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_\d{7,}\.pth")


class CheckpointError(TwostageError):
    """A checkpoint is missing, damaged, or does not fit the model."""


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Calls write(binary file) on a file beside `path`, forces it to disk, then puts it in place in one step.

    Whatever happens in between, `path` holds either its old content or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """The content of a .pth file, or of a .safetensors file as {"model": tensors, **its JSON metadata}, on
    the CPU.

    Only tensors and plain data are read (`weights_only`): a file cannot run code.

    lazily: leave the tensors of a .pth file on disk until they are looked at, and take a file that holds
    tensors alone, without an entry 'model', for its own 'model'. For files that nobody writes to meanwhile.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Check MODEL.WEIGHTS or OUTPUT_DIR.")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, lazily)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain data, which is refused: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... on damaged files
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from error
    if lazily and _holds_tensors_alone(content):
        content = {"model": content}
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise CheckpointError(
            f"{path} is not a checkpoint: expected an entry 'model' that holds the weights."
        )
    return content


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _read_torch(path: Path, lazily: bool) -> Any:
    on_disk = lazily and zipfile.is_zipfile(path)  # the format before PyTorch 1.6 has to be read whole
    return torch.load(path, map_location="cpu", weights_only=True, mmap=on_disk)


def _holds_tensors_alone(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
        metadata = {
            name: json.loads(text) for name, text in (file.metadata() or {}).items() if name != "format"
        }
    return {**metadata, "model": tensors}


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """A .safetensors file for sharing: weights and plain metadata (such as the trained vocabulary), nothing
    to resume.
    """
    from safetensors.torch import save

    texts = {"format": "pt", **{name: json.dumps(value) for name, value in metadata.items()}}
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata=texts
    )
    write_atomically(Path(path), lambda stream: stream.write(data))


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Any], where: str, exempt: Iterable[str] = ()
) -> None:
    """Copies every tensor into the module; nothing may be missing, left over, or of another shape.

    exempt: prefixes of names that may be missing or left over.

    Raises:
        CheckpointError: listing by prefix what does not fit; the module is then unchanged.
    """
    allowed = tuple(exempt)
    own = module.state_dict()
    own_names = {name for name in own if not (allowed and name.startswith(allowed))}
    names = {name for name in tensors if not (allowed and name.startswith(allowed))}
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in sorted(set(own) & set(tensors))
        if isinstance(own[name], Tensor) and own[name].shape != tensors[name].shape
    ]
    problems = [
        *_by_prefix("missing", own_names - names),
        *_by_prefix("unexpected", names - own_names),
        *(f"  another shape: {line}" for line in shapes[:10]),
        *([f"  ... and {len(shapes) - 10} more of another shape"] if len(shapes) > 10 else []),
    ]
    if problems:
        lines = "\n".join(problems)
        raise CheckpointError(
            f"{where} does not fit the model:\n{lines}\n"
            "Use the configuration that the weights were trained with."
        )
    module.load_state_dict({name: tensors[name] for name in tensors if name in own}, strict=not allowed)


def _by_prefix(what: str, names: Iterable[str]) -> list[str]:
    """One line a prefix of two parts: how many, and the first of them."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[".".join(name.split(".")[:2])].append(name)
    return [
        f"  {what}: {group[0]}"
        if len(group) == 1
        else f"  {what}: {prefix}.* ({len(group)}, first {group[0]})"
        for prefix, group in groups.items()
    ]


class Checkpointer:
    """The checkpoints of one output folder."""

    def __init__(self, folder: str | Path, keep: int = 0) -> None:
        """keep: how many numbered checkpoints stay (0: all); the final one always stays."""
        self.folder = Path(folder)
        self._keep = keep

    def path(self, iteration: int | None) -> Path:
        """Where the checkpoint after update `iteration` (from 0) lies; None: that of the finished run."""
        return self.folder / (FINAL if iteration is None else f"model_{iteration:07d}.pth")

    def save(self, content: Mapping[str, Any], iteration: int | None) -> Path:
        """Writes model_<iteration>.pth, or model_final.pth for None, then `last_checkpoint`, then drops the
        oldest.
        """
        path = self.path(iteration)
        write_atomically(path, lambda stream: torch.save(dict(content), stream))
        write_atomically(self.folder / LAST, lambda stream: stream.write(path.name.encode()))
        left_over = [*self.folder.glob(".*.part")]  # of a process that was killed while it wrote
        too_old = self._numbered()[self._keep :] if self._keep else []
        for file in [*left_over, *too_old]:
            file.unlink(missing_ok=True)
        return path

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None where there is none.

        Raises:
            CheckpointError: there are checkpoints, but every one is damaged.
        """
        candidates = self._candidates()
        for path in candidates:
            try:
                return path, read_checkpoint(path)
            except CheckpointError as error:
                log.warning("%s Falling back to the checkpoint before it.", error)
        if candidates:
            raise CheckpointError(
                f"Every checkpoint in {self.folder} is damaged; start anew without --resume."
            )
        return None

    def _candidates(self) -> list[Path]:
        """Newest first: the one that `last_checkpoint` names, then the numbered ones, then the final one."""
        named = self.folder / LAST
        first = [self.folder / named.read_text(encoding="utf-8").strip()] if named.is_file() else []
        ordered = dict.fromkeys([*first, *self._numbered(), self.folder / FINAL])
        return [path for path in ordered if path.is_file()]

    def _numbered(self) -> list[Path]:
        """Numbered checkpoints, last written first: a new run in an old folder must not lose to the old
        one's numbers.
        """
        found = [path for path in self.folder.glob("model_*.pth") if _NUMBERED.fullmatch(path.name)]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
