"""The language of attention: what is read from a line, what is refused, and that a line survives writing."""

from __future__ import annotations

import pytest

from twostage.readout import presets
from twostage.readout.attention import (
    ARGUMENTS,
    TERMS,
    AttentionError,
    Group,
    Term,
    blocks_of,
    parse,
    written,
)
from twostage.readout.knobs import Knobs

ALONE = Group((Term("qq"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qq", (ALONE,)),
        ("  qq  ", (ALONE,)),
        ("qq + kk", (ALONE, Group((Term("kk"),)))),
        ("0.5 * qq", (Group((Term("qq"),), 0.5),)),
        (".5*qq", (Group((Term("qq"),), 0.5),)),
        ("2 qq", (Group((Term("qq"),), 2.0),)),
        ("1/4 * qq", (Group((Term("qq"),), 0.25),)),
        ("1 / 0.5 * qq", (Group((Term("qq"),), 2.0),)),
        ("[kk + gauss(5)]", (Group((Term("kk"), Term("gauss", 1.0, (5.0,)))),)),
        (
            "1/2 * [1.2 * kk + 0.8 * feedback] + identity",
            (Group((Term("kk", 1.2), Term("feedback", 0.8)), 0.5), Group((Term("identity"),))),
        ),
        ("captured(5-8)", (Group((Term("captured", 1.0, (5.0, 6.0, 7.0, 8.0)),)),)),
        ("captured(1, 3-4, 9)", (Group((Term("captured", 1.0, (1.0, 3.0, 4.0, 9.0)),)),)),
        ("captured(4-4)", (Group((Term("captured", 1.0, (4.0,)),)),)),
        ("similarity(8, 1.2, 3, 0.4)", (Group((Term("similarity", 1.0, (8.0, 1.2, 3.0, 0.4)),)),)),
        ("[2 * identity]", (Group((Term("identity", 2.0),)),)),
    ],
)
def test_what_a_line_means(text: str, expected: tuple[Group, ...]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a term, found the end"),
        ("qq +", "expected a term, found the end"),
        ("0.5 *", "expected a term, found the end"),
        ("+ qq", r"expected a term, found '\+'"),
        ("qq kk", r"expected '\+' or the end, found 'kk'"),
        ("qq, kk", r"expected '\+' or the end, found ','"),
        ("qq]", r"expected '\+' or the end, found '\]'"),
        ("[qq + kk", r"expected '\]', found the end"),
        ("[]", r"expected a term, found '\]'"),
        ("[[qq]]", r"expected a term, found '\['"),
        ("captured(5", r"expected '\)', found the end"),
        ("captured()", r"expected a number, found '\)'"),
        ("captured(a)", "expected a number, found 'a'"),
        ("captured(5,)", r"expected a number, found '\)'"),
        ("captured(5-)", "expected the last number of a range"),
        ("captured(8-5)", "expected the last number of a range"),
        ("1/0 * qq", "expected a number above zero"),
        ("1/x * qq", "expected a number above zero, found 'x'"),
        ("gaus(5)", "unknown term 'gaus'. Did you mean 'gauss'"),
        ("QQ", "expected a term, found 'Q'"),
        ("-1 * qq", "expected a term, found '-'"),
        ("[qq + captured(5)]", "captured is a map already"),
        ("[identity + gauss]", "identity is a map already"),
        ("captured", r"captured takes at least 1 number\(s\) in brackets, got 0"),
        ("similarity", r"similarity takes 1 to 4 number\(s\) in brackets, got 0"),
        ("similarity(1, 2, 3, 4, 5)", "similarity takes 1 to 4"),
        ("gauss(1, 2)", "gauss takes 0 to 1"),
        ("qq(3)", "qq takes 0 number"),
        ("captured(5.5)", r"captured takes whole blocks, counted from 0, each once; got 5\.5"),
        ("captured(5, 4-6)", "each once; got 5 twice"),
        ("similarity(0.5)", "similarity takes whole blocks"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AttentionError, match=reason):
        parse(text)


def test_errors_show_how_to_write_it() -> None:
    with pytest.raises(AttentionError, match="Write groups joined by"):
        parse("qq kk")
    with pytest.raises(AttentionError, match="Write for instance"):
        parse("qq(1)")


def test_similarity_needs_keys_that_are_patches() -> None:
    for knobs in ({"attention": "similarity(8)"}, {"levels_attention": "similarity(8)", "levels": (3, 10)}):
        with pytest.raises(AttentionError, match="similarity knows patches only"):
            Knobs(**knobs)  # type: ignore[arg-type]
        assert Knobs(**knobs, keys="patches").keys == "patches"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_survives_writing(name: str) -> None:
    knobs = presets.find(name).knobs
    for groups in (knobs.groups, knobs.level_groups):
        assert parse(written(groups)) == groups


def test_block_numbers_can_be_moved() -> None:
    groups = parse("1/3 * [qq + gauss(5)] + captured(5-8) + captured_csa(6) + similarity(8, 1, 3, 0.4)")
    assert blocks_of(groups, "captured") == [(5, 6, 7, 8)]
    assert blocks_of(groups, "similarity") == [(8,)]
    assert blocks_of(parse("captured(2) + qq + captured(2) + captured(3)"), "captured") == [(2,), (3,)]
    moved = parse(written(groups, {5: 1, 6: 2, 7: 2, 8: 3}))
    assert moved[0] == groups[0], "constants stay"
    assert blocks_of(moved, "captured") == [(1, 2, 3)], "blocks that fall together count once"
    assert blocks_of(moved, "captured_csa") == [(2,)]
    assert moved[3].terms[0].arguments == (3.0, 1.0, 3.0, 0.4)


def test_terms_with_arguments_are_terms() -> None:
    assert set(ARGUMENTS) <= set(TERMS)
