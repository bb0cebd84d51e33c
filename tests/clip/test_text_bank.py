"""Templates, averaging, synonyms, the cache, and features from files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor
from torch.nn import functional as F

from twostage.clip import prompts
from twostage.clip.model import ClipModel
from twostage.clip.prompts import PromptError
from twostage.clip.text_bank import TextBankError, build_text_bank, load_text_bank
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary.from_words("cat, sofa|couch|settee, road {2}, tv")


class CountingEncoder:
    """Stands in for CLIP: a random unit row for each prompt, and a list of what was asked."""

    digest = "abc"
    logit_scale = 42.0

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.asked.append(list(texts))
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(hash(t) % 2**31)) for t in texts]
        return F.normalize(torch.stack(rows), dim=-1)


def test_the_shipped_sets() -> None:
    assert prompts.available() == ["imagenet", "single", "vild"]
    sizes = {name: len(prompts.load_templates(name)) for name in prompts.available()}
    assert sizes == {"imagenet": 80, "single": 1, "vild": 14}
    assert prompts.load_templates("single") == ("a sculpture of a {}.",)
    vild = prompts.load_templates("vild")
    assert [t for t in vild if not t.endswith(".")] == [
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
    ]
    imagenet = prompts.load_templates("imagenet")
    assert len(set(imagenet)) == 80
    assert all(t.endswith(".") and t.count("{}") == 1 for t in imagenet)
    assert {"itap of my {}.", "a origami {}.", "a {} in a video game."} <= set(imagenet)


def test_own_templates(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a {} here\n\n  the {}. \n", encoding="utf-8")
    assert prompts.load_templates(path) == prompts.load_templates(["a {} here", "the {}."])
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    for bad, words in [
        (["a {}.", "no slot"], "template 2 'no slot' has no {}"),
        ([], "at least one template"),
        (tmp_path / "empty.txt", "at least one template"),
        ("imagenett", "Did you mean 'imagenet'"),
        ("a photo of a {}.", "put it into a list"),
    ]:
        with pytest.raises(PromptError, match=words):
            prompts.load_templates(bad)


def test_each_prompt_is_normalised_then_the_mean(tiny_vit: ClipModel) -> None:
    templates = prompts.load_templates("vild")
    bank = build_text_bank(tiny_vit, WORDS, "vild", chunk=30)
    rows = []
    for name in ("cat", "sofa", "couch", "settee", "road {2}", "tv"):
        with torch.no_grad():
            filled = [t.replace("{}", name) for t in templates]
            each = [tiny_vit._module.encode_text(tiny_vit._tokenizer([f]))[0] for f in filled]
        mean = sum(row / row.norm() for row in each) / 14
        rows.append(mean / mean.norm())
    torch.testing.assert_close(bank.features, torch.stack(rows), rtol=0, atol=3e-6)
    assert bank.class_of.tolist() == [0, 1, 1, 1, 2, 3]
    assert bank.num_classes == 4
    assert bank.logit_scale == 100.0


def test_options_of_a_bank() -> None:
    clip, steps = CountingEncoder(), []
    shared = Vocabulary((("cat", "animal"), ("dog", "animal")))
    bank = build_text_bank(
        clip,
        shared,
        ["{}", "the {}"],
        logit_scale="model",
        no_object=torch.full((1, 8), 3.0),
        progress=lambda done, total: steps.append((done, total)),
        chunk=4,
    )
    assert clip.asked == [["cat", "the cat", "animal", "the animal"], ["dog", "the dog"]], "once a name"
    assert steps == [(2, 3), (3, 3)]
    assert torch.equal(bank.features[1], bank.features[3])
    assert bank.logit_scale == 42.0
    torch.testing.assert_close(bank.no_object, torch.full((8,), 8**-0.5))
    assert build_text_bank(clip, shared, ["{}"], logit_scale=7).logit_scale == 7.0
    for bad in ("papr", 0, -1.0):
        with pytest.raises(TextBankError, match="logit_scale"):
            build_text_bank(clip, shared, ["{}"], logit_scale=bad)  # type: ignore[arg-type]


def test_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = CountingEncoder()
    first = build_text_bank(clip, WORDS, ["{}"], cache_dir=tmp_path / "text")
    (file,) = (tmp_path / "text").iterdir()
    again = build_text_bank(clip, WORDS, ["{}"], cache_dir=tmp_path / "text")
    assert len(clip.asked) == 1
    assert torch.equal(first.features, again.features)

    build_text_bank(clip, WORDS, ["the {}"], cache_dir=tmp_path / "text")
    build_text_bank(clip, Vocabulary.from_words("cat, sofa"), ["{}"], cache_dir=tmp_path / "text")
    clip.digest = "another model"
    build_text_bank(clip, WORDS, ["{}"], cache_dir=tmp_path / "text")
    assert len(clip.asked) == 4
    assert len(list((tmp_path / "text").iterdir())) == 4, (
        "templates, names and model are in the key, no leftovers"
    )

    clip.digest = "abc"
    good = first.features
    not_unit, short = good * 2, good[:2].clone()
    for damage in (b"", file.read_bytes()[:-9], not_unit, short):
        caplog.clear()
        if isinstance(damage, bytes):
            file.write_bytes(damage)
        else:
            save_file({"features": damage}, file)
        with caplog.at_level(logging.WARNING):
            remade = build_text_bank(clip, WORDS, ["{}"], cache_dir=tmp_path / "text")
        assert "is damaged" in caplog.text
        assert torch.equal(remade.features, first.features)
        assert torch.equal(load(file.read_bytes())["features"], first.features)


def test_features_from_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float16)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", text=rows)
    save_file({"text": torch.from_numpy(rows)}, tmp_path / "a.safetensors")
    expected = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    for suffix in ("npy", "npz", "safetensors"):
        bank = load_text_bank(tmp_path / f"a.{suffix}", WORDS, dim=6)
        np.testing.assert_allclose(bank.features.numpy(), expected, atol=1e-6)
        assert bank.class_of.tolist() == [0, 1, 2, 3]

    listed = ["tv", "couch", "cat", "road {2}"]
    (tmp_path / "names.json").write_text(json.dumps(listed), encoding="utf-8")
    picked = load_text_bank(tmp_path / "a.npy", WORDS, tmp_path / "names.json")
    np.testing.assert_allclose(picked.features.numpy(), expected[[2, 1, 3, 0]], atol=1e-6)

    every = np.random.default_rng(1).normal(size=(6, 6))
    np.save(tmp_path / "every.npy", every)
    assert load_text_bank(tmp_path / "every.npy", WORDS).class_of.tolist() == [0, 1, 1, 1, 2, 3]
    some = load_text_bank(tmp_path / "a.npy", Vocabulary.from_words("sofa|couch|tv"), listed)
    assert some.class_of.tolist() == [0, 0]


def test_unfit_files(tmp_path: Path) -> None:
    rows = np.ones((3, 6), np.float32)
    np.save(tmp_path / "three.npy", rows)
    rows[1] = 0
    np.save(tmp_path / "zero.npy", rows)
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "text.txt").write_text("1 2", encoding="utf-8")
    (tmp_path / "odd.json").write_text('{"a": 1}', encoding="utf-8")
    three = Vocabulary.from_words("a, b, c")
    for file, words, names, options in [
        ("three.npy", WORDS, None, "expected 4 rows"),
        ("three.npy", WORDS, ["a"], "holds 3 rows, but 1 names"),
        ("three.npy", WORDS, ["cat", "sofas", "tv"], "no row for the class 'sofa'. Did you mean 'sofas'"),
        ("three.npy", three, tmp_path / "odd.json", "expected a JSON list"),
        ("three.npy", three, tmp_path / "absent.json", "cannot be read as a JSON list"),
        ("zero.npy", three, None, "row 1 is zero"),
        ("flat.npy", three, None, r"shape \(rows, D\)"),
        ("two.npz", three, None, "several arrays"),
        ("broken.npy", three, None, "cannot be read"),
        ("absent.npy", three, None, "cannot be read"),
        ("text.txt", three, None, "expected a .npy"),
    ]:
        with pytest.raises(TextBankError, match=options):
            load_text_bank(tmp_path / file, words, names)
    with pytest.raises(TextBankError, match=r"expected text features of shape \(rows, 512\)"):
        load_text_bank(tmp_path / "three.npy", three, dim=512)
    with pytest.raises(TextBankError, match="holds no array 'c'"):
        load_text_bank(tmp_path / "two.npz", three, key="c")


@pytest.mark.real
def test_real_text_features() -> None:
    """Features of real CLIP models: related words are closer than unrelated ones."""
    root = os.environ.get("TWOSTAGE_TEST_DATA")
    if not root:
        pytest.skip("TWOSTAGE_TEST_DATA names no folder with real text features")
    names = json.loads((Path(root) / "class_names.json").read_text(encoding="utf-8"))["COCO_STUFF_CATEGORIES"]
    file = Path(root) / "text_embeddings" / "zegclip_coco_single.npy"
    words = Vocabulary.from_words(["cat", "dog", "car", "truck"])
    bank = load_text_bank(file, words, names, dim=512)
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(4))
    cosines = bank.features @ bank.features.T
    assert cosines[0, 1] > cosines[0, 2]
    assert cosines[2, 3] > cosines[1, 3]
    whole = load_text_bank(file, Vocabulary(tuple((name,) for name in names)))
    assert torch.equal(whole.features[names.index("dog")], bank.features[1])
    with pytest.raises(TextBankError, match="expected 4 rows"):
        load_text_bank(file, words)
