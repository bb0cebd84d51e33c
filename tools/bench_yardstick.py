"""The same pipeline in the manner of the published implementation, as a yardstick: float32, norms apart from
their convolutions, one batch for all crops, work of the photo's size for every mask, class maps resized.

Written from the paper's formulas (Xu et al., ECCV 2022) and from what is known of the released system's
order of steps. It is slow on purpose and only as good as it has to be to give the same labels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twostage.clip.model import ClipModel
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.resnet import ConvNorm
from twostage.segmenter import Words
from twostage.views import TestSize


class _Apart(nn.Module):
    """A convolution, and then its frozen norm."""

    def __init__(self, conv: ConvNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, conv.stride, conv.padding, conv.dilation, bias=False)
        self.conv.weight, self.norm = conv.weight, conv.norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


class Yardstick:
    """One photo at a time, from RGB uint8 to labels."""

    def __init__(
        self, network: MaskFormer, clip: ClipModel, words: Words, size: TestSize, weight: float, edge: int = 0
    ) -> None:
        """weight: the paper's w; edge: of the crops in pixels, 0 for CLIP's own."""
        self.network = _unfolded(copy.deepcopy(network)).eval()
        self.clip, self.words, self.size, self.weight = clip, words, size, weight
        self.edge = edge or clip.image_size[0]

    @torch.no_grad()
    def label(self, photo: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (H, W) int64."""
        image = self.size.resize(photo)
        height, width = image.shape[1:]
        made = self.network(image[None], last_only=True)
        full = F.interpolate(made.mask_logits[-1], made.padded_hw, mode="bilinear", align_corners=False)
        masks = full[0, :, :height, :width].sigmoid()
        text = self.words.stage_one or self.words.text
        logits = self.network.class_logits(made.embeddings[-1, 0], text)
        trained = logits.softmax(dim=-1)[:, :-1]
        valid = (masks > 0.5).flatten(1).any(dim=1)
        probs = torch.ones_like(trained)
        if valid.any():
            probs[valid] = self._see(image, masks[valid] > 0.5)
        scores = self._merge(trained, probs)
        maps = torch.einsum("qc,qhw->chw", scores, masks)
        size = (photo.shape[1], photo.shape[2])
        return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0].argmax(dim=0)

    def _see(self, image: Tensor, binary: Tensor) -> Tensor:
        """Class probabilities of all masks from one batch of crops."""
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.clip.mean, self.clip.std))
        crops = []
        for mask in binary:
            filled = image.float() * mask + (~mask) * (255 * mean)
            rows, columns = mask.nonzero().unbind(1)
            y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            crop = (filled[:, y0:y1, x0:x1] / 255 - mean) / std
            square = (self.edge, self.edge)
            crops.append(F.interpolate(crop[None], square, mode="bicubic", align_corners=False))
        features = self.clip.encode_images(torch.cat(crops))
        return self.words.text.logits(features).softmax(dim=-1)

    def _merge(self, trained: Tensor, probs: Tensor) -> Tensor:
        """Section 3.3: p^w q^(1-w) on seen classes, p^(1-w) q^w on the others."""
        seen = torch.tensor(self.words.vocabulary.seen or [False] * trained.shape[1])
        on_seen = trained**self.weight * probs ** (1 - self.weight)
        return torch.where(seen, on_seen, trained ** (1 - self.weight) * probs**self.weight)


def _unfolded(network: MaskFormer) -> MaskFormer:
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, ConvNorm):
                setattr(parent, name, _Apart(part))
    return network
