"""An image tower and a text tower that share one space, frozen: pixels or prompts in, unit rows out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from twostage.clip import checks
from twostage.clip.checks import ClipError
from twostage.clip.precision import convert_weights
from twostage.clip.text_tower import TextTower
from twostage.clip.towers import encode_at_any_size, native_size


class FrozenPair:
    """Both towers in evaluation mode, without gradients; not an nn.Module on purpose, so that neither
    `train()` nor an optimiser of a surrounding model can reach them."""

    def __init__(self, module: nn.Module, tokenizer: Any, name: str) -> None:
        """module, tokenizer: as open_clip makes them. The module is switched to evaluation and frozen.

        Raises:
            ClipError: the tokenizer knows another number of tokens than the text tower.
        """
        self.name = name
        self._module = module.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.text_tower = TextTower(module)
        self.logit_scale = float(module.get_parameter("logit_scale").detach().float().exp().max())
        known, wanted = (
            getattr(tokenizer, "vocab_size", None),
            getattr(self.text_tower.tower, "vocab_size", None),
        )
        if isinstance(known, int) and wanted is not None and known != wanted:
            raise ClipError(
                f"{name}: the tokenizer knows {known} tokens, the text tower {wanted}."
                " Check `tokenizer_kwargs.bpe_path` of the model's JSON: it has to be an absolute path."
            )

    @property
    def visual(self) -> nn.Module:
        """The image tower. Read it, never change it."""
        tower: nn.Module = self._module.get_submodule("visual")
        return tower

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the image tower was built for."""
        return native_size(self.visual)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of the pixels in [0, 1], per RGB channel, that the model was trained with."""
        return self._statistics("image_mean")

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of the pixels in [0, 1], per RGB channel."""
        return self._statistics("image_std")

    def _statistics(self, which: str) -> tuple[float, float, float]:
        red, green, blue = getattr(self.visual, which)
        return float(red), float(green), float(blue)

    @cached_property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return self.encode_text(["a"]).shape[1]

    @property
    def context_length(self) -> int:
        """Tokens a prompt may have, start and end included."""
        return self.text_tower.context_length

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(self._module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._module.parameters()).device

    @cached_property
    def digest(self) -> str:
        """16 hex digits over every weight's name, shape, format and bytes, the activations, and the tokenizer
        at work."""
        total = hashlib.sha256()
        for name, value in sorted(self._module.state_dict().items()):
            total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy())
        total.update(repr(sorted(checks.activations(self._module))).encode())
        total.update(self._tokenizer(["a photo of two checkered traffic lights, 42."]).numpy().tobytes())
        return total.hexdigest()[:16]

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """A copy whose weights have another format (float32, bfloat16, float16); this model stays as it
        is."""
        module = convert_weights(copy.deepcopy(self._module), dtype)
        converted = type(self)(module, self._tokenizer, self.name)
        converted.logit_scale = self.logit_scale  # not the rounded one
        return converted

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, h, w) normalised with `mean` and `std` -> (B, D) float32 rows of length one.

        Sizes other than `image_size` work for towers with a position table, which is interpolated (bicubic).

        Raises:
            ClipError: the shape is not (B, 3, h, w), or the tower takes its own size only.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ClipError(f"encode_images: expected (B, 3, h, w) pixels, got {tuple(pixels.shape)}.")
        features = encode_at_any_size(self.visual, pixels.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Prompts -> (T, D) float32 rows of length one; at most `chunk` prompts are in flight.

        Prompts of similar length share a chunk and are cut to its longest, which changes nothing in a causal
        tower.

        Raises:
            ClipError: no prompt at all, or one that does not fit into the context.
        """
        tokens = self.tokenize(texts).to(self.device)
        order = torch.argsort(self.text_tower.end_positions(tokens)) if self.text_tower.causal else None
        order = torch.arange(len(tokens)) if order is None else order
        rows = [self.text_tower.encode(tokens[part]).float() for part in order.split(chunk)]
        features = torch.cat(rows)
        return F.normalize(features[torch.argsort(order)], dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> (T, C) int64 on the CPU.

        Raises:
            ClipError: no prompt at all, or one that is longer than the context (open_clip would cut it in
            silence).
        """
        if isinstance(texts, str) or not texts:
            raise ClipError(f"tokenize: expected a list with at least one prompt, got {texts!r}.")
        texts, limit = list(texts), self.context_length
        tokens: Tensor = self._tokenizer(texts, context_length=limit)
        # a token is at least one byte, so only long prompts need the second look: more room must change
        # nothing
        suspects = [i for i, text in enumerate(texts) if len(text.encode()) > limit - 2]
        if suspects:
            roomier = self._tokenizer([texts[i] for i in suspects], context_length=limit + 1)[:, :limit]
            for i, row in zip(suspects, roomier, strict=True):
                if not torch.equal(row, tokens[i]):
                    raise ClipError(
                        f"{self.name}: the prompt {texts[i]!r} needs more than the {limit} tokens"
                        " of the text tower. Shorten the class name or the template."
                    )
        return tokens
