"""Attention as a weighted sum of groups of terms: written as text, evaluated on queries, keys and values.

    0.5 * qq + 0.5 * captured(5-8)         a sum of maps, each a softmax of its own
    [kk + gauss(5)]                        one softmax over a sum of logits
    1/3 * [1.2*kk + 0.8*feedback] + identity

Every dense reading of CLIP that only changes where a token looks is one such line (see
`twostage.readout.presets`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from twostage.errors import TwostageError
from twostage.vocabulary import nearest

PRODUCTS = ("qk", "qq", "kk", "vv", "kk_centred", "qk_procrustes")
"""Terms that are products of the last block's queries, keys and values."""
LOGITS = (*PRODUCTS, "gauss", "similarity", "feedback", "guest")
"""Terms before the softmax: products, or a bias for every pair of tokens."""
MAPS = ("identity", "captured", "captured_csa", "given")
"""Terms that are a map already, and stand in a group of their own."""
TERMS = (*LOGITS, *MAPS)
ARGUMENTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("qk", "qq", "kk", "vv", "kk_centred", "identity"), (0, 0)),
    **dict.fromkeys(("gauss", "qk_procrustes"), (0, 1)),
    **dict.fromkeys(("captured", "captured_csa"), (1, 99)),
    "similarity": (1, 4),
}
"""How many numbers a term takes at least and at most; terms that are not here take any."""
BLOCKS_FIRST = {"captured": 99, "captured_csa": 99, "similarity": 1}
"""How many of a term's numbers, from the first, are block numbers."""
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([a-z_]+)|(.))")


class AttentionError(TwostageError):
    """An attention is not written as it should be, or needs something that is not there."""


@dataclass(frozen=True)
class Term:
    """One summand. arguments: block numbers or constants in brackets after the name."""

    name: str
    weight: float = 1.0
    arguments: tuple[float, ...] = ()


@dataclass(frozen=True)
class Group:
    """Terms that share one softmax, and the weight of the map that comes out."""

    terms: tuple[Term, ...]
    weight: float = 1.0


@lru_cache(maxsize=256)
def parse(text: str) -> tuple[Group, ...]:
    """The groups of an attention.

    Raises:
        AttentionError: with the place, what is allowed there, and the nearest name.
    """
    groups = tuple(_Parser(text).groups())
    for group in groups:
        for term in group.terms:
            if term.name in MAPS and len(group.terms) > 1:
                raise AttentionError(
                    f"Attention {text!r}: {term.name} is a map already and cannot be added before a softmax: "
                    f"take it out of the square brackets."
                )
    return groups


def blocks_in(term: Term) -> tuple[float, ...]:
    """Those of a term's numbers that are block numbers."""
    return term.arguments[: BLOCKS_FIRST.get(term.name, 0)]


def blocks_of(groups: tuple[Group, ...], name: str) -> list[tuple[int, ...]]:
    """The block numbers that terms of this name ask for, a tuple a term, each once."""
    found = [
        tuple(int(number) for number in blocks_in(term))
        for group in groups
        for term in group.terms
        if term.name == name
    ]
    return list(dict.fromkeys(found))


class _Parser:
    """Reads from left to right; one token of foresight."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.place = 0

    def groups(self) -> Iterator[Group]:
        while True:
            weight = self._weight()
            if self._take("["):
                terms = [self._term(self._weight())]
                while self._take("+"):
                    terms.append(self._term(self._weight()))
                self._expect("]")
                yield Group(tuple(terms), weight)
            else:
                yield Group((self._term(1.0),), weight)
            if not self._take("+"):
                break
        if self.place < len(self.tokens):
            raise self._error("'+' or the end")

    def _weight(self) -> float:
        weight = self._number()
        if weight is None:
            return 1.0
        if self._take("/"):
            below = self._number()
            if not below:
                raise self._error("a number above zero")
            weight /= below
        self._take("*")
        return weight

    def _term(self, weight: float) -> Term:
        kind, name = self._peek()
        if kind != "name":
            raise self._error("a term")
        if name not in TERMS:
            raise AttentionError(f"Attention {self.text!r}: unknown term {name!r}.{nearest(name, TERMS)}")
        self.place += 1
        term = Term(name, weight, tuple(self._arguments()) if self._take("(") else ())
        self._check(term)
        return term

    def _check(self, term: Term) -> None:
        least, most = ARGUMENTS.get(term.name, (0, 99))
        if not least <= len(term.arguments) <= most:
            expected = (
                f"at least {least}" if most == 99 else f"{least}" if least == most else f"{least} to {most}"
            )
            raise AttentionError(
                f"Attention {self.text!r}: {term.name} takes {expected} number(s) in brackets, got "
                f"{len(term.arguments)}. Write for instance gauss(5), captured(5-8) or similarity(8, 1, 3)."
            )
        blocks = blocks_in(term)
        for number in blocks:
            if number != int(number) or blocks.count(number) > 1:
                wrong = f"got {number}" if number != int(number) else f"got {int(number)} twice"
                raise AttentionError(
                    f"Attention {self.text!r}: {term.name} takes whole blocks, counted from 0, each once; "
                    f"{wrong}."
                )

    def _arguments(self) -> Iterator[float]:
        while True:
            number = self._number()
            if number is None:
                raise self._error("a number")
            yield number
            if self._take("-"):
                last = self._number()
                if last is None or last < number:
                    raise self._error("the last number of a range")
                yield from (float(one) for one in range(int(number) + 1, int(last) + 1))
            if not self._take(","):
                break
        self._expect(")")

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")

    def _number(self) -> float | None:
        kind, value = self._peek()
        if kind != "number":
            return None
        self.place += 1
        return float(value)

    def _take(self, sign: str) -> bool:
        if self._peek() != ("sign", sign):
            return False
        self.place += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._error(repr(sign))

    def _error(self, expected: str) -> AttentionError:
        found = self._peek()[1]
        return AttentionError(
            f"Attention {self.text!r}: expected {expected}, found {repr(found) if found else 'the end'}. "
            "Write groups joined by '+', as in '0.5 * qq + 0.5 * [kk + gauss(5)] + captured(5-8)'."
        )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for number, name, sign in _TOKEN.findall(text.strip()):
        yield ("number", number) if number else ("name", name) if name else ("sign", sign)


def written(groups: tuple[Group, ...], move: Mapping[int, int] | None = None) -> str:
    """An attention as text again; move: new block numbers by the old ones, for terms that name blocks."""
    return " + ".join(
        f"{_plain(group.weight)} * [" + " + ".join(_written(term, move) for term in group.terms) + "]"
        for group in groups
    )


def _written(term: Term, move: Mapping[int, int] | None) -> str:
    blocks = [int(one) for one in blocks_in(term)]
    if move is not None:
        blocks = list(dict.fromkeys(move[one] for one in blocks))
    others = [int(one) if one == int(one) else one for one in term.arguments[len(blocks_in(term)) :]]
    numbers = [*blocks, *others]
    arguments = f"({', '.join(_plain(one) for one in numbers)})" if numbers else ""
    return f"{_plain(term.weight)} * {term.name}{arguments}"


def _plain(number: float) -> str:
    """All digits of a number, without an exponent."""
    return format(Decimal(repr(number)), "f")
