"""The only door to onnx and onnxruntime: is a file safe to open, what are its tensors, run it.

Both are optional; what is missing is said with the words that install it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.export.manifest import ExportError, require_plain

logger = logging.getLogger(__name__)
TO_RUN = ("onnx", "onnxruntime")
TO_EXPORT = (*TO_RUN, "onnxscript")


def require_packages(names: tuple[str, ...] = TO_RUN) -> None:
    """Raise an ExportError that says how to install what is not there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {' and '.join(missing)}: pip install 'twostage[onnx]'.")


@dataclass(frozen=True)
class FileFacts:
    """inputs, outputs: tensor -> its shape, open sizes by name; beside: files that hold its weights."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    beside: tuple[str, ...]


def describe(path: Path) -> FileFacts:
    """What the file says of itself; its weights stay unread where they lie beside it.

    Raises:
        ExportError: it is no ONNX file, or asks for weights outside its own folder.
    """
    onnx: Any = importlib.import_module("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, which differ between its versions
        raise ExportError(f"{path} cannot be read as ONNX ({type(error).__name__}): export again.") from error
    found: dict[str, None] = {}
    for tensor in _outside_tensors(model, onnx.TensorProto.EXTERNAL):
        found |= {pair.value: None for pair in tensor.external_data if pair.key == "location"}
    for name in found:
        require_plain(name)
        if (path.parent / name).resolve().parent != path.parent.resolve():
            raise ExportError(f"{path} asks for {name}, which leads out of its folder.")
    graph = model.graph
    return FileFacts(
        {value.name: _shape(value) for value in graph.input},
        {value.name: _shape(value) for value in graph.output},
        tuple(found),
    )


def _outside_tensors(message: Any, external: int) -> Iterator[Any]:
    """Every tensor with data outside the file, wherever in the model it stands."""
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        if message.data_location == external or len(message.external_data):
            yield message
        return
    for description, value in message.ListFields():
        if description.message_type is None:
            continue
        for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
            if hasattr(inner, "ListFields"):
                yield from _outside_tensors(inner, external)


def _shape(value: Any) -> str:
    sizes = (one.dim_param or str(one.dim_value) for one in value.type.tensor_type.shape.dim)
    return f"({', '.join(sizes)})"


class Session:
    """One file, ready to run. Tensors go in and come out on the CPU; the network runs on `device`."""

    def __init__(self, path: Path, listed: Mapping[str, str], device: torch.device, threads: int = 0) -> None:
        """listed: the files of the folder whose digests were compared; threads: 0 takes torch's number.

        Raises:
            ExportError: onnxruntime is missing or refuses the file, or it asks for a file that is not listed.
        """
        require_packages()
        strange = [name for name in describe(path).beside if name not in listed]
        if strange:
            raise ExportError(
                f"{path} asks for {strange[0]}, which the manifest does not list: export again."
            )
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Waiting threads would take the cores from torch, which cuts the crops in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.path = path
        try:
            self._session = runtime.InferenceSession(path, options, providers=_providers(runtime, device))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ExportError(f"{path}: onnxruntime refuses the file ({_first(error)}).") from error

    @property
    def provider(self) -> str:
        """Who runs it, by onnxruntime's name."""
        return str(self._session.get_providers()[0])

    def run(self, **tensors: Tensor) -> dict[str, Tensor]:
        """Named inputs -> named outputs.

        Raises:
            ExportError: onnxruntime cannot run it on these.
        """
        fed = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
        try:
            values = self._session.run(None, fed)
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise ExportError(f"{self.path}: onnxruntime stopped at {shapes} ({_first(error)}).") from error
        names = [output.name for output in self._session.get_outputs()]
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def _providers(runtime: Any, device: torch.device) -> list[str]:
    cuda = "CUDAExecutionProvider"
    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if cuda not in runtime.get_available_providers():
        logger.warning("This onnxruntime has no CUDA: the networks run on the CPU. onnxruntime-gpu has it.")
        return ["CPUExecutionProvider"]
    return [cuda, "CPUExecutionProvider"]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
