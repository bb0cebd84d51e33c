"""Weights that others published: known files by name, fetched on first use, or a local file."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from twostage.download import (
    DownloadError,
    Report,
    digest_of,
    download,
    partial,
    progress_bar,
    require_https,
    size_of,
)
from twostage.errors import TwostageError
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)


class WeightsError(TwostageError):
    """Weights are neither here nor to be had, or are not the file that was meant."""


@dataclass(frozen=True)
class KnownFile:
    """A published file. sha256: 64 hex digits; bytes: its size, 0 if unknown; licence: its SPDX name."""

    name: str
    url: str
    sha256: str
    bytes: int = 0
    licence: str = ""

    @property
    def file_name(self) -> str:
        """What the file is called where it is published."""
        return unquote(PurePosixPath(urlsplit(self.url).path).name)


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
KNOWN = {
    file.name: file
    for file in (
        # Kirillov et al., "Segment Anything", ICCV 2023. The six digits in these names begin the md5.
        KnownFile(
            "sam_vit_b",
            f"{_SAM}sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
            "Apache-2.0",
        ),
        KnownFile(
            "sam_vit_l",
            f"{_SAM}sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1_249_524_607,
            "Apache-2.0",
        ),
        KnownFile(
            "sam_vit_h",
            f"{_SAM}sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
            "Apache-2.0",
        ),
    )
}


def fetch(
    source: str | Path,
    sha256: str | None = None,
    cache_dir: str | Path | None = None,
    progress: bool | Report = True,
    *,
    allow_http: bool = False,
) -> Path:
    """A local file with the wanted weights, downloaded where it is not there yet.

    source: a name of KNOWN, a path, or "https://host/file#sha256=HEX"; sha256: the checksum, for a URL that
    has none or to check a local file; cache_dir: where downloads are kept, default $TWOSTAGE_CACHE or
    ~/.cache/twostage; progress: a bar on stderr, nothing, or a function of your own; allow_http: also accept
    http:// (for servers on this machine).

    Raises:
        WeightsError: unknown name, no such file, not https, a URL without checksum, a wrong checksum, no
            network, no space.
    """
    wanted = resolve(source, sha256, allow_http=allow_http)
    if isinstance(wanted, Path):
        return wanted
    target = cached_path(wanted, cache_dir)
    try:
        if _intact(target, wanted):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f"{target.name}.lock")):
            if not _intact(target, wanted):  # another process may have fetched it while this one waited
                _require_space(wanted, target)
                with _reporting(progress, wanted.name) as report:
                    download(wanted.url, target, wanted.sha256, wanted.bytes, report, allow_http=allow_http)
    except DownloadError as error:
        raise WeightsError(_remedy(wanted, target, str(error))) from error
    except OSError as error:
        raise WeightsError(
            f"{target}: cannot be read or written ({error}). Set TWOSTAGE_CACHE to another folder."
        ) from error
    return target


def resolve(source: str | Path, sha256: str | None = None, *, allow_http: bool = False) -> Path | KnownFile:
    """What `source` means, without touching the network: an existing local file, or one to be fetched.

    Raises:
        WeightsError: unknown name, no such file, wrong checksum of a local file, an unfit URL.
    """
    text = str(source)
    if text in KNOWN:
        return KNOWN[text]
    if "://" in text:
        return _from_url(text, sha256, allow_http)
    path = Path(text).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"Weights {text!r}: no such file, and no known name (those are {', '.join(KNOWN)})."
            + (nearest(text, KNOWN) if path.name == text and not path.suffix else "")
        )
    if sha256 is not None and (found := digest_of(path)) != sha256.lower():
        raise WeightsError(f"{path}: the sha256 is {found}, expected {sha256}: damaged, or another file.")
    return path


def cached_path(wanted: KnownFile, cache_dir: str | Path | None = None) -> Path:
    """Where a download is kept: in the folder given, else $TWOSTAGE_CACHE, else ~/.cache/twostage."""
    folder = cache_folder(cache_dir)
    if wanted.name in KNOWN:
        return folder / wanted.file_name
    named = Path(wanted.file_name)  # two publishers may use one file name for different files
    return folder / f"{named.stem}-{wanted.sha256[:8]}{named.suffix}"


def cache_folder(given: str | Path | None = None) -> Path:
    """Where things are kept that can be had again: as given, $TWOSTAGE_CACHE, or ~/.cache/twostage."""
    return Path(given or os.environ.get("TWOSTAGE_CACHE") or "~/.cache/twostage").expanduser()


def _from_url(text: str, sha256: str | None, allow_http: bool) -> KnownFile:
    url, _, fragment = text.partition("#")
    try:
        require_https(url, allow_http)
    except DownloadError as error:
        raise WeightsError(f"{error}.") from error
    digest = (sha256 or fragment.removeprefix("sha256=")).lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise WeightsError(
            f"{url}: a download needs its sha256, 64 hex digits, got {digest!r}; write {url}#sha256=HEX."
        )
    known = KnownFile(url, url, digest)
    if not known.file_name:
        raise WeightsError(f"{url}: expected the address of a file, got that of a folder.")
    return known


def _require_space(wanted: KnownFile, target: Path) -> None:
    missing = wanted.bytes - size_of(partial(target))
    free = shutil.disk_usage(target.parent).free
    if missing > free:
        raise WeightsError(
            f"{target.parent}: {wanted.name} needs {missing / 1e6:.0f} MB more, {free / 1e6:.0f} MB are "
            "free. Set TWOSTAGE_CACHE to another folder."
        )


def _remedy(wanted: KnownFile, target: Path, problem: str) -> str:
    size = f"{wanted.bytes / 1e6:.0f} MB, " if wanted.bytes else ""
    return (
        f"Cannot fetch {wanted.url}: {problem}. Without a network, download {wanted.file_name} ({size}sha256 "
        f"{wanted.sha256}) elsewhere and put it at {target}, or give its path in place of {wanted.name!r}."
    )


def _intact(target: Path, wanted: KnownFile) -> bool:
    """Whether the cached file is the wanted one; a file put there by hand is checked like any other."""
    if not target.is_file():
        return False
    if (not wanted.bytes or size_of(target) == wanted.bytes) and digest_of(target) == wanted.sha256:
        return True
    logger.warning("%s: the checksum is wrong, fetching it again", target)
    return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Lets one process at a time through, so that the ranks of one machine fetch a file once."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with lock.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _reporting(progress: bool | Report, title: str) -> AbstractContextManager[Report]:
    """A context that gives the function to report to."""
    if callable(progress):
        return nullcontext(progress)
    return progress_bar(title) if progress else nullcontext(lambda done, total: None)
