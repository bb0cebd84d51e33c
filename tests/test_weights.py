"""Fetching weights: whole, resumed, wrong, refused, offline, against a server on this machine."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from twostage import download, weights
from twostage.weights import KNOWN, KnownFile, WeightsError, fetch

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `cut_after` ends a connection early, once for each number in the list."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cut_after: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.path == "/moved.pth":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/file.pth")
            self.end_headers()
            return
        if self.path not in ("/file.pth", "/broken.pth"):
            self.send_error(404)
            return
        if self.path == "/broken.pth":
            self.send_error(503)
            return
        self._send(wanted)

    def _send(self, wanted: str | None) -> None:
        start = 0
        if wanted is not None and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = start + self.server.cut_after.pop(0) if self.server.cut_after else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def known(server: Server, monkeypatch: pytest.MonkeyPatch) -> KnownFile:
    """A file that the server has, under the name "example"."""
    file = KnownFile("example", f"{server.url}/file.pth", SHA256, len(CONTENT))
    monkeypatch.setitem(KNOWN, "example", file)
    return file


def _fetch(source: str, folder: Path, **options: Any) -> Path:
    return fetch(source, cache_dir=folder, allow_http=True, **{"progress": False, **options})


def test_downloads_once_and_reports_progress(server: Server, known: KnownFile, tmp_path: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    path = _fetch("example", tmp_path / "new", progress=lambda done, total: reports.append((done, total)))
    assert path == tmp_path / "new" / "file.pth"
    assert path.read_bytes() == CONTENT
    assert reports[0] == (0, len(CONTENT))
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert _fetch("example", tmp_path / "new") == path
    assert server.asked == [("/file.pth", None)]
    assert not path.with_name("file.pth.part").exists()


def test_bar_goes_to_stderr(known: KnownFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fetch("example", tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "example" in captured.err


def test_cut_connections_are_resumed(server: Server, known: KnownFile, tmp_path: Path) -> None:
    server.cut_after = [1000, 70_000]
    assert _fetch("example", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=71000-"]


def test_a_later_call_resumes(server: Server, known: KnownFile, tmp_path: Path) -> None:
    (tmp_path / "file.pth.part").write_bytes(CONTENT[:5000])
    assert _fetch("example", tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/file.pth", "bytes=5000-")]


def test_server_without_ranges_sends_all(server: Server, known: KnownFile, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.pth.part").write_bytes(b"x" * 5000)
    assert _fetch("example", tmp_path).read_bytes() == CONTENT


def test_partial_file_that_is_too_long_is_begun_anew(
    server: Server, known: KnownFile, tmp_path: Path
) -> None:
    (tmp_path / "file.pth.part").write_bytes(CONTENT + b"x")
    assert _fetch("example", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(CONTENT) + 1}-", None]


def test_connection_that_never_brings_anything(server: Server, known: KnownFile, tmp_path: Path) -> None:
    server.cut_after = [0] * 20
    with pytest.raises(WeightsError, match=rf"ended after 0 of {len(CONTENT)} bytes; tried 4 times"):
        _fetch("example", tmp_path)
    assert len(server.asked) == 4


def test_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"is {SHA256}, expected {'0' * 64}; it was removed"):
        _fetch(f"{server.url}/file.pth", tmp_path, sha256="0" * 64)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == []


def test_wrong_size_is_refused_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KnownFile("example", f"{server.url}/file.pth", SHA256, len(CONTENT) + 1)
    monkeypatch.setitem(KNOWN, "example", file)
    with pytest.raises(WeightsError, match=f"offers {len(CONTENT)} bytes, expected {len(CONTENT) + 1}"):
        _fetch("example", tmp_path)
    assert not (tmp_path / "file.pth.part").exists()


def test_damaged_cache_is_replaced(server: Server, known: KnownFile, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(b"x" * len(CONTENT))
    assert _fetch("example", tmp_path).read_bytes() == CONTENT


def test_two_at_once_fetch_once(server: Server, known: KnownFile, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: _fetch("example", tmp_path), range(2)))
    assert paths == [tmp_path / "file.pth"] * 2
    assert len(server.asked) == 1


def test_url_carries_its_checksum(server: Server, tmp_path: Path) -> None:
    path = _fetch(f"{server.url}/file.pth#sha256={SHA256.upper()}", tmp_path)
    assert path.name == f"file-{SHA256[:8]}.pth"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "tries", "says"), [("none", 1, "404"), ("broken", 4, "503 .*tried 4 times")]
)
def test_refusals(server: Server, tmp_path: Path, page: str, tries: int, says: str) -> None:
    with pytest.raises(WeightsError, match=f"the server says {says}"):
        _fetch(f"{server.url}/{page}.pth#sha256={SHA256}", tmp_path)
    assert len(server.asked) == tries


def test_redirect_to_another_scheme_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="ftp"):
        _fetch(f"{server.url}/moved.pth#sha256={SHA256}", tmp_path)


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        fetch("sam_vit_b", progress=False)
    message = str(caught.value)
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in message
    assert "Name or service not known" in message
    assert f"put it at {tmp_path / 'sam_vit_b_01ec64.pth'}" in message
    assert "375 MB" in message
    assert "give its path in place of 'sam_vit_b'" in message


def test_no_space(known: KnownFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "example", KnownFile("example", known.url, SHA256, 10**18))
    with pytest.raises(WeightsError, match="needs 1000000000000 MB more"):
        _fetch("example", tmp_path)


def test_unwritable_cache(known: KnownFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WeightsError, match=r"cannot be read or written .* Set TWOSTAGE_CACHE"):
        _fetch("example", tmp_path / "file" / "below")


def test_local_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(CONTENT)
    assert fetch(path) == path
    assert fetch(str(path), sha256=SHA256.upper()) == path
    with pytest.raises(WeightsError, match=f"the sha256 is {SHA256}, expected {'1' * 64}"):
        fetch(path, sha256="1" * 64)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("sam_vit_bb", "Did you mean 'sam_vit_b'"),
        ("/no/such/file.pth", "no such file"),
        ("http://127.0.0.1/file.pth", "only https"),
        ("file:///etc/hosts", "only https"),
        ("https://example.org/file.pth", "needs its sha256"),
        ("https://example.org/file.pth#sha256=12", "needs its sha256"),
        (f"https://example.org/#sha256={'0' * 64}", "that of a folder"),
    ],
)
def test_what_is_refused_without_a_network(source: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        weights.resolve(source)


def test_the_table() -> None:
    for name, file in KNOWN.items():
        assert file.name == name
        assert file.url.startswith("https://")
        assert len(file.sha256) == 64
        assert file.bytes > 0
        assert file.licence
