"""Whether a program takes the arguments of a documented command line, without running it."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import io
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from torch.distributed.run import get_args_parser

from documents import ROOT, Command, commands_of_page
from script_arguments import (
    OPTION,
    WrongCommandError,
    options_of_script,
    parse,
    require,
    scripts_named_in,
)


@cache
def torchrun_options() -> frozenset[str]:
    """Return the options of torchrun."""
    return frozenset(get_args_parser()._option_string_actions)


@cache
def _pip_options() -> frozenset[str]:
    command = [sys.executable, "-m", "pip", "install", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(OPTION.findall(done.stdout))


@cache
def extras() -> dict[str, list[str]]:
    """Return the extras of pyproject.toml, and the names of their packages."""
    text = (ROOT / "pyproject.toml").read_text()
    table = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    lists = re.findall(r"^(\w+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r'"([\w-]+)[^"]*"', packages) for name, packages in lists}


@cache
def _cmake_sources() -> str:
    files = [*ROOT.glob("CMakeLists.txt"), *(ROOT / "cmake").glob("*.cmake")]
    return "\n".join(file.read_text() for file in files)


def check(command: Command) -> None:
    """Raise WrongCommandError unless the command line would be taken."""
    if command.is_options:
        check_options(command)
    else:
        check_words(command.words)


def check_words(words: list[str]) -> None:
    """Raise WrongCommandError unless the command line would be taken."""
    program, arguments = words[0], words[1:]
    if program.startswith(".venv/bin/"):
        program = Path(program).name
    if program.startswith("build/"):
        _check_built_program(program, arguments)
        return
    require(program in _CHECKS, f"no test knows how to check {program!r}")
    _CHECKS[program](arguments)


def _check_python(words: list[str]) -> None:
    if words[0] != "-m":
        _check_script(words)
    elif words[1] == "pytest":
        _check_pytest(words[2:])
    else:
        require(importlib.util.find_spec(words[1]), f"there is no module {words[1]}")
        require(len(words) == 2, f"no test knows the arguments of {words[1]}")


def _check_script(words: list[str]) -> None:
    if words[0].startswith(("bench/", "examples/")):
        parse(words[0], words[1:])
    else:
        require((ROOT / words[0]).is_file(), f"there is no {words[0]}")


def _check_torchrun(words: list[str]) -> None:
    if not any(word.endswith(".py") for word in words):  # only said to be a way to start
        missing = [w for w in words if w.partition("=")[0] not in torchrun_options()]
        require(not missing, f"torchrun has no {missing}")
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            arguments = get_args_parser().parse_args(words)
    except SystemExit:
        raise WrongCommandError(f"torchrun: {said.getvalue()}") from None
    if arguments.training_script != "train.py":  # the reader's
        _check_script([arguments.training_script, *arguments.training_script_args])


def _check_pip(words: list[str]) -> None:
    require(words[0] == "install", f"pip {words[0]}")
    unknown = [word for word in words if word.startswith("-") and word not in _pip_options()]
    require(not unknown, f"pip install has no {unknown}")
    for word in words:
        if word.startswith("cmake.define."):
            _check_cmake(["-D" + word.removeprefix("cmake.define.")])
        asked = re.fullmatch(r"\.\[(.*)\]", word)
        for extra in asked[1].split(",") if asked else ():
            require(extra in extras(), f"there is no extra {extra!r}")


def _check_cmake(words: list[str]) -> None:
    for word in words:
        if word.startswith("-D"):
            name = word.removeprefix("-D").partition("=")[0]
            is_ours = name.startswith("FASTCOMM_")
            known = re.search(rf"\b{name}\b", _cmake_sources()) if is_ours else name[:6] == "CMAKE_"
            require(known, f"CMake's files know no {name}")


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in [word.partition("=")[0] for word in words if "=" in word]:
        require(re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"make has no {name}=")
    for target in [word for word in words if "=" not in word]:
        # To make, a target that is only listed as .PHONY is one with nothing to do.
        rule = re.search(rf"^(?:[\w-]+ )*{target}(?: [\w-]+)*:", makefile, re.MULTILINE)
        require(rule, f"the Makefile has no rule for {target}")
    done = _dry_run(words)
    require(done.returncode == 0, f"make {' '.join(words)}: {done.stderr}")


def _dry_run(words: list[str]) -> subprocess.CompletedProcess[str]:
    # Without what a make that runs the tests was given.
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def scripts_of_make(target: str) -> list[list[str]]:
    """Return the scripts that a target runs, with their arguments."""
    lines = _dry_run(["--always-make", target]).stdout.replace("\\\n", " ").splitlines()
    return [line.split()[1:] for line in lines if re.match(r"\S*python \S+\.py", line)]


def _check_pytest(words: list[str]) -> None:
    markers = re.findall(r'^  "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "-m":
            unknown = set(re.findall(r"\w+", after)) - {"and", "or", "not", *markers}
            require(not unknown, f"there is no marker {unknown}")
    paths = [path for path in words if path.startswith("tests/")]
    if not paths:
        return
    found = [str(file) for path in paths for file in ROOT.glob(path.partition("::")[0])]
    require(found, f"there are no {paths}")
    words = [w for w in words if w not in paths] + (found if "::" not in paths[0] else paths)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    require(
        done.returncode == 0,
        f"pytest {' '.join(words)} collects nothing: {(done.stdout + done.stderr)[-500:]}",
    )


def _check_built_program(program: str, words: list[str]) -> None:
    _, tree, *folders, name = program.split("/")
    require(f"-B build/{tree} " in (ROOT / "Makefile").read_text(), f"no build/{tree} is made")
    lists = ROOT.joinpath(*folders, "CMakeLists.txt")
    require(lists.is_file(), f"there is no {lists}")
    require(f"add_executable({name} " in lists.read_text(), f"{lists} makes no {name}")
    tests = sorted((ROOT / "tests/cpp").glob("*.cpp"))
    cases = re.findall(r'TEST_CASE\("([^"]*)"', "\n".join(test.read_text() for test in tests))
    for prefix, known in (("-sf=", [str(test) for test in tests]), ("-tc=", cases)):
        for word in words:
            if word.startswith(prefix):
                pattern = word.removeprefix(prefix)
                require(fnmatch.filter(known, pattern), f"{name}: nothing is {pattern!r}")


def _check_pre_commit(words: list[str]) -> None:
    require((ROOT / ".pre-commit-config.yaml").is_file(), "pre-commit has no configuration")


def _check_export(words: list[str]) -> None:
    require(re.fullmatch(r"[A-Z_]+=\S+", words[0]), f"export {words}")


_CHECKS = {
    "cmake": _check_cmake,
    "export": _check_export,
    "make": _check_make,
    "pip": _check_pip,
    "pre-commit": _check_pre_commit,
    "pytest": _check_pytest,
    "python": _check_python,
    "torchrun": _check_torchrun,
}


def check_options(command: Command) -> None:
    """Raise unless the options are those of a program that their section names."""
    assert command.section is not None
    complaints = []
    for script in scripts_named_in(command.section):
        if command.text in options_of_script(script):
            return  # named, without a value
        try:
            parse(script, command.words)
        except WrongCommandError as error:
            complaints.append(str(error))
        else:
            return
    for other in commands_of_page(command.file):
        if other.section == command.section and other.words[0] == "pip":
            _check_pip(["install", *command.words])
            return
    raise WrongCommandError(f"no program here takes {command.text}: {complaints}")
