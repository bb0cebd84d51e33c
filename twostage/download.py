"""One https address to one checked file: resumes where it stopped, retries, shows progress.

Nothing takes the final name unchecked: bytes go to a `.part` file, which a later call resumes, and only one
with the expected sha256 is renamed.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from twostage.errors import TwostageError

logger = logging.getLogger(__name__)

ATTEMPTS = 4
"""Tries in a row that bring nothing new before giving up."""
PAUSE = 1.0
"""Seconds before the second try; doubled before each further one."""
TIMEOUT = 30.0
"""Seconds without an answer that end a try."""
_CHUNK = 1 << 20
_WORTH_RETRYING = (408, 429)
_PASSING = (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)
_LASTING = (socket.gaierror, ssl.SSLCertVerificationError)

Report = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and the bytes in all (None where the server does not say)."""


class DownloadError(TwostageError):
    """An address gave no file, or another file than expected. The message is the reason alone."""


def download(
    url: str, target: Path, sha256: str, size: int, report: Report, *, allow_http: bool = False
) -> None:
    """Fetch `url` into `target`, going on where a cut connection or an earlier call stopped.

    sha256: 64 hex digits, lower case; size: bytes the file has to have, 0 where that is not known.

    Raises:
        DownloadError: no connection, a refusal, a file of another size or checksum (which is removed).
        OSError: the file cannot be written.
    """
    part = partial(target)
    idle = 0
    while True:
        before = size_of(part)
        try:
            _receive(url, part, size, report, allow_http)
            break
        except _Cut as error:
            problem = str(error)
        except urllib.error.HTTPError as error:
            problem = _refusal(error, part)
        except _PASSING as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            if isinstance(getattr(error, "reason", error), _LASTING):
                raise DownloadError(problem) from error
        idle = 0 if size_of(part) > before else idle + 1
        if idle >= ATTEMPTS:
            raise DownloadError(f"{problem}; tried {ATTEMPTS} times")
        logger.info("%s: %s, trying again", url, problem)
        time.sleep(PAUSE * 2 ** max(idle - 1, 0))
    found = digest_of(part)
    if found != sha256:
        part.unlink()
        raise DownloadError(f"the sha256 of what came is {found}, expected {sha256}; it was removed")
    part.replace(target)


def partial(target: Path) -> Path:
    """Where the bytes of an unfinished download lie."""
    return target.with_name(f"{target.name}.part")


def require_https(url: str, allow_http: bool) -> None:
    """Raises DownloadError for any scheme but https (and http where it is allowed)."""
    scheme = urlsplit(url).scheme.lower()
    if scheme != "https" and not (allow_http and scheme == "http"):
        raise DownloadError(f"{url}: only https addresses are fetched, got {scheme}://")


def digest_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on stderr with size, rate and time left; gives the function to report to."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Cut(Exception):
    """The connection ended before the file did."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, as the address itself has to be."""

    def __init__(self, allow_http: bool) -> None:
        self.allow_http = allow_http

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        require_https(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refusal(error: urllib.error.HTTPError, part: Path) -> str:
    """What the server said, where trying again may help.

    Raises:
        DownloadError: it would not help.
    """
    error.close()
    problem = f"the server says {error.code} {error.reason}"
    if error.code == 416:  # nothing lies beyond what is there, so what is there is wrong: begin anew
        part.unlink(missing_ok=True)
    elif error.code not in _WORTH_RETRYING and error.code < 500:
        raise DownloadError(problem) from error
    return problem


def _receive(url: str, part: Path, size: int, report: Report, allow_http: bool) -> None:
    """One try: asks for the bytes that are missing and appends them to `part`."""
    offset = size_of(part)
    if size and offset == size:
        return
    headers = {"User-Agent": "twostage", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    opener = urllib.request.build_opener(_SafeRedirects(allow_http))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if answer.status != 206 or not resumed:  # the server ignored the range and sends all of it
            offset = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else offset + int(length)
        if size and total not in (None, size):
            raise DownloadError(
                f"the server offers {total} bytes, expected {size}: another file; is a login page or a proxy "
                "in between?"
            )
        with part.open("ab" if offset else "wb") as stream:
            done = _copy(answer, stream, offset, total, report)
    if total is not None and done < total:
        raise _Cut(f"the connection ended after {done} of {total} bytes")


def _copy(answer: Any, stream: IO[bytes], done: int, total: int | None, report: Report) -> int:
    report(done, total)
    while block := answer.read(_CHUNK):
        stream.write(block)
        done += len(block)
        report(done, total)
    return done
