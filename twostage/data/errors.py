"""What can be wrong with somebody's data; each message names the file and says what to do."""

from __future__ import annotations

from twostage.errors import TwostageError


class DataError(TwostageError):
    """A file or folder of a data set cannot be used; the message names it and says what to do."""


class ImageReadError(DataError):
    """An image or mask file is missing, broken, too large, or of a kind that is not read."""


class LabelError(DataError):
    """A label map holds values that no class stands for, or has another size than its image."""


class DatasetError(DataError):
    """A data set as a whole is missing a part: its folder, class list, split, images or masks."""
