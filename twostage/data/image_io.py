"""Photos and label maps from and to disk, whatever the file's own format."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from twostage.data.atomic import replacing
from twostage.data.errors import ImageReadError, LabelError
from twostage.types import VOID

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
)
LABEL_SUFFIXES = frozenset({".png", ".tif", ".tiff"})

# Pillow's decoders let these escape for files that are damaged in the right place.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
)
_WHITE = (255, 255, 255, 255)


def read_image(path: str | Path) -> Tensor:
    """(3, H, W) uint8 RGB, turned upright as its EXIF orientation says.

    Grey, palette, CMYK, 1- and 16-bit files are converted (16-bit: 65535 becomes 255, rounded). Transparent
    pixels are laid over white, as a page would show them: the colour stored below full transparency is
    arbitrary. Of a file with several frames the first is read.

    Raises:
        ImageReadError: missing, not an image, broken, cut off, too large, or of an unsupported kind.
    """
    image = _open(Path(path))
    if image.mode == "F" or (image.mode == "I" and not _fits_16_bit(image)):
        raise ImageReadError(
            f"{path}: expected 8 or 16 bits a channel, got mode {image.mode!r} (32 bits), whose white is "
            "unknown. "
            "Save it as an 8-bit PNG or JPEG."
        )
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(grey.astype(np.uint8))
    try:
        rgb = np.array(_to_rgb(image))
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}. Save it as an RGB PNG or JPEG.") from error
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


def read_label_png(path: str | Path) -> Tensor:
    """(H, W) int32, the values as they stand in the file (8 or 16 bits, grey or palette index).

    Raises:
        ImageReadError: missing, broken, or a colour picture where one number a pixel is expected.
    """
    path = Path(path)
    if path.suffix.lower() in {".jpg", ".jpeg", ".webp"}:
        raise ImageReadError(
            f"{path}: a {path.suffix} file changes label values when it is saved. Use PNG masks."
        )
    image = _open(path, upright=False)
    if image.mode == "1" or image.mode == "P" or image.mode.startswith("I"):
        return torch.from_numpy(np.array(image).astype(np.int32))
    if image.mode == "L":
        # Pillow stretches 2- and 4-bit grey to 0..255; the file's own numbers are the labels.
        return torch.from_numpy(np.array(image).astype(np.int32) // _grey_step(path))
    raise ImageReadError(
        f"{path}: expected a mask with one integer a pixel (8- or 16-bit grey or palette PNG), got mode "
        f"{image.mode!r}. Colours are not labels: map each colour to its class id and save one channel."
    )


def write_label_png(path: str | Path, labels: Tensor | np.ndarray, void: int = 255) -> None:
    """Write labels (H, W) of integers, VOID (-1) as `void`: 8 bits when all values fit, otherwise 16; atomic.

    Raises:
        LabelError: a shape or value that a PNG cannot hold, or a label that equals `void`.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise LabelError(f"{path}: expected labels (H, W) of integers, got {array.shape} {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if low < VOID or max(high, void) > 65535 or void < 0:
        raise LabelError(
            f"{path}: expected labels {VOID}..65535 and void 0..65535, got {low}..{high} and void {void}."
        )
    if (array == void).any():
        raise LabelError(
            f"{path}: label {void} is a class, but {void} also stands for void. Give void=65535."
        )
    kind = np.uint8 if max(high, void) <= 255 else np.uint16
    with replacing(path) as stream:
        Image.fromarray(np.where(array == VOID, void, array).astype(kind)).save(stream, format="PNG")


def _open(path: Path, upright: bool = True) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    too_large = (
        f"{path}: larger than {limit} pixels, refused because such files can exhaust the memory. "
        "Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )
    try:
        with Image.open(path) as image:
            if limit is not None and image.width * image.height > limit:
                raise ImageReadError(too_large)
            image.load()
            return ImageOps.exif_transpose(image) if upright else image.copy()
    except ImageReadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(too_large) from error
    except FileNotFoundError as error:
        raise ImageReadError(
            f"{path}: there is no such file. Check the path (and that disks are mounted)."
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageReadError(
            f"{path}: cannot be opened ({error.strerror}). Give a file you may read."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageReadError(
            f"{path}: not an image that can be read ({path.stat().st_size} bytes). Remove it from the "
            "folder, or "
            f"convert it to one of {', '.join(sorted(IMAGE_SUFFIXES))}."
        ) from error
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"{path}: broken or cut off ({error}). Copy or download it again.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any 8-bit mode to RGB, transparency over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, _WHITE), colours).convert("RGB")
    return image.convert("RGB")


def _fits_16_bit(image: Image.Image) -> bool:
    """Whether 32-bit integers hold what was a 16-bit file (older Pillow widens them)."""
    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() <= 65535)


def _grey_step(path: Path) -> int:
    """The factor by which Pillow stretched the grey values of this PNG: 255 over its largest value."""
    with path.open("rb") as stream:
        header = stream.read(26)
    if header[:8] != b"\x89PNG\r\n\x1a\n":
        return 1
    bits, colour_type = header[24], header[25]
    return 255 // (2**bits - 1) if colour_type == 0 and bits < 8 else 1
