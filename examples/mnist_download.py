"""MNIST's four files: where they lie, or are downloaded to, from whichever mirror is at hand.

Where no mirror is, that is known within seconds: all are asked at once for the smallest file. One
that then sends less than a slow line could take is left for the next. What arrives is kept only if
its checksum is that of the canonical file.
"""

import hashlib
import http.client
import os
import queue
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)
# The canonical files and their MD5 sums.
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_SMALLEST_FILE = "t10k-labels-idx1-ubyte.gz"
# How long all mirrors together have to answer, and one that has answered to send something more.
ANSWER_SECONDS = 5.0
# A mirror is given up that after so many seconds of a file has sent fewer bytes per second.
SLOW_AFTER_SECONDS = 4.0
SLOW_BYTES_PER_SECOND = 50_000
_CHUNK_BYTES = 1 << 16


class MirrorError(OSError):
    """A mirror does not send the file, or not as it should be; the message says what it does."""


def find_mnist(folder: Path) -> bool:
    """Say whether all four IDX files, packed or not, lie in ``folder``."""
    return all(existing_file(folder, name) is not None for name in MNIST_FILES)


def existing_file(folder: Path, name: str) -> Path | None:
    """Return where a file of MNIST lies in ``folder``, packed or not; None if it does not."""
    for path in (folder / name, folder / name.removesuffix(".gz")):
        if path.is_file():
            return path
    return None


def default_folder() -> Path:
    """Return the folder for downloads when none is given, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fastcomm", "mnist")


def prepare_mnist(folder: Path) -> bool:
    """Say whether MNIST lies in ``folder``, after downloading it if needed.

    Only one process of a machine should call this.
    """
    return find_mnist(folder) or download_mnist(folder)


def download_mnist(folder: Path, mirrors: Sequence[str] = MIRRORS) -> bool:
    """Download what is missing in ``folder`` and verify it; False, and why, where that fails."""
    for mirror in _answering(mirrors):
        try:
            for name in MNIST_FILES:
                if existing_file(folder, name) is None:
                    _download(mirror, name, folder)
        except MirrorError as error:
            print(f"MNIST: {mirror} is no good: {error}", flush=True)
        except OSError as error:
            print(f"MNIST cannot be kept in {folder}: {error}", flush=True)
            return False
        else:
            return True
    print(f"MNIST could not be downloaded from any of {', '.join(mirrors)}", flush=True)
    return False


def _answering(mirrors: Sequence[str]) -> Iterator[str]:
    """Yield the mirrors that answer properly within ANSWER_SECONDS, the fastest first."""
    answers: queue.SimpleQueue[tuple[str, MirrorError | None]] = queue.SimpleQueue()
    deadline = time.monotonic() + ANSWER_SECONDS

    def ask(mirror: str) -> None:
        try:
            b"".join(_verified(mirror, _SMALLEST_FILE))
        except MirrorError as error:
            answers.put((mirror, error))
        else:
            answers.put((mirror, None))

    # Threads that a program may leave behind: a look-up of a name cannot be interrupted.
    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    for _ in mirrors:
        try:
            # What has answered while the caller was downloading is there without waiting.
            mirror, error = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if error is None:
            yield mirror
        else:
            print(f"MNIST: {mirror} is no good: {error}", flush=True)


def _download(mirror: str, name: str, folder: Path) -> None:
    """Write a file under another name, and rename it when it is complete and verified."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as file:
            _copy(mirror, name, file)
        partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)


def _copy(mirror: str, name: str, file: IO[bytes]) -> None:
    for chunk in _verified(mirror, name):
        file.write(chunk)


def _verified(mirror: str, name: str) -> Iterator[bytes]:
    """Yield a file in pieces.

    Raises:
        MirrorError: if it does not come, comes too slowly, or, at its end, is not the right one.
    """
    received, digest = 0, hashlib.md5(usedforsecurity=False)
    started = time.monotonic()
    for chunk in _response(mirror + name):
        received += len(chunk)
        seconds = time.monotonic() - started
        if seconds > SLOW_AFTER_SECONDS and received < seconds * SLOW_BYTES_PER_SECOND:
            raise MirrorError(f"{name}: {received / 1e3:.0f} kB in {seconds:.0f} s")
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != MNIST_FILES[name]:
        raise MirrorError(f"{name} is not the canonical file: its checksum is another")


def _response(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as response:
            # What has come, where read() would wait for all of it, however slowly it comes.
            while chunk := response.read1(_CHUNK_BYTES):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise MirrorError(str(getattr(error, "reason", "")) or type(error).__name__) from error
