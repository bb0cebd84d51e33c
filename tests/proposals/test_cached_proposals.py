"""What was stored comes back, by id and by pixels, at the size asked; what is missing or damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.proposals._caching import CocoWriter, NpzWriter, Writer
from twostage.proposals.cached import CachedConfig, CachedProposals, resize_masks
from twostage.types import Proposals

MakeWriter = Callable[[Path], tuple[Writer, Path]]


def picture(seed: int, height: int = 6, width: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def some(seed: int, count: int = 3, soft: bool = False, height: int = 6, width: int = 8) -> Proposals:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.random((count, height, width)).astype(np.float32))
    scores = torch.from_numpy(rng.random(count).astype(np.float32))
    embeddings = torch.from_numpy(rng.random((count, 5)).astype(np.float32))
    return Proposals(values if soft else values > 0.5, scores, embeddings, source="some")


def npz(tmp_path: Path) -> tuple[Writer, Path]:
    return NpzWriter(tmp_path / "store"), tmp_path / "store"


def coco(tmp_path: Path) -> tuple[Writer, Path]:
    return CocoWriter(tmp_path / "store.json"), tmp_path / "store.json"


def opened(path: Path, **options: Any) -> CachedProposals:
    return CachedProposals(CachedConfig(str(path), **options))


@pytest.mark.parametrize("make", [npz, coco])
def test_what_was_stored_comes_back(tmp_path: Path, make: MakeWriter) -> None:
    writer, path = make(tmp_path)
    stored = {"first": some(1), "none": some(2, count=0), "big": some(3, height=9, width=4)}
    for image_id, proposals in stored.items():
        writer.add(image_id, proposals)
    writer.finish()
    got = opened(path).propose_for(list(stored), [(6, 8), (6, 8), (9, 4)])
    for found, expected in zip(got, stored.values(), strict=True):
        assert found.masks.dtype == torch.bool
        assert torch.equal(found.masks, expected.masks)
        torch.testing.assert_close(found.scores, expected.scores)


def test_npz_keeps_soft_masks_embeddings_and_source(tmp_path: Path) -> None:
    expected = some(1, soft=True)
    files.write_npz(tmp_path / "x.npz", expected)
    (found,) = opened(tmp_path).propose_for(["x"], [(6, 8)])
    assert float((found.masks - expected.masks).abs().max()) <= 0.5 / 255 + 1e-6
    assert expected.embeddings is not None
    assert found.embeddings is not None
    assert torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(found.scores, expected.scores)
    assert found.source == "some"


@pytest.mark.parametrize("make", [npz, coco])
def test_images_are_found_by_their_pixels(tmp_path: Path, make: MakeWriter) -> None:
    writer, path = make(tmp_path)
    images = [picture(seed) for seed in range(3)]
    for number, image in enumerate(images[:2]):
        writer.add(f"image{number}", some(number), files.digest(image))
    writer.add("silent", some(2))
    writer.finish()
    store = opened(path)
    found = store.propose([images[1], images[0]])
    assert torch.equal(found[0].masks, some(1).masks)
    assert torch.equal(found[1].masks, some(0).masks)
    with pytest.raises(
        CacheError, match=r"no proposals for this image of 8 x 6 pixels among 3 \(2 with known"
    ):
        store.propose([images[2]])
    assert len(opened(path, missing="empty").propose([images[2]])[0]) == 0


def test_a_digest_tells_shapes_apart() -> None:
    flat = torch.zeros((3, 2, 8), dtype=torch.uint8)
    assert files.digest(flat) != files.digest(flat.reshape(3, 4, 4))
    assert files.digest(picture(1)) == files.digest(picture(1).flip(-1).flip(-1))


def test_masks_follow_the_size_asked() -> None:
    checks = torch.tensor([[[True, False], [False, True]]])
    hard = resize_masks(Proposals(checks, torch.ones(1)), (4, 6))
    expected = checks.repeat_interleave(2, 1).repeat_interleave(3, 2)
    assert torch.equal(hard.masks, expected)
    soft = resize_masks(Proposals(checks.float(), torch.ones(1)), (2, 4))
    torch.testing.assert_close(soft.masks[0, 0], torch.tensor([1.0, 0.75, 0.25, 0.0]))
    assert resize_masks(some(1, count=0), (3, 3)).masks.shape == (0, 3, 3)


def test_lists_of_other_programs_with_numbers_for_names(tmp_path: Path) -> None:
    entries = [
        {
            "image_id": 9,
            "segmentation": {"size": [2, 2], "counts": [1, 2, 1]},
            "score": 0.5,
            "category_id": 1,
        },
        {"image_id": 9, "segmentation": {"size": [2, 2], "counts": "04"}},
        {"image_id": 25, "segmentation": {"size": [2, 2], "counts": "4"}, "score": 1},
    ]
    path = tmp_path / "x.json"
    for content in (entries, {"annotations": entries}):
        path.write_text(json.dumps(content))
        for name in ("9", "000000000009"):
            (found,) = opened(path).propose_for([name], [(2, 2)])
            assert found.masks.tolist() == [[[False, True], [True, False]], [[True, True], [True, True]]]
            assert found.scores.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("make", [npz, coco])
def test_a_missing_id_names_the_nearest(tmp_path: Path, make: MakeWriter) -> None:
    writer, path = make(tmp_path)
    writer.add("beach_001", some(1))
    writer.add("forest_7", some(1))
    writer.finish()
    with pytest.raises(CacheError, match=r"no proposals for image 'beach_01'.*Did you mean 'beach_001'"):
        opened(path).propose_for(["beach_01"], [(6, 8)])
    (found,) = opened(path, missing="empty").propose_for(["beach_01"], [(3, 5)])
    assert found.masks.shape == (0, 3, 5)


def test_unusable_stores(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "empty", "no proposals are stored"),
        (tmp_path / "nothing", "expected a folder"),
    ):
        with pytest.raises(CacheError, match=says):
            opened(path)
    with pytest.raises(CacheError, match="no such file"):
        opened(tmp_path / "nothing.json")
    with pytest.raises(CacheError, match="missing='none' is unknown"):
        opened(tmp_path, missing="none")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n{"image_id": 1,\n]', "line 3"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}", "expected a list"),
        (b"[]", "no proposals are stored"),
        (b'[{"image_id": 1}]', "entry 0 lacks"),
        (b'[{"image_id": 1, "segmentation": [[0, 0, 1, 1, 0, 1]]}]', "entry 0 is a polygon"),
    ],
)
def test_damaged_lists(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CacheError, match=rf"x\.json: .*{says}"):
        opened(tmp_path / "x.json")


def test_masks_of_two_sizes_in_one_image(tmp_path: Path) -> None:
    entries = [{"image_id": "x", "segmentation": {"size": [n, 2], "counts": [2 * n]}} for n in (2, 3)]
    (tmp_path / "x.json").write_text(json.dumps(entries))
    with pytest.raises(CacheError, match=r"Masks of image 'x' have different sizes"):
        opened(tmp_path / "x.json").propose_for(["x"], [(2, 2)])


@pytest.mark.parametrize("keep", [0, 40, 400])
def test_damaged_npz_are_named(tmp_path: Path, keep: int) -> None:
    files.write_npz(tmp_path / "x.npz", some(1))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:keep])
    with pytest.raises(CacheError, match=r"x\.npz: stored proposals are damaged.*cache again"):
        opened(tmp_path).propose_for(["x"], [(6, 8)])
    with pytest.raises(CacheError, match="0 with known pixels"):
        opened(tmp_path).propose([picture(1)])


def test_npz_that_vanished(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "x.npz", some(1))
    store = opened(tmp_path)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(CacheError, match=r"x\.npz: no proposals are stored here"):
        store.propose_for(["x"], [(6, 8)])


def test_tiny_answers_every_image_with_nothing() -> None:
    (found,) = CachedProposals.tiny().propose([picture(0)])
    assert found.masks.shape == (0, 6, 8)
