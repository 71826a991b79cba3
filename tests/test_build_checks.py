"""What a build lacks is said at once, in one sentence with the command that helps."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "pip install --no-build-isolation ."

# Whatever was imported or asked for before is as it was: the checks ask again.
CHECK = """
import os, sys
from importlib import metadata, util
version, find_spec = metadata.version, util.find_spec
versions = {versions}
def faked(package):
    found = versions.get(package, version(package))
    if found is None:
        raise metadata.PackageNotFoundError(package)
    return found
metadata.version = faked
util.find_spec = lambda name: None if versions.get(name, "") is None else find_spec(name)
{before}
import build_checks
build_checks.require_all()
print("jobs of make:", os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"))
"""


@dataclass(frozen=True)
class Machine:
    """What a build finds: Python's packages, programs, and what else is changed by statements."""

    versions: dict[str, str | None] = field(default_factory=dict)
    programs: tuple[str, ...] = ("c++", "make", "ninja", "cmake")
    before: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def check(machine: Machine, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the checks with what a machine has."""
    programs = folder / "bin"
    programs.mkdir()
    for name in machine.programs:
        found = shutil.which(name)
        if found is not None:
            (programs / name).symlink_to(found)
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    return subprocess.run(
        [sys.executable, "-c", CHECK.format(versions=machine.versions, before=machine.before)],
        cwd=ROOT / "cmake",
        env={**environment, "PATH": str(programs), **machine.environment},
        capture_output=True,
        text=True,
        check=False,
    )


WRONG = {
    "an old Python": (
        Machine(before="sys.version_info = (3, 9, 1)"),
        "Python 3.9 is too old",
        "-m venv",
    ),
    "macOS": (Machine(before="sys.platform = 'darwin'"), "this is darwin", "WSL"),
    "Windows": (Machine(before="sys.platform = 'win32'"), "this is win32", "WSL"),
    "no torch": (Machine({"torch": None}), "sees none", "pip install torch scikit-build-core"),
    "an old torch": (
        Machine({"torch": "2.9.1+cu128"}),
        "torch 2.9.1+cu128 is older than 2.11",
        "'torch>=2.11'",
    ),
    "no scikit-build-core": (
        Machine({"scikit-build-core": None}),
        "scikit-build-core, which builds it, is not installed",
        "pip install scikit-build-core",
    ),
    "an old scikit-build-core": (
        Machine({"scikit-build-core": "0.9"}),
        "0.9 is too old",
        "pip install scikit-build-core",
    ),
    "no compiler": (
        Machine(programs=("make", "ninja")),
        "a C++ compiler was not found",
        "apt install g++",
    ),
    "a compiler that is not there": (
        Machine(environment={"CXX": "g++-1"}),
        "g++-1 of $CXX was not found",
        "apt install g++",
    ),
    "a compiler without C++20": (
        Machine(environment={"CXX": "c++ --std=gnu++98 -nostdinc++"}),
        "cannot compile C++20",
        "install GCC 11",
    ),
    "no headers of Python": (
        Machine(before="import sysconfig; sysconfig.get_path = lambda name: '/nowhere'"),
        "headers of Python were not found",
        "apt install python3-dev",
    ),
    "no cmake": (
        Machine({"cmake": None}, ("c++", "make", "ninja")),
        "cmake was not found",
        "pip install",
    ),
    "an old cmake": (
        Machine({"cmake": "3.18.4"}),
        "cmake 3.18.4 is older than 3.22",
        "pip install",
    ),
    "neither ninja nor make": (
        Machine({"ninja": None}, ("c++", "cmake")),
        "neither ninja nor make",
        "pip install",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_missing_is_named_with_the_command_that_helps(what: str, tmp_path: Path) -> None:
    machine, problem, command = WRONG[what]
    ended = check(machine, tmp_path)
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("fastcomm: ")
    assert problem in sentence
    assert command in sentence


def test_a_machine_with_all_of_it_passes(tmp_path: Path) -> None:
    ended = check(Machine(), tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "jobs of make: None\n"), ended.stderr


def test_without_ninja_make_runs_as_many_compilers_as_there_are_cores(tmp_path: Path) -> None:
    ended = check(Machine({"ninja": None}, ("c++", "cmake", "make")), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "ninja is not installed; building with make" in ended.stdout
    assert f"jobs of make: {os.cpu_count()}\n" in ended.stdout


@pytest.mark.parametrize("command", [["wheel"], ["install", "--dry-run", "--editable"]])
def test_pip_in_an_environment_of_its_own_ends_before_anything_is_downloaded(
    command: list[str], tmp_path: Path
) -> None:
    """What everybody types first."""
    ended = subprocess.run(
        [sys.executable, "-m", "pip", *command, ROOT, "--no-index"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert f"then: {INSTALL}" in ended.stdout
    assert "Traceback" not in ended.stdout
