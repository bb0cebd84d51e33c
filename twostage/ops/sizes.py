"""Whether two sizes can be of one picture: scaled, but not cut, turned or stretched."""

from __future__ import annotations


def only_scaled(first_hw: tuple[int, int], second_hw: tuple[int, int]) -> bool:
    """Whether both have one aspect ratio, given that each edge may be a whole pixel off after rounding.

    With true edges a and b, sizes (s a + e, s b + f) and (t a + g, t b + h) and errors below one pixel, the
    difference of the cross products is below the sum of the four edges.
    """
    (height, width), (other_height, other_width) = first_hw, second_hw
    slack = height + width + other_height + other_width
    return abs(height * other_width - width * other_height) <= slack


def told(size_hw: tuple[int, int]) -> str:
    """ "640 x 480" (width x height), as people and picture viewers say it."""
    return f"{size_hw[1]} x {size_hw[0]}"


def mismatch(
    name: str, image_hw: tuple[int, int], masks_hw: tuple[int, int], what: str = "its masks are"
) -> str:
    """The sentence about a picture and what belongs to it, of sizes that do not go together."""
    hint = "They belong to another picture, or to a part of this one."
    if only_scaled(image_hw, (masks_hw[1], masks_hw[0])):
        hint = "Width and height have changed places: was the photo turned afterwards?"
    return f"{name} is {told(image_hw)} (width x height), but {what} {told(masks_hw)}. {hint}"
