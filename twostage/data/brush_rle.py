"""Label Studio's run-length encoding of brush masks: a list of bytes read as a stream of bits.

Label Studio packs the RGBA picture of a brush with thi.ng/rle-pack (its README has the layout). The stream,
highest bit first: 32 bits, the number of words; 5 bits, bits a word less one; four times 4 bits, the four
widths of a length, less one. Then chunks: 1 bit (1: one word repeated, 0: different words), 2 bits (which
width), the length less one, and the word, or all the words. The mask is the alpha channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twostage.data.rle import RLEError

_HEADER_BITS = 32 + 5 + 4 * 4
_CHANNELS = 4
_INSIDE = 128
"""Alpha from which a pixel counts as painted; the rims of a stroke are half transparent."""


def decode_brush(rle: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """rle: bytes 0..255 as numbers; size_hw: of the photo that was painted on -> (H, W) bool.

    Raises:
        RLEError: not bytes, cut off, or made for another number of pixels.
    """
    height, width = size_hw
    words = unpack(rle, expected=height * width * _CHANNELS, told=f"{width} x {height} pixels of RGBA")
    return words.reshape(height, width, _CHANNELS)[..., 3] >= _INSIDE


def unpack(rle: Sequence[int], expected: int, told: str) -> NDArray[np.uint8]:
    """The bytes that were packed, (expected,) uint8. told: what they are, for messages.

    Raises:
        RLEError: as decode_brush.
    """
    bits = _Bits(rle)
    if len(bits) < _HEADER_BITS:
        raise RLEError(f"brush: {len(bits) // 8} bytes are too few for a header.")
    count, word_bits = bits.number(32), bits.number(5) + 1
    lengths = [bits.number(4) + 1 for _ in range(4)]
    if count != expected:
        raise RLEError(
            f"brush: the header speaks of {count} words, {told} have {expected}. The mask is of another "
            "photo, or its original_width and original_height are wrong."
        )
    if word_bits != 8:
        raise RLEError(f"brush: words of {word_bits} bits, expected 8: this is no Label Studio mask.")
    out = np.empty(count, dtype=np.uint8)
    done = 0
    while done < count:
        repeated = bits.number(1)
        run = bits.number(lengths[bits.number(2)]) + 1
        if run > count - done:
            raise RLEError(f"brush: the runs cover more than {count} words: the file is damaged.")
        out[done : done + run] = bits.number(8) if repeated else bits.octets(run)
        done += run
    return out


class _Bits:
    """A stream of bits, highest of each byte first."""

    def __init__(self, octets: Sequence[int]) -> None:
        try:
            self._data = bytes(octets)
        except (TypeError, ValueError) as error:
            raise RLEError("brush: expected a list of numbers from 0 to 255.") from error
        self._at = 0

    def __len__(self) -> int:
        return 8 * len(self._data)

    def number(self, width: int) -> int:
        """The next bits as a number."""
        end = self._move(width)
        first, last = (end - width) // 8, -(-end // 8)
        window = int.from_bytes(self._data[first:last], "big")
        return (window >> (8 * last - end)) & ((1 << width) - 1)

    def octets(self, count: int) -> NDArray[np.uint8]:
        """The next words of 8 bits, (count,) uint8."""
        end = self._move(8 * count)
        start = end - 8 * count
        first, last, shift = start // 8, -(-end // 8), start % 8
        raw = np.frombuffer(self._data[first:last], dtype=np.uint8)
        if shift == 0:
            return raw
        return ((raw[:-1] << shift) | (raw[1:] >> (8 - shift))).astype(np.uint8)

    def _move(self, width: int) -> int:
        self._at += width
        if self._at > len(self):
            raise RLEError("brush: the runs end in the middle: the file is cut off.")
        return self._at
