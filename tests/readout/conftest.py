"""A small CLIP with a VisionTransformer for the readout's tests."""

from __future__ import annotations

import pytest
import small_clip

from twostage.clip.model import ClipModel


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """Four blocks of width 64, patches of 8 pixels, 32 pixels wide by itself."""
    return small_clip.vit(tmp_path_factory.mktemp("vit"))
