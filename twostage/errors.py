"""The base class of all a user can do wrong: programs answer with its message, not with a traceback."""

from __future__ import annotations


class TwostageError(ValueError):
    """Something given cannot be used: the message says where, what was expected, what came, what to do."""
