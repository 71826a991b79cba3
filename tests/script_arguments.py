"""What the scripts of bench/ and examples/ make of their arguments, without running.

Each has a function parse_arguments(), which depends on the command line alone, and knows which
values an option can have.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from documents import ROOT, Section, all_commands

_EXAMPLE = "examples/mnist_ddp.py"
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


class WrongCommandError(AssertionError):
    """A documented command line that would fail."""


def require(condition: object, complaint: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise WrongCommandError(complaint)


@contextlib.contextmanager
def _command_line(words: Sequence[str]) -> Iterator[io.StringIO]:
    """Let this process have another command line; what it prints is kept."""
    before, printed = (sys.argv, list(sys.path)), io.StringIO()
    sys.argv = list(words)
    sys.path += [str(ROOT / "bench"), str(ROOT / "examples")]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        sys.argv, sys.path[:] = before


@cache
def names_of_script(script: str) -> dict[str, Any]:
    """Return what a script defines."""
    with _command_line([script]):
        return runpy.run_path(str(ROOT / script))


def parse(script: str, words: Sequence[str]) -> Any:
    """Return what a script of bench/ or examples/ makes of its arguments."""
    require((ROOT / script).is_file(), f"there is no {script}")
    if script == _EXAMPLE and "--compare" in words:
        rest = [word for word in words if word != "--compare"]
        _, words = parse("examples/mnist_compare.py", rest)  # others are for every run
    names = names_of_script(script)
    require("parse_arguments" in names, f"{script} has no parse_arguments()")
    with _command_line([script, *words]) as printed:
        try:
            return names["parse_arguments"]()
        except SystemExit as end:
            message = printed.getvalue().strip().splitlines()[-1:] or [str(end)]
            raise WrongCommandError(f"{script} {' '.join(words)}: {message[0]}") from None


@cache
def help_of_script(script: str) -> str:
    """Return what a script prints with --help."""
    with _command_line([script, "--help"]) as printed, contextlib.suppress(SystemExit):
        names_of_script(script)["parse_arguments"]()
    return printed.getvalue()


@cache
def options_of_script(script: str) -> frozenset[str]:
    """Return the options that a script has, by its --help."""
    uses = re.findall(r"^  (-.*?)(?:  |$)", help_of_script(script), re.MULTILINE)
    return frozenset(option for use in uses for option in OPTION.findall(use))


def scripts_named_in(section: Section) -> list[str]:
    """Return the scripts of bench/ and examples/ that a section names, with a folder or without."""
    found = []
    for name in dict.fromkeys(re.findall(r"\b(\w+\.py)\b", section.text)):
        found += [f"{f}/{name}" for f in ("bench", "examples") if (ROOT / f / name).is_file()]
    return [script for script in found if "parse_arguments" in names_of_script(script)]


def documented_scripts() -> list[str]:
    """Return the scripts of bench/ that a document runs."""
    words = [word for command in all_commands() for word in command.words]
    return sorted({word for word in words if re.fullmatch(r"bench/\w+\.py", word)})
