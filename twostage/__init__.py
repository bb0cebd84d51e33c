"""Two-stage open-vocabulary semantic segmentation: propose masks, let CLIP name them, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from twostage.predict import load


def __getattr__(name: str) -> Any:
    """`twostage.load` without paying for torch at import."""
    if name == "load":
        from twostage.predict import load

        return load
    raise AttributeError(f"module 'twostage' has no attribute {name!r}")
