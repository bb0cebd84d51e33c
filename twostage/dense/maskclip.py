"""MaskCLIP: labels for patches from a frozen CLIP, by skipping the last attention.

"Extract Free Dense Labels from CLIP" (Zhou, Loy, Dai; ECCV 2022). In the last block every token keeps its own
value, so that the patch tokens stay local and, projected like the class token, can be compared with text. In
a ModifiedResNet the same is done to the attention pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.clip.towers import POSITION_MODES, PositionMode, is_resnet
from twostage.dense import _frame, _resnet, _vit
from twostage.dense._refine import KeyNorm, denoise_prompts, smooth_by_keys, votes_to_logits
from twostage.errors import TwostageError
from twostage.ops.windows import Stitcher, window_boxes
from twostage.types import DenseScores, TextBank
from twostage.vocabulary import nearest

_CHOICES = {"fit": ("round", "pad"), "positions": POSITION_MODES, "key_norm": ("channels", "tokens")}


class MaskClipDense:
    """Class logits for every patch, from one pass over the whole image or the average of sliding windows."""

    @dataclass(frozen=True)
    class Config:
        """What the tower is shown, and how its last block is read.

        short_edge: pixels of the image's short side before the tower; None: twice the tower's own size; 0: as
        it is. long_edge: pixels that the long side may have at most.
        fit: "round" the size to whole patches, or "pad" with zeros after normalisation and cut the logits.
        window, stride: edge and step of sliding windows in pixels; 0: the whole image at once; stride 0: half
        a window. positions: how the position table is brought to the grid.
        residual, ffn: whether the last block adds its input and runs its MLP (both on in the original).
        prompt_denoise: drop classes that reach this probability nowhere (paper: 0.5); 0: off.
        key_smooth: let patches less sure than this take the votes of patches with like keys (paper: 1.0); 0:
        off. The logits are then logarithms of probabilities at sharpness 100. Both need window 0.
        key_norm: keys normalised over "channels", or over "tokens" as the released code does.
        logit_factor: factor on the text bank's scale; dense cosines spread less than those of crops.
        chunk: images or windows in one pass of the tower.
        """

        short_edge: int | None = None
        long_edge: int = 2048
        fit: _frame.Fit = "round"
        window: int = 0
        stride: int = 0
        positions: PositionMode = "bicubic"
        residual: bool = True
        ffn: bool = True
        prompt_denoise: float = 0.0
        key_smooth: float = 0.0
        key_norm: KeyNorm = "channels"
        logit_factor: float = 1.0
        chunk: int = 8

        def __post_init__(self) -> None:
            _check(self)

    def __init__(self, config: Config, clip: ClipModel) -> None:
        """Raises: DenseTowerError: the image tower has no dense readout."""
        self.config = config
        self.clip = clip
        self._resnet = is_resnet(clip.visual)
        if not self._resnet:
            _vit.require_vit(clip.visual)

    @classmethod
    def tiny(cls) -> MaskClipDense:
        """The smallest shipped ViT with random weights."""
        return cls(cls.Config(), ClipModel.load("twostage-mini-vit", "random", seed=0))

    @property
    def cell_hw(self) -> tuple[int, int]:
        """Height and width in pixels of one place of the tower's grid."""
        if self._resnet:
            return 32, 32
        tall, wide = self.clip.visual.patch_size  # type: ignore[misc, union-attr]
        return int(tall), int(wide)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> one (K, h, w) map of logits each, covering the whole
        image.

        The map is as coarse as the patches (fit "round", whole image), else as fine as the resized image.
        Logits are cosines times the bank's scale times `logit_factor`.

        Raises:
            TwostageError: an image is not RGB uint8, or the text has another width than the image features.
        """
        self._check_input(images, text)
        text = text.to(self.clip.device)
        frames = [self._frame(image) for image in images]
        if self.config.window:
            maps = [self._windows(frame, text) for frame in frames]
        else:
            maps = self._whole(frames, text)
        return [DenseScores(m.to(image.device)) for m, image in zip(maps, images, strict=True)]

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """pixels: (B, 3, H, W) normalised, H and W multiples of the cell -> (B, h * w, D) float32 unit rows,
        grid (h, w)."""
        rows, _, grid = self._tower(pixels, keys=False)
        return rows, grid

    def _tower(self, pixels: Tensor, keys: bool) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Unit features (B, N, D), the last attention's keys (B, N, C) if wanted, and the grid."""
        visual = self.clip.visual
        pixels = pixels.to(self.clip.device, self.clip.dtype)
        if self._resnet:
            last = _resnet.last_map(visual, pixels)
            rows, grid = _resnet.place_features(visual, last)
            found = _resnet.place_keys(visual, last) if keys else None
            return F.normalize(rows.float(), dim=-1), found, grid
        tokens, grid = _vit.embed(visual, pixels, self.config.positions)
        *early, last_block = _vit.blocks(visual)
        for block in early:
            tokens = _vit.run_block(block, tokens)
        found = None
        if keys:
            found = _vit.merge_heads(last_block, _vit.project_qkv(last_block, tokens)[1])[:, 1:]
        tokens = _vit.run_block(
            last_block, tokens, _vit.identity, residual=self.config.residual, ffn=self.config.ffn
        )
        return F.normalize(_vit.readout(visual, tokens)[:, 1:].float(), dim=-1), found, grid

    def _frame(self, image: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> (3, H', W') normalised, at the size the tower is to see."""
        short = self.config.short_edge
        short = 2 * min(self.clip.image_size) if short is None else short
        size = (image.shape[1], image.shape[2])
        goal = _frame.target_size(size, short, self.config.long_edge, self.cell_hw, self.config.fit)
        return _frame.to_pixels(image.to(self.clip.device), goal, self.clip.mean, self.clip.std)

    def _whole(self, frames: list[Tensor], text: TextBank) -> list[Tensor]:
        """One pass an image; images of one size share passes."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_size.setdefault(tuple(frame.shape), []).append(index)
        maps: dict[int, Tensor] = {}
        for indices in by_size.values():
            for start in range(0, len(indices), self.config.chunk):
                part = indices[start : start + self.config.chunk]
                maps.update(
                    zip(part, self._class_logits(torch.stack([frames[i] for i in part]), text), strict=True)
                )
        return [maps[index] for index in range(len(frames))]

    def _class_logits(self, pixels: Tensor, text: TextBank) -> Tensor:
        """(B, 3, H, W) normalised -> (B, K, h, w) logits, refined if asked for."""
        config = self.config
        padded, inside = _frame.pad_to_cells(pixels, self.cell_hw)
        features, keys, (height, width) = self._tower(padded, keys=config.key_smooth > 0)
        scores = _frame.class_maps(
            (features @ text.features.T).transpose(1, 2), text.class_of, text.num_classes
        )
        scores = scores.transpose(1, 2)
        if config.prompt_denoise > 0:
            scores = denoise_prompts(scores, config.prompt_denoise)
        if keys is not None:
            logits = votes_to_logits(smooth_by_keys(scores, keys, config.key_smooth, config.key_norm))
        else:
            logits = scores * (text.logit_scale * config.logit_factor)
        maps: Tensor = logits.transpose(1, 2).unflatten(2, (height, width))
        if padded.shape == pixels.shape:
            return maps
        return _frame.to_full_size(maps, (padded.shape[-2], padded.shape[-1]), inside)

    def _windows(self, frame: Tensor, text: TextBank) -> Tensor:
        """(3, H, W) normalised -> (K, H, W) logits: the mean over all windows that see a pixel, then the best
        synonym."""
        config = self.config
        size = (frame.shape[1], frame.shape[2])
        stride = config.stride or max(1, config.window // 2)
        boxes = window_boxes(size, (config.window, config.window), (stride, stride))
        stitcher = Stitcher(len(text.features), size, frame.device)
        for start in range(0, len(boxes), config.chunk):
            part = boxes[start : start + config.chunk]
            crops = torch.stack([frame[:, top:bottom, left:right] for top, left, bottom, right in part])
            padded, inside = _frame.pad_to_cells(crops, self.cell_hw)
            features, grid = self.features(padded)
            rows = (features @ text.features.T).transpose(1, 2).unflatten(2, grid)
            full = _frame.to_full_size(rows, (padded.shape[-2], padded.shape[-1]), inside)
            for box, values in zip(part, full, strict=True):
                stitcher.add(box, values)
        maps = _frame.class_maps(stitcher.result()[None], text.class_of, text.num_classes)[0]
        return maps * (text.logit_scale * config.logit_factor)

    def _check_input(self, images: Sequence[Tensor], text: TextBank) -> None:
        if text.dim != self.clip.dim:
            raise TwostageError(
                f"MaskClipDense: expected text features {self.clip.dim} wide, got {text.dim}."
                f" Make them with the text tower of {self.clip.name}, which reads the image."
            )
        for position, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise TwostageError(
                    f"MaskClipDense: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)}"
                    f" {image.dtype}; give it before any normalisation."
                )


def _check(config: MaskClipDense.Config) -> None:
    for option, allowed in _CHOICES.items():
        value = getattr(config, option)
        if value not in allowed:
            raise TwostageError(f"MaskClipDense: unknown {option} {value!r}.{nearest(str(value), allowed)}")
    least = {"short_edge": 0, "long_edge": 1, "window": 0, "stride": 0, "chunk": 1}
    for option, bound in least.items():
        value = getattr(config, option)
        if value is not None and value < bound:
            raise TwostageError(f"MaskClipDense: {option} must be at least {bound}, got {value}.")
    if config.window and config.stride > config.window:
        raise TwostageError(
            f"MaskClipDense: stride {config.stride} leaves gaps between windows of {config.window}."
        )
    if config.window and (config.prompt_denoise or config.key_smooth):
        raise TwostageError(
            "MaskClipDense: prompt_denoise and key_smooth look at the whole image, so they need window 0."
        )
