"""MNIST for the example comes from any mirror that has it, and if none has, that is soon known."""

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from idx_digits import write_idx_digits

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import mnist_download
from mnist_download import MNIST_FILES, download_mnist, find_mnist

# What a mirror does with a request for a file.
GOOD, MISSING, DAMAGED, TRUNCATED = "good", "missing", "damaged", "truncated"
SILENT, SLOW = "silent", "slow"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make up the files of MNIST, and let them be the canonical ones."""
    folder = tmp_path / "made-up"
    folder.mkdir()
    write_idx_digits(folder, num_training=40, num_testing=10)
    contents = {name: (folder / name.removesuffix(".gz")).read_bytes() for name in MNIST_FILES}
    for name, content in contents.items():
        monkeypatch.setitem(MNIST_FILES, name, hashlib.md5(content).hexdigest())
    return contents


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_download, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(mnist_download, "SLOW_AFTER_SECONDS", 0.2)
    # A machine with much else to do takes a while for a good one, too.
    monkeypatch.setattr(mnist_download, "SLOW_BYTES_PER_SECOND", 500)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Mirror:
    """A web server on this machine.

    Args:
        files: what it has.
        labels: what it does with requests for labels, of which one is asked for first.
        images: what it does with those for images.
        before: the mirror that is to be found bad before this one answers.
    """

    def __init__(
        self, files: dict[str, bytes], labels: str, images: str, before: "Mirror | None"
    ) -> None:
        self.requests: list[str] = []
        self.was_bad = threading.Event()
        self._closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/mnist/")
                manner = labels if "labels" in name else images
                mirror.requests.append(name)
                if manner != GOOD:
                    mirror.was_bad.set()
                if before is not None:
                    before.was_bad.wait()
                mirror._answer(self, files[name], manner)

            def log_request(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/mnist/"
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        """End the server and what it is in the middle of."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, content: bytes, manner: str) -> None:
        if manner == SILENT:
            self._closing.wait()
            return
        request.send_response(404 if manner == MISSING else 200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if manner == DAMAGED:
            content = bytes([content[0] ^ 1]) + content[1:]
        if manner == TRUNCATED:
            content = content[:-1]
        if manner == SLOW:
            for byte in content:
                if self._closing.wait(0.01):
                    return
                request.wfile.write(bytes([byte]))
        request.wfile.write(content)


@contextmanager
def mirrors(files: dict[str, bytes], *manners: tuple[str, str]) -> Iterator[list[Mirror]]:
    made: list[Mirror] = []
    try:
        for labels, images in manners:
            made.append(Mirror(files, labels, images, made[-1] if made else None))
        yield made
    finally:
        for mirror in made:
            mirror.close()


def closed_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/mnist/"


@pytest.mark.parametrize(
    "bad",
    [
        (SILENT, SILENT),
        (MISSING, MISSING),
        (DAMAGED, DAMAGED),
        (SLOW, SLOW),
        (GOOD, MISSING),
        (GOOD, DAMAGED),
        (GOOD, TRUNCATED),
        (GOOD, SILENT),
        (GOOD, SLOW),
    ],
)
def test_any_mirror_may_be_bad(
    files: dict[str, bytes], tmp_path: Path, bad: tuple[str, str]
) -> None:
    folder = tmp_path / "cache"
    with mirrors(files, bad, (GOOD, GOOD)) as (first, second):
        assert download_mnist(folder, [closed_address(), first.url, second.url])
    assert first.was_bad.is_set()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("bad", [SILENT, MISSING, DAMAGED, TRUNCATED, SLOW])
def test_without_any_mirror_nothing_is_left_behind(
    files: dict[str, bytes], tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    with mirrors(files, (bad, bad), (GOOD, bad)) as (first, second):
        assert not download_mnist(folder, [closed_address(), first.url, second.url])
    assert not [path for path in folder.iterdir() if "images" in path.name]
    assert "partial" not in str(list(folder.iterdir()))
    said = capsys.readouterr().out
    assert f"{second.url} is no good: " in said
    assert "MNIST could not be downloaded from any of" in said


def test_what_is_there_is_not_downloaded_again(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    missing = "train-labels-idx1-ubyte.gz"
    (tmp_path / missing).unlink()
    with mirrors(files, (GOOD, GOOD)) as (mirror,):
        assert download_mnist(tmp_path, [mirror.url])
    assert set(mirror.requests) == {missing, "t10k-labels-idx1-ubyte.gz"}, (
        "the latter to begin with"
    )
    assert find_mnist(tmp_path)


def test_folder_that_cannot_be_written_is_not_the_mirrors_fault(
    files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with mirrors(files, (GOOD, GOOD)) as (mirror,):
        assert not download_mnist(tmp_path / "file" / "folder", [mirror.url])
    assert "MNIST cannot be kept in" in capsys.readouterr().out
