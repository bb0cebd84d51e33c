"""A VisionTransformer of timm as a guest: DINO, DINOv2 and their like, with timm's weights or a local file's.

It stands alone as the one place of the readout that imports timm, where such a guest is asked for.

Shapes: B images, H x W pixels, h x w grid, C channels.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.readout.guest import GuestError
from twostage.vocabulary import nearest

_INSIDE = ("model", "state_dict", "teacher")
"""Entries under which published files keep their weights."""
_WRAPPED = ("module.", "backbone.")
"""What trainings put before the names of weights."""


class TimmGuest:
    """The patch features that leave a timm VisionTransformer's last norm."""

    def __init__(self, name: str, device: torch.device) -> None:
        """name: MODEL or MODEL@FILE. Raises: GuestError: no timm, no such model or file, unfit weights."""
        model, at, file = name.partition("@")
        if at and not file:
            raise GuestError(f"Guest 'timm:{name}': expected a file after '@', as in timm:MODEL@weights.pth.")
        self.model = _timm_model(model, pretrained=not file)
        if file:
            _load_file(self.model, Path(file).expanduser(), model)
        self.model.eval().requires_grad_(False).to(device)
        config = self.model.pretrained_cfg
        self.mean, self.std = (
            torch.tensor(config[one], device=device).reshape(1, 3, 1, 1) for one in ("mean", "std")
        )
        self.patch_hw: tuple[int, int] = tuple(self.model.patch_embed.patch_size)

    def __call__(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], resized to whole patches -> (B, C, h, w)."""
        size = rgb.shape[-2:]
        grid = [max(1, round(edge / cell)) for edge, cell in zip(size, self.patch_hw, strict=True)]
        goal = (grid[0] * self.patch_hw[0], grid[1] * self.patch_hw[1])
        if size != goal:
            rgb = F.interpolate(rgb, goal, mode="bilinear", align_corners=False, antialias=True)
        tokens: Tensor = self.model.forward_features((rgb - self.mean) / self.std)
        patches = tokens[:, self.model.num_prefix_tokens :]
        maps: Tensor = patches.transpose(1, 2).unflatten(2, grid)
        return maps


def _timm_model(name: str, pretrained: bool) -> Any:
    """A timm VisionTransformer for images of any size."""
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise GuestError(f"Guest 'timm:{name}' needs the package timm: pip install timm.") from error
    if name.split(".")[0] not in timm.list_models():
        raise GuestError(f"Guest: timm has no model {name!r}.{nearest(name, timm.list_models())}")
    try:
        made = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        raise GuestError(
            f"Guest 'timm:{name}': it has no patches of a VisionTransformer that takes images of any size "
            f"({error}). Choose one such as vit_base_patch8_224.dino."
        ) from error
    except Exception as error:  # timm and its hub raise whatever comes
        raise GuestError(
            f"Guest 'timm:{name}': timm cannot build it with its weights ({error}). Without a network, give "
            f"a local file: timm:{name}@FILE."
        ) from error
    if not hasattr(made, "num_prefix_tokens") or not hasattr(made, "patch_embed"):
        raise GuestError(f"Guest 'timm:{name}': it has no patch tokens. Choose a VisionTransformer.")
    return made


def _load_file(model: Any, path: Path, name: str) -> None:
    """Puts the weights of a local file into a model: every name, every size; a classifier's head is left
    out.
    """
    if not path.is_file():
        raise GuestError(f"Guest 'timm:{name}': there is no file {path}. Give the path of its weights.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... on damaged files
        raise GuestError(
            f"Guest: {path} is damaged, or holds more than tensors and plain data, which is refused: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    state = _weights_in(content, path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise GuestError(
            f"Guest: the weights in {path} are not those of timm's {name}: {first[0].strip()[:300]} Choose "
            "the model that the file was made for."
        ) from error


def _weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, without what wraps them in a checkpoint."""
    inside = next(
        (content[one] for one in _INSIDE if isinstance(content, Mapping) and one in content), content
    )
    if not isinstance(inside, Mapping) or not all(isinstance(one, Tensor) for one in inside.values()):
        raise GuestError(
            f"Guest: {path} holds no weights by name: expected a state dict, plain or as 'model'."
        )
    state = dict(inside)
    for before in _WRAPPED:
        if any(one.startswith(before) for one in state):
            state = {one.removeprefix(before): value for one, value in state.items()}
    return {one: value for one, value in state.items() if not one.startswith("head")}
