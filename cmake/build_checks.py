"""What a build needs, and one sentence with the command that helps for each thing that is missing.

This runs under any Python, in any state of the machine: it imports the standard library only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = "2.11"
OLDEST_SCIKIT_BUILD_CORE = "0.11"
OLDEST_CMAKE = "3.22"

INSTALL = "pip install --no-build-isolation ."
TOOLS = "scikit-build-core cmake ninja"

# Some of what the sources use of C++20, of the compiler and of its library.
_CPP_SOURCE = """
#include <bit>
#include <concepts>
#include <ranges>
#include <span>
#include <thread>
std::jthread* thread = nullptr;
unsigned bits(float value) { return std::bit_cast<unsigned>(value); }
"""


def require_all() -> None:
    """End the process with the sentence about the first thing that is missing."""
    for check in (_python, _system, _torch, _scikit_build_core, _compiler, _headers, _cmake, _make):
        sentence = check()
        if sentence:
            sys.exit(f"fastcomm: {sentence}")


def _python() -> str:
    if sys.version_info >= OLDEST_PYTHON:
        return ""
    running = ".".join(map(str, sys.version_info[:2]))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return f"Python {running} is too old; use {oldest} or later: python{oldest} -m venv .venv"


def _system() -> str:
    if sys.platform == "linux":
        return ""
    return (
        f"it runs on Linux, and this is {sys.platform}; use a Linux machine or container, on "
        "Windows WSL 2: wsl --install"
    )


def _torch() -> str:
    found = _version("torch")
    if found is None:
        return (
            "it is compiled against the torch that is installed, and this build sees none (unless "
            "told not to, pip builds in an empty environment of its own); run: pip install torch "
            f"{TOOLS}, then: {INSTALL}"
        )
    if _numbers(found) < _numbers(OLDEST_TORCH):
        return (
            f"torch {found} is older than {OLDEST_TORCH}; install a newer one: pip install "
            f"'torch>={OLDEST_TORCH}', then: {INSTALL}"
        )
    return ""


def _scikit_build_core() -> str:
    found = _version("scikit-build-core")
    if found is not None and _numbers(found) >= _numbers(OLDEST_SCIKIT_BUILD_CORE):
        return ""
    what = "is not installed" if found is None else f"{found} is too old"
    return f"scikit-build-core, which builds it, {what}; run: pip install {TOOLS}, then: {INSTALL}"


def _compiler() -> str:
    given = os.environ.get("CXX")
    names = [given] if given else ["c++", "g++", "clang++"]
    commands = [command for command in map(shlex.split, names) if shutil.which(command[0])]
    get_one = "apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL) or, with "
    get_one += "conda, conda install gxx"
    if not commands:
        missing = f"the C++ compiler {given} of $CXX" if given else "a C++ compiler"
        return f"{missing} was not found; install one: {get_one}"
    command = [*commands[0], "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    try:
        ran = subprocess.run(
            command, input=_CPP_SOURCE, capture_output=True, text=True, timeout=60, check=False
        )
        error = ran.stderr.strip().splitlines()[:1] if ran.returncode else []
    except (OSError, subprocess.TimeoutExpired) as failed:
        error = [str(failed)]
    if not error:
        return ""
    return (
        f"the C++ compiler {commands[0][0]} cannot compile C++20 ({error[0]}); install GCC 11 or "
        f"later: {get_one}, or set CXX to another one"
    )


def _headers() -> str:
    if (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return ""
    return (
        "the headers of Python were not found (Python.h); install them: apt install python3-dev "
        "(Debian, Ubuntu) or dnf install python3-devel (Fedora, RHEL)"
    )


def _cmake() -> str:
    found = _version("cmake")
    program = shutil.which("cmake")
    if found is None and program is not None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        numbers = re.search(r"\d+\.\d+", said.stdout)
        found = numbers.group() if numbers else None
    if found is not None and _numbers(found) >= _numbers(OLDEST_CMAKE):
        return ""
    what = "was not found" if found is None else f"{found} is older than {OLDEST_CMAKE}"
    return f"cmake {what}; run: pip install {TOOLS}, then: {INSTALL}"


def _make() -> str:
    if importlib.util.find_spec("ninja") or shutil.which("ninja"):
        return ""
    if not shutil.which("make"):
        return f"neither ninja nor make was found; run: pip install {TOOLS}, then: {INSTALL}"
    # make runs one compiler at a time unless it is told otherwise.
    num_jobs = os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    print(f"fastcomm: ninja is not installed; building with make, {num_jobs} jobs", flush=True)
    return ""


def _version(package: str) -> str | None:
    from importlib import metadata  # which a Python that is too old lacks

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
