"""What the tests of contracts share: components by name, photos, words, and how containers are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from twostage import registry
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank

SIZES = ((40, 56), (33, 48))


def named(kind: str) -> Any:
    return pytest.mark.parametrize("name", registry.names(kind))


@cache
def tiny(kind: str, name: str) -> Any:
    return registry.find(kind, name).tiny()  # type: ignore[attr-defined]


def photos(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Tensor]:
    """Squares of one colour on noise: something to find, different in every photo."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for place, (height, width) in enumerate(sizes):
        image = torch.randint(0, 90, (3, height, width), generator=generator).to(torch.uint8)
        image[:, 8:24, 6 + 4 * place : 26] = torch.tensor([200, 60 + 90 * place, 40])[:, None, None]
        made.append(image.to(torch.uint8))
    return made


def bank(dim: int, classes: int = 3) -> TextBank:
    rows = torch.randn(classes + 1, dim, generator=torch.Generator().manual_seed(6))
    return TextBank(torch.nn.functional.normalize(rows, dim=1), torch.tensor([*range(classes), 0]), classes)


def width_of(component: Any) -> int:
    """D of the joint space that a component works in."""
    for owner in ("clip", "network"):
        if hasattr(component, owner):
            part = getattr(component, owner)
            told = getattr(part, "dim", None) or getattr(getattr(part, "config", None), "embedding_dim", 8)
            return int(told)
    return 8


def same(first: Any, second: Any) -> None:
    """Equal containers: the same fields, tensors alike up to rounding."""
    assert type(first) is type(second)
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        elif dataclasses.is_dataclass(one):
            same(one, other)
        else:
            assert one == other


def propose(generator: Any, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
    """By `propose`, or from labels where a generator says that images alone are not enough."""
    if getattr(generator, "needs_ground_truth", False):
        with pytest.raises(ComponentError, match="ground truth"):
            generator.propose(images)
        return [
            generator.propose_from_labels((image[0] > 150).int() - (image[1] > 80).int()) for image in images
        ]
    return list(generator.propose(images, text))
