"""Ready-made systems: configuration files that ship with the package, by name.

Every file begins with a comment; its first line says what the system is, the rest what it needs.
"""

from __future__ import annotations

from pathlib import Path

from twostage.errors import TwostageError
from twostage.vocabulary import nearest

_FOLDER = Path(__file__).resolve().parent


class ZooError(TwostageError):
    """There is no ready-made system of that name."""


def names() -> list[str]:
    """The ready-made systems, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def path(name: str) -> Path:
    """The configuration file of a system.

    Raises:
        ZooError: no such system; the message names the nearest.
    """
    if name not in names():
        raise ZooError(f"Unknown ready-made system {name!r}.{nearest(name, names())}")
    return _FOLDER / f"{name}.yaml"


def describe(name: str) -> str:
    """What a system is, in one line.

    Raises:
        ZooError: no such system.
    """
    first, _, _ = path(name).read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip()


def notes(name: str) -> str:
    """All that the head of a system's file says of it: what it needs, how large that is, what is known of it.

    Raises:
        ZooError: no such system.
    """
    head = []
    for line in path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return "\n".join(head)
