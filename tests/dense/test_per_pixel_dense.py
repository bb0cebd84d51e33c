"""The per-pixel network as a dense head, whole photos to labels in the paper's order, and CLIP beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from twostage.clip.model import ClipModel
from twostage.dense.per_pixel import PerPixelDense
from twostage.dense.whole_image import WholeImageDense
from twostage.ensembles.per_pixel import PerPixelEnsemble
from twostage.errors import TwostageError
from twostage.perpixel.config import PerPixelError
from twostage.perpixel.network import PerPixelNetwork
from twostage.segmenter import Segmenter, Words
from twostage.types import PixelScores, TextBank
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary


def bank(dim: int = 8) -> TextBank:
    rows = torch.randn(4, dim, generator=torch.Generator().manual_seed(1))
    return TextBank(functional.normalize(rows, dim=1), torch.arange(4), 4)


def photo(height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


def head(order: str) -> PerPixelDense:
    return PerPixelDense(PerPixelDense.Config(order), PerPixelDense.tiny().network)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["grid", "paper"])
def test_scores_say_what_they_cover(order: str) -> None:
    found, other = head(order).predict([photo(33, 46), photo(8, 8)], bank())
    assert isinstance(found, PixelScores)
    assert isinstance(other, PixelScores)
    assert (found.stride, found.image_hw, found.logits.shape) == (4, (33, 46), (4, 9, 12))
    assert other.image_hw == (8, 8)
    assert (found.embeddings is None) == (order == "grid")
    if found.embeddings is not None:
        cosines = functional.cosine_similarity(found.embeddings[None], bank().features[:, :, None, None])
        torch.testing.assert_close(found.logits, 100 * cosines, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("test_size", [0, 24, 64])
def test_photos_to_labels_in_the_papers_order(test_size: int) -> None:
    """Resized, embedded, D components enlarged, cut, resized to the photo, normalised, compared, largest."""
    image, text = photo(33, 46), bank()
    own = head("paper")
    size = TestSize(test_size, 1000)
    segmenter = Segmenter(PerPixelEnsemble.tiny(), size=size, pixels=own)
    [found] = segmenter.segment([image], Words(Vocabulary.from_words("a, b, c, d"), text))
    small = size.resize(image)
    with torch.no_grad():
        network = own.network.eval()
        pixels = (small.float() - network.mean) / network.std
        features, _ = network.pixel_decoder(network.backbone(pixels[None]))
        full = functional.interpolate(
            network.predictor(features), scale_factor=4, mode="bilinear", align_corners=False
        )[..., : small.shape[1], : small.shape[2]]
        full = functional.interpolate(full, size=(33, 46), mode="bilinear", align_corners=False)[0]
        logits = 100 * torch.einsum("kd,dhw->khw", text.features, functional.normalize(full, dim=0))
    best = logits.topk(2, dim=0).values
    sure = best[0] - best[1] > 1e-3
    assert float(sure.float().mean()) > 0.99
    assert torch.equal(found.labels[sure], logits.argmax(0).int()[sure])


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(item, Tensor):
                self.numbers = max(self.numbers, item.numel())
        return made


@pytest.mark.parametrize("order", ["grid", "paper"])
def test_no_map_of_all_words_or_components_at_full_size(order: str) -> None:
    """Neither K x H x W nor D x H x W, which would be 150 or 128 times 360 x 520."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PerPixelNetwork(replace(head(order).network.config, embedding_dim=128))
    rows = functional.normalize(torch.randn(150, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    words = Words(
        Vocabulary(tuple((f"class {k}",) for k in range(150))), TextBank(rows, torch.arange(150), 150)
    )
    own = PerPixelDense(PerPixelDense.Config(order), network)  # type: ignore[arg-type]
    segmenter = Segmenter(PerPixelEnsemble.tiny(), size=TestSize(0), pixels=own)
    with Largest() as watch:
        [found] = segmenter.segment([photo(360, 520)], words)
    assert found.labels.shape == (360, 520)
    assert 150 * 90 * 130 <= watch.numbers <= 16 * 2**20 / 4, "at least what is kept, at most a strip"


def test_the_mode_of_the_network_comes_back() -> None:
    own = head("grid")
    own.network.train()
    own.predict([photo(8, 8)], bank())
    assert own.network.training


def test_damaged_weights_are_said() -> None:
    own = head("grid")
    with torch.no_grad():
        own.network.predictor.weight[0] = torch.nan
    with pytest.raises(PerPixelError, match="use an earlier checkpoint"):
        own.predict([photo(8, 8)], bank())


@pytest.mark.parametrize("own_size", [True, False])
def test_one_opinion_for_all_pixels(own_size: bool) -> None:
    clip = ClipModel.load("twostage-mini-vit", "random", seed=0)
    whole = WholeImageDense(WholeImageDense.Config(own_size), clip)
    image, text = photo(*((64, 64) if own_size else (48, 80))), bank(clip.dim)
    [found] = whole.predict([image], text)
    assert found.logits.shape == (4, 1, 1)
    pixels = image[None].float() / 255
    if own_size:
        pixels = functional.interpolate(pixels, clip.image_size, mode="bilinear", antialias=True)
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    feature = clip.encode_images((pixels - mean) / std)[0]
    torch.testing.assert_close(found.logits[:, 0, 0], 100 * text.features @ feature, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit() -> None:
    with pytest.raises(TwostageError, match=r"expected text features .* wide, got 5"):
        WholeImageDense.tiny().predict([photo(32, 32)], bank(5))
    with pytest.raises(TwostageError, match=r"unknown order 'papr'.*'paper'"):
        PerPixelDense.Config("papr")  # type: ignore[arg-type]
