"""Small CLIP models with either tower."""

from __future__ import annotations

import pytest
import small_clip

from twostage.clip.model import ClipModel


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return small_clip.vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return small_clip.resnet(tmp_path_factory.mktemp("rn"), 64)
