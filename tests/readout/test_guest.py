"""Second vision models: from an option to a function, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.readout import guest as guests
from twostage.readout import presets, timm_guest, vit
from twostage.readout.engine import Tower
from twostage.readout.guest import GuestError
from twostage.readout.look import Guest, Look

TINY = "test_vit"
"""timm's smallest VisionTransformer: patches of 16 pixels, width 64."""


def thirds(rgb: Tensor) -> Tensor:
    """A guest of one's own, found by its dotted path."""
    return F.avg_pool2d(rgb, 3)


not_a_function = 3


def load(small: ClipModel, name: str) -> Guest:
    return guests.load(name, Tower(small.visual), small.mean, small.std)


def look(small: ClipModel, guest: Any, batch: int = 2) -> Look:
    knobs = presets.find("naclip").knobs
    pixels = torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    return Look(Tower(small.visual), knobs, pixels, torch.zeros(1, 32), guest=guest)


def rgb(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(4)
    return timm.create_model(TINY, num_classes=0, dynamic_img_size=True).eval()


def test_a_function_of_ones_own(small: ClipModel) -> None:
    assert load(small, "tests.readout.test_guest:thirds").__name__ == "thirds"  # type: ignore[attr-defined]


def test_clip_stands_in_with_its_last_keys(small: ClipModel) -> None:
    found = load(small, "clip")(rgb(32, 48))
    assert found.shape == (2, 4, 16, 4, 6)
    mean, std = (torch.tensor(one).reshape(1, 3, 1, 1) for one in (small.mean, small.std))
    visual: Any = small.visual
    with torch.no_grad():
        tokens, _ = vit.embed(visual, (rgb(32, 48) - mean) / std)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        last = visual.transformer.resblocks[-1]
        keys = last.ln_1(tokens) @ last.attn.in_proj_weight[64:128].T + last.attn.in_proj_bias[64:128]
    for head in range(4):
        for row, column in ((0, 0), (3, 5), (1, 2)):
            expected = keys[1, 1 + row * 6 + column, 16 * head : 16 * head + 16]
            torch.testing.assert_close(found[1, head, :, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", ["plain", "model", "safetensors", "module", "head"])
def test_timm_with_a_local_file(small: ClipModel, model: Any, tmp_path: Path, wrap: str) -> None:
    state = dict(model.state_dict())
    path = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "model":
        torch.save({"model": state, "epoch": 3}, path)
    elif wrap == "module":
        torch.save({"teacher": {f"module.backbone.{name}": value for name, value in state.items()}}, path)
    else:
        more = {"head.weight": torch.zeros(5, 64)} if wrap == "head" else {}
        torch.save({**state, **more}, path)
    found = load(small, f"timm:{TINY}@{path}")
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[one]).reshape(1, 3, 1, 1) for one in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features((rgb(48, 64) - mean) / std)
        got = found(rgb(48, 64))
    assert got.shape == (2, 64, 3, 4)
    assert torch.equal(got[1, :, 2, 1], tokens[1, 1 + 2 * 4 + 1])
    assert not any(one.requires_grad for one in found.model.parameters())  # type: ignore[attr-defined]


def test_timm_takes_whole_patches(small: ClipModel, model: Any, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = load(small, f"timm:{TINY}@{tmp_path / 'w.pth'}")
    assert found(rgb(40, 56)).shape == (2, 64, 2, 4), "2.5 and 3.5 patches, to the nearest even number"
    assert found(rgb(4, 7)).shape == (2, 64, 1, 1), "at least one patch"


def test_timms_own_weights(small: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = timm.create_model

    def create(name: str, **options: Any) -> Any:
        asked.append(options)
        return real(name, **{**options, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", create)
    load(small, f"timm:{TINY}")
    assert asked[0]["pretrained"] is True

    def unreachable(name: str, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(GuestError, match=rf"no network\).* give a local file: timm:{TINY}@FILE"):
        load(small, f"timm:{TINY}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clop", "expected 'clip', 'timm:MODEL'.*Did you mean 'clip'"),
        ("timm:", "expected 'clip'"),
        (":x", "expected 'clip'"),
        (f"timm:{TINY}@", "expected a file after '@'"),
        (f"timm:{TINY}@nowhere.pth", "there is no file nowhere.pth"),
        ("timm:test_vti@x.pth", "timm has no model 'test_vti'.*Did you mean 'test_vit'"),
        ("timm:test_resnet@x.pth", "no patches of a VisionTransformer"),
        ("no such:thing", "expected 'clip'"),
        ("tests.readout.nowhere:thing", "cannot import 'tests.readout.nowhere'"),
        ("tests.readout.test_guest:third", "Did you mean 'thirds'"),
        ("tests.readout.test_guest:not_a_function", "expected a function .* found 3"),
        ("tests.readout.test_guest:GuestError", "expected a function"),
    ],
)
def test_bad_names(small: ClipModel, name: str, words: str) -> None:
    with pytest.raises(GuestError, match=words):
        load(small, name)


def test_a_model_without_patch_tokens(small: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, **options: torch.nn.Linear(2, 2))
    with pytest.raises(GuestError, match="it has no patch tokens"):
        load(small, f"timm:{TINY}")


def test_without_timm(small: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(timm_guest.importlib, "import_module", missing)
    with pytest.raises(GuestError, match="pip install timm"):
        load(small, f"timm:{TINY}")


class Pickled:
    """What a file of weights must not hold."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"noise", "is damaged"),
        (Pickled(), "is damaged, or holds more than tensors"),
        ([1, 2], "holds no weights by name"),
        ({"model": {"a": 3}}, "holds no weights by name"),
        ("one missing", "Missing key"),
        ("one wider", "size mismatch"),
        ("one more", "Unexpected key"),
    ],
    ids=str,
)
def test_bad_files(small: ClipModel, model: Any, tmp_path: Path, content: Any, words: str) -> None:
    path, state = tmp_path / "bad.pth", dict(model.state_dict())
    if content == "one missing":
        del state["norm.weight"]
    elif content == "one wider":
        state["norm.weight"] = torch.ones(65)
    elif content == "one more":
        state["extra"] = torch.ones(1)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(state if isinstance(content, str) else content, path)
    with pytest.raises(GuestError, match=words):
        load(small, f"timm:{TINY}@{path}")


def test_what_a_guest_gives(small: ClipModel) -> None:
    flat = guests.features(look(small, thirds))
    assert flat.shape == (2, 1, 3, 10, 16)
    with_heads = guests.features(look(small, lambda rgb: rgb[:, None].half()))
    assert with_heads.shape == (2, 1, 3, 32, 48)
    assert with_heads.dtype == torch.float32
    with pytest.raises(GuestError, match=r"expected features \(2, C, h, w\).*got \(2, 3\)"):
        guests.features(look(small, lambda rgb: rgb.mean((2, 3))))
    with pytest.raises(GuestError, match=r"got \(1, 3, 32, 48\)"):
        guests.features(look(small, lambda rgb: rgb[:1]))
    with pytest.raises(GuestError, match="got list"):
        guests.features(look(small, lambda rgb: [rgb]))
    with pytest.raises(GuestError, match="was given none: name a guest"):
        guests.features(look(small, None))


def test_likeness_is_the_cosine_of_all_channels() -> None:
    found = torch.randn(2, 3, 5, 2, 4, generator=torch.Generator().manual_seed(2))
    got = guests.likeness(found)
    for one in range(2):
        for a in range(8):
            for b in range(8):
                first, second = (found[one, :, :, at // 4, at % 4].flatten() for at in (a, b))
                torch.testing.assert_close(got[one, a, b], F.cosine_similarity(first, second, dim=0))
    assert guests.resized(found, (2, 4)) is found
    expected = F.interpolate(found[:, 1], (3, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(guests.resized(found, (3, 3))[:, 1], expected)
    assert not guests.likeness(torch.zeros(1, 1, 2, 2, 2)).any(), "no feature is like nothing"
