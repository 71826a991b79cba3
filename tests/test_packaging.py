"""An sdist holds what a build needs, and the wheel built from it what a user needs.

One native build from scratch: over a minute.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastcomm

ROOT = Path(__file__).resolve().parent.parent
BUILD_SDIST = (
    "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
)


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder; fail with the end of what it said."""
    completed = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, "\n".join(completed.stdout.splitlines()[-40:])


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and unpack it; return the unpacked folder."""
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", BUILD_SDIST, str(folder)], ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel_files(sdist: Path) -> list[str]:
    """Build a wheel from the unpacked sdist; return the names of its files."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    run([*pip, "--wheel-dir", "dist", "."], sdist)
    assert not (sdist / "build").exists()  # where a second build at the same time would be, too
    (wheel,) = (sdist / "dist").glob("fastcomm-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_sdist_is_named_after_the_version(sdist: Path) -> None:
    assert sdist.name == f"fastcomm-{fastcomm.__version__}"


@pytest.mark.parametrize(
    "name",
    [
        "CMakeLists.txt",
        "LICENSE",
        "Makefile",
        "README.md",
        "cmake/build_backend.py",
        "cmake/build_checks.py",
        "cmake/torch.cmake",
        "fastcomm/_C.pyi",
        "fastcomm/py.typed",
        "pyproject.toml",
        "tests/cpp/CMakeLists.txt",
        "third_party/doctest/LICENSE",
    ],
)
def test_the_sdist_holds(sdist: Path, name: str) -> None:
    assert (sdist / name).is_file()


def test_the_sdist_holds_every_native_source_and_nothing_built(sdist: Path) -> None:
    def native_sources(root: Path) -> set[Path]:
        return {path.relative_to(root) for path in (root / "csrc").rglob("*") if path.is_file()}

    assert native_sources(sdist) == native_sources(ROOT)
    assert not [*sdist.rglob("*.so"), *sdist.rglob("*.pyc"), *sdist.rglob("_build_info.py")]
    assert not (sdist / "build").exists()
    assert not (sdist / ".venv").exists()


@pytest.mark.timeout(1200)  # a native build on a busy machine
def test_the_wheel_of_the_sdist_holds_the_package_and_nothing_else(wheel_files: list[str]) -> None:
    package = [name for name in wheel_files if name.startswith("fastcomm/")]
    (native,) = (name for name in package if name.startswith("fastcomm/_C") and ".so" in name)
    assert f"cpython-{sys.version_info.major}{sys.version_info.minor}" in native
    in_tree = {f"fastcomm/{p.name}" for p in (ROOT / "fastcomm").iterdir() if p.is_file()}
    assert {"fastcomm/_C.pyi", "fastcomm/py.typed"} <= in_tree
    assert set(package) == in_tree | {native, "fastcomm/_build_info.py"}
    others = {name.split("/")[0] for name in wheel_files if name not in package}
    assert others == {f"fastcomm-{fastcomm.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_files)
