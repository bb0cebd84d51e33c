"""Which number format suits a device, found out rather than assumed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def preferred_dtype(device: torch.device | str) -> tuple[torch.dtype, str]:
    """The format in which CLIP runs fastest on a device without visible loss, and the reason in words.

    CUDA: float16, what the public weights were trained in. CPU: bfloat16 only where the processor has matrix
    units for it (AMX: 4 to 5 times faster than float32, cosine to float32 at least 0.9999); elsewhere
    bfloat16 is slower.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16, "fp16: the device is a CUDA GPU"
    if kind != "cpu":
        return torch.float32, f"fp32: nothing faster is known to be safe on {kind}"
    if not torch.backends.mkldnn.is_available():
        return torch.float32, "fp32: this build of torch has no oneDNN, which the bf16 matrix units need"
    if has_amx():
        return torch.bfloat16, "bf16: the processor has AMX"
    return torch.float32, "fp32: the processor has no AMX, and bf16 without it is slower than fp32"


def preferred_convolutions(device: torch.device | str) -> tuple[torch.dtype, str]:
    """The format in which stage one's convolutions run fastest on a device, and the reason in words.

    bfloat16 on GPUs too: trained without half precision, residual networks may leave float16's range.
    """
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bf16: the GPU has matrix units for it"
        return torch.float32, "fp32: the GPU has no matrix units for bf16"
    return preferred_dtype(device)


def has_amx(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the processor reports bf16 matrix tiles (AMX). False where the system does not tell (not
    Linux)."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return {"amx_tile", "amx_bf16"} <= set(flags)


def convert_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights in place and return the module; batch-norm statistics stay float32.

    Weights rather than autocast: under CPU autocast the attention's input projection is copied at every call,
    which made the tower two to four times slower than float32.
    """
    module.to(dtype)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.float()
    return module
