"""One photo for the whole pipeline: real networks with random weights, masks and class scores that are given.

Random weights do not change the work, but neither do they give masks or scores like a trained network's. So
stage one runs, and what it says is replaced: blobs of all sizes as masks, and embeddings near the text of one
class each. The text is drawn in the space in which CLIP's features of the crops differ, so that class scores
depend on the crops as sharply as with trained weights, and rounding shows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from bench_stage2 import blob_logits
from torch import Tensor

from twostage.classifiers.crops import CropClassifier
from twostage.clip.model import ClipModel
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer, MaskFormerOutput
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.segmenter import Words
from twostage.types import TextBank
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary


class GivenMasks(MaskFormer):
    """Computes everything, and says what it was given."""

    masks: Tensor
    sayings: Tensor

    def give(self, masks: Tensor, sayings: Tensor) -> None:
        """masks: (Q, h, w) logits at stride 4; sayings: (Q, D) embeddings."""
        self.register_buffer("masks", masks, persistent=False)
        self.register_buffer("sayings", sayings, persistent=False)

    def twin(self) -> GivenMasks:
        """Another network with the same weights."""
        return copy.deepcopy(self)

    def forward(self, images: Any, last_only: bool = False) -> MaskFormerOutput:
        """As a MaskFormer's, masks and embeddings replaced."""
        made = super().forward(images, last_only)
        count = len(made.mask_logits[0])
        masks = self.masks.float().expand(1, count, -1, -1, -1)
        return replace(made, mask_logits=masks, embeddings=self.sayings.float().expand(1, count, -1, -1))


@dataclass(frozen=True)
class Scene:
    """photo: (3, H, W) uint8; size: of its look; network, clip: float32; words: most of them seen."""

    photo: Tensor
    size: TestSize
    network: GivenMasks
    clip: ClipModel
    words: Words

    @cached_property
    def seen_at(self) -> Tensor:
        """The photo at test size."""
        return self.size.resize(self.photo)

    @cached_property
    def ready_crops(self) -> list[Tensor]:
        """The crops of all masks in chunks of 8, float32."""
        [found] = MaskFormerProposals(MaskFormerProposals.Config(), self.network).propose([self.seen_at])
        classifier = CropClassifier(CropClassifier.Config(), self.clip)
        return [pixels.clone() for _, pixels in classifier.chunks([self.seen_at], [found])]


def make_scene(
    size_wh: tuple[int, int], masks: int, classes: int, backbone: str, model: str, short_edge: int = 640
) -> Scene:
    """Everything from seed 0."""
    draw = torch.Generator().manual_seed(0)
    width, height = size_wh
    patches = torch.rand(1, 3, height // 20 + 1, width // 20 + 1, generator=draw)
    smooth = F.interpolate(patches, (height, width), mode="bicubic")[0].clamp(0, 1)
    grain = torch.rand(3, height, width, generator=draw) * 0.2
    photo = ((smooth * 0.8 + grain) * 255).byte()
    size = TestSize(short_edge, 2560)
    seen_at = size.resize(photo)
    clip = ClipModel.load(model, pretrained="random", seed=0)
    torch.manual_seed(0)
    config = MaskFormerConfig(backbone=backbone, num_queries=masks, embedding_dim=clip.dim)
    network = GivenMasks(config).eval()
    step = config.size_divisibility
    padded = [-(-side // step) * step for side in seen_at.shape[1:]]
    network.give(blob_logits(masks, padded[0] // 4, padded[1] // 4), torch.zeros(masks, clip.dim))
    bare = Scene(
        photo, size, network, clip, Words(Vocabulary.from_words(["a"]), _bank(torch.ones(1, clip.dim)))
    )
    rows = _rows(bare, classes, draw)
    of = torch.randint(0, classes, (masks,), generator=draw)
    noise = torch.randn(masks, clip.dim, generator=draw)
    network.sayings.copy_(rows[of] + 0.6 * F.normalize(noise, dim=1))
    vocabulary = Vocabulary(
        tuple((f"class {k}",) for k in range(classes)),
        seen=tuple(k < classes * 156 // 171 for k in range(classes)),
    )
    return Scene(photo, size, network, clip, Words(vocabulary, _bank(rows)))


def _rows(scene: Scene, classes: int, draw: torch.Generator) -> Tensor:
    """(K, D) text features: random directions in the space in which the features of the crops differ."""
    features = torch.cat([scene.clip.encode_images(pixels) for pixels in scene.ready_crops])
    apart = features - features.mean(dim=0)
    return F.normalize(torch.randn(classes, len(apart), generator=draw) @ apart, dim=1)


def _bank(rows: Tensor) -> TextBank:
    return TextBank(F.normalize(rows, dim=1), torch.arange(len(rows)), len(rows))
