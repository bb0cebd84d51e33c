"""What this package answers to a file it cannot use."""

from __future__ import annotations

from twostage.errors import TwostageError


class PublishedError(TwostageError):
    """A published weights file is of an unknown kind, incomplete, or holds what it should not."""
