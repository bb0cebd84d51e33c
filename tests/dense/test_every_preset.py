"""What holds for every preset behind the component: windows, padding, synonyms, masks that come along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.readout import presets
from twostage.readout.look import single
from twostage.types import Proposals, TextBank

ALL = pytest.mark.parametrize("name", presets.PRESETS)


def photo(height: int, width: int) -> Tensor:
    made = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=made)


def bank(class_of: list[int], rows: int = 5) -> TextBank:
    """Rows of the same five words, for the classes named."""
    features = F.normalize(torch.randn(rows, 32, generator=torch.Generator().manual_seed(9)), dim=1)
    return TextBank(features[torch.tensor(class_of)], torch.tensor(class_of), max(class_of) + 1)


def masks(image: Tensor) -> Proposals:
    height, width = image.shape[1:]
    made = torch.zeros(2, height, width)
    made[0, :, : width // 2] = 1
    made[1, height // 3 :, width // 3 :] = 0.9
    return Proposals(made, torch.ones(2), source="by hand")


def answer(clip: ClipModel, name: str, image: Tensor, text: TextBank, **options: Any) -> Tensor:
    preset = presets.find(name)
    guest = "clip" if preset.guest else ""
    head = ReadoutDense(ReadoutDense.Config(preset=name, guest=guest, short_edge=0, **options), clip)
    (found,) = head.predict([image], text, [masks(image)] if preset.regions else None)
    return found.logits


@ALL
def test_one_window_over_all_is_the_whole_image(vit: ClipModel, name: str) -> None:
    image, text = photo(40, 48), bank([0, 1, 2, 3, 4])
    whole = answer(vit, name, image, text)
    window = answer(vit, name, image, text, window=64)
    full = F.interpolate(whole[None], (40, 48), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(window, full, rtol=1e-4, atol=1e-3)


@ALL
@pytest.mark.parametrize(
    "options", [{"fit": "pad"}, {"fit": "floor"}, {"fit": "pad", "window": 32, "stride": 20}], ids=str
)
def test_sizes_that_no_patch_divides(vit: ClipModel, name: str, options: dict[str, Any]) -> None:
    found = answer(vit, name, photo(45, 37), bank([0, 1, 2, 3, 4]), **options)
    assert found.isfinite().all()
    assert found.shape[0] == 5
    if options.get("fit") != "floor":
        assert found.shape[1:] == (45, 37)


@pytest.mark.parametrize("name", [one.name for one in presets.PRESETS.values() if one.method is single])
def test_a_synonym_twice_changes_no_logit(vit: ClipModel, name: str) -> None:
    image = photo(32, 40)
    once, twice = (answer(vit, name, image, bank(rows)) for rows in ([0, 1, 2], [0, 1, 1, 2]))
    torch.testing.assert_close(once, twice, rtol=1e-5, atol=1e-4)
