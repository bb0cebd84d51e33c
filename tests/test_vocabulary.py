"""Words: how they are read, what is refused, who counts as seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from twostage.vocabulary import Vocabulary, VocabularyError, nearest

PETS = Vocabulary((("cat", "kitty"), ("dog",), ("couch", "sofa")), (True, False, True), (3, 7, 300))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cat, sofa|couch, other", (("cat",), ("sofa", "couch"), ("other",))),
        ("cat", (("cat",),)),
        (" cat ,, dog, ", (("cat",), ("dog",))),
        ("sofa | | couch", (("sofa", "couch"),)),
        ("striped ball, straße, 猫", (("striped ball",), ("straße",), ("猫",))),
        (["cat", "dog, wet|hound"], (("cat",), ("dog, wet", "hound"))),
        (("cat",), (("cat",),)),
    ],
)
def test_words_are_split(given: str | list[str], names: tuple[tuple[str, ...], ...]) -> None:
    found = Vocabulary.from_words(given)
    assert found.names == names
    assert found.seen is None
    assert found.label_ids == tuple(range(len(names)))


@pytest.mark.parametrize("given", ["", "  ", ",", [], ["", " "]])
def test_no_words_at_all(given: str | list[str]) -> None:
    with pytest.raises(VocabularyError, match="The class list is empty: give at least one name"):
        Vocabulary.from_words(given)


@pytest.mark.parametrize(
    ("names", "seen", "ids", "message"),
    [
        ((("cat",), ()), None, (), "Class 1 has an empty name"),
        ((("cat", " "),), None, (), "Class 0 has an empty name"),
        ((("cat",), ("dog",), (" cat",)), None, (), "occur twice: cat"),
        ((("cat",), ("dog",)), (True,), (), "Expected 2 seen flags, got 1"),
        ((("cat",), ("dog",)), None, (1,), "Expected 2 different label ids"),
        ((("cat",), ("dog",)), None, (1, 1), "Expected 2 different label ids"),
    ],
)
def test_what_is_refused(
    names: tuple[tuple[str, ...], ...], seen: tuple[bool, ...] | None, ids: tuple[int, ...], message: str
) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(names, seen, ids)


def test_a_bar_alone_is_an_empty_name() -> None:
    with pytest.raises(VocabularyError, match="Class 1 has an empty name"):
        Vocabulary.from_words("cat, |")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# pets\ncat|kitty\n\n dog  # barks\n", encoding="utf-8")
    assert Vocabulary.from_file(path).names == (("cat", "kitty"), ("dog",))
    path.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")  # as editors on Windows save it
    assert Vocabulary.from_file(str(path)).shown == ("cat", "dog")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"Cannot read the class list .*nowhere\.txt: No such file"):
        Vocabulary.from_file(tmp_path / "nowhere.txt")
    path = tmp_path / "latin.txt"
    path.write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(VocabularyError, match="save the class list as UTF-8"):
        Vocabulary.from_file(path)
    path.write_text("# nothing\n")
    with pytest.raises(VocabularyError, match="The class list is empty"):
        Vocabulary.from_file(path)


def test_names_and_positions() -> None:
    assert len(PETS) == 3
    assert PETS.shown == ("cat", "dog", "couch")
    assert (PETS.index("dog"), PETS.index("sofa"), PETS.index(" kitty ")) == (1, 2, 0)
    with pytest.raises(VocabularyError, match=r"Unknown class 'cot'\. Did you mean 'cat'\?"):
        PETS.index("cot")


def test_parts() -> None:
    part = PETS.subset([2, 0])
    assert part.names == (("couch", "sofa"), ("cat", "kitty"))
    assert part.seen == (True, True)
    assert part.label_ids == (300, 3)
    assert Vocabulary.from_words("a, b, c").subset([1]).seen is None
    with pytest.raises(VocabularyError, match="empty"):
        PETS.subset([])


def test_seen_only() -> None:
    assert PETS.seen_only().shown == ("cat", "couch")
    unknown = Vocabulary.from_words("a, b")
    assert unknown.seen_only() is unknown
    with pytest.raises(VocabularyError, match="flag at least one class as seen"):
        unknown.with_seen([]).seen_only()


def test_seen_by_any_name() -> None:
    assert PETS.with_seen([" sofa", "dog"]).seen == (False, True, True)
    assert PETS.with_seen(["puma"]).seen == (False, False, False)
    assert PETS.with_seen(["sofa"]).label_ids == PETS.label_ids


def test_the_digest_is_of_names_in_order_alone() -> None:
    words = Vocabulary.from_words("cat, dog")
    assert words.digest == words.with_seen(["cat"]).digest
    assert words.digest != Vocabulary.from_words("dog, cat").digest
    assert words.digest != Vocabulary.from_words("cat|dog").digest
    assert len(words.digest) == 16
    assert words.digest == "f21c23a32eb0810a"  # the same on every machine


def test_lists_become_tuples_so_that_words_can_be_keys() -> None:
    loose = Vocabulary([["cat"], ["dog"]], [1, 0])  # type: ignore[arg-type]
    assert loose == Vocabulary((("cat",), ("dog",)), (True, False))
    assert {loose: 1}[Vocabulary((("cat",), ("dog",)), (True, False))] == 1


def test_nearest() -> None:
    assert nearest("geometrik", ["geometric", "other"]) == " Did you mean 'geometric'?"
    assert nearest("xyz", ["b", "a"]) == " Allowed: a, b."
    assert nearest("?", [f"{number:03}" for number in range(31)]).endswith("029, ....")


def test_the_class_that_is_everything_else() -> None:
    words = Vocabulary((("sky", "sea"), ("cat",), ("dog",)), background=0)
    assert words.shown == ("background", "cat", "dog")
    assert words.digest == Vocabulary(words.names).digest, "CLIP is shown the same"
    assert words.subset([2, 0]).background == 1
    assert words.subset([2, 1]).background is None
    assert words.with_seen(["cat"]).background == 0
    with pytest.raises(VocabularyError, match="expected the position of one of 3 classes, got 3"):
        Vocabulary(words.names, background=3)
