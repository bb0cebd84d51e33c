"""What became of every tensor of a file: mapped, ignored for a reason, or why the file is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from twostage.published.errors import PublishedError

SHOWN = 5
"""Names that a line lists before it counts the rest."""


@dataclass(frozen=True)
class Report:
    """The account of one file.

    where: the file; what: what it was recognised as; mapped: part -> number of tensors taken; ignored:
    reason -> names left out on purpose; missing, unexpected: names; unfit: lines on other shapes or values.
    """

    where: str
    what: str
    mapped: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    unfit: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor has its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.unfit)

    def format(self) -> str:
        """The account in lines for people."""
        lines = [f"{self.where}: {self.what}"]
        lines += [f"  mapped: {count} tensors of {part}" for part, count in self.mapped.items()]
        lines += [
            f"  ignored: {len(names)} ({_some(names)}): {reason}" for reason, names in self.ignored.items()
        ]
        for what, found in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("unfit", self.unfit),
        ):
            if found:
                lines.append(f"  {what}: {len(found)} ({_some(found)})")
        return "\n".join(lines)

    def require_complete(self, advice: str) -> None:
        """Raises PublishedError with the whole account and the advice unless everything fits."""
        if not self.complete:
            raise PublishedError(f"{self.format()}\nNothing was loaded. {advice}")


def compare(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Names missing in `got`, names that nobody expects, and lines on those of another shape."""
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    unfit = [
        f"{name}: expected {shape}, got {tuple(got[name].shape)}"
        for name, shape in expected.items()
        if name in got and tuple(got[name].shape) != shape
    ]
    return missing, unexpected, unfit


def _some(names: Sequence[str]) -> str:
    more = f", ... {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
