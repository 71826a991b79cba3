"""The documents as tests read them: pages in sections, and the command lines that they have.

A command line is a line of a fenced block without a language, a comment there or in Python that
begins with the name of a program, an inline span that does, or a line of a module's docstring.
An inline span that begins with an option belongs to a command or script of its section.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["bench", "cmake", "csrc", "docs", "examples", "fastcomm", "tests"]
PAGES = sorted([*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])
MODULES = sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))
PROGRAMS = {"cmake", "make", "pip", "pre-commit", "pytest", "python", "torchrun"}
SHELL, CODE = {"", "bash", "sh"}, "python"

_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)([^`]+)\1(?!`)")
_DOCSTRING_LINE = re.compile(r"^ *((?:python \S+\.py|torchrun -).*)$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """What stands under a heading, the heading included."""

    page: Path
    line: int
    heading: str
    text: str


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """A command line, and where it stands."""

    file: Path
    line: int
    text: str
    section: Section | None  # None: a docstring

    @property
    def is_options(self) -> bool:
        """Whether it has no program, but options alone."""
        return self.text.startswith("-")

    @property
    def words(self) -> list[str]:
        """The command line as a shell cuts it."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} {' '.join(self.text.split())[:60]}"


def sections(page: Path) -> list[Section]:
    """Cut a page at its headings."""
    found: list[Section] = []
    lines: list[str] = []
    start, heading, fenced = 1, "", False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        title = None if fenced else re.match(r"#+ (.*)", line)
        if title:
            found.append(Section(page, start, heading, "\n".join(lines)))
            start, heading, lines = number, title[1], []
        lines.append(line)
    return [*found, Section(page, start, heading, "\n".join(lines))]


def prose_and_fences(section: Section) -> tuple[str, list[Fence]]:
    """Return the text with empty lines where fenced blocks are, and those blocks."""
    prose: list[str] = []
    fences: list[Fence] = []
    fence: Fence | None = None
    for number, line in enumerate(section.text.splitlines(), section.line):
        if line.startswith("```"):
            if fence is None:
                fence = Fence(line[3:].strip(), number + 1, "")
            else:
                fences.append(fence)
                fence = None
        elif fence is not None:
            fence = Fence(fence.language, fence.line, fence.text + line + "\n")
        prose.append("" if fence or line.startswith("```") else line)
    assert fence is None, f"{section.page}: a fenced block has no end"
    return "\n".join(prose), fences


def spans(text: str, first_line: int = 1) -> Iterator[tuple[int, str]]:
    """Yield inline code and its line; a span does not reach beyond its paragraph."""
    for match in _SPAN.finditer(text):
        if "\n\n" not in match[2]:
            yield first_line + text.count("\n", 0, match.start()), match[2].strip()


def is_command(text: str) -> bool:
    """Say whether a span, or a comment, is something to run: a program and its arguments."""
    first, *rest = text.split() or [""]
    is_program = first in PROGRAMS or first.startswith((".venv/bin/", "build/"))
    return is_program and bool(rest)


def _in_fence(fence: Fence) -> Iterator[tuple[int, str]]:
    number = fence.line
    for line in fence.text.replace("\\\n", "\\\0").splitlines():
        code, _, comment = line.partition("#")
        if fence.language in SHELL and code.strip():
            yield number, line.replace("\\\0", " ")
        if fence.language == CODE and is_command(comment.strip()):
            yield number, comment.strip()
        yield from ((number, text) for _, text in spans(comment) if is_command(text))
        number += 1 + line.count("\0")


def commands_of_page(page: Path) -> list[Command]:
    """Return the command lines of a page, from its top to its end."""
    found: list[Command] = []
    for section in sections(page):
        prose, fences = prose_and_fences(section)
        texts = [pair for fence in fences for pair in _in_fence(fence)]
        texts += [
            (line, text)
            for line, text in spans(prose, section.line)
            if is_command(text) or re.match(r"--?[a-zA-Z]", text)
        ]
        texts.sort(key=lambda pair: pair[0])
        found += [Command(page, line, text, section) for line, text in texts]
    return found


def docstring_of(module: Path) -> str:
    """Return a module's docstring, or nothing."""
    return ast.get_docstring(ast.parse(module.read_text()), clean=False) or ""


def commands_of_docstring(module: Path) -> list[Command]:
    """Return the command lines of a module's docstring."""
    text = docstring_of(module)
    lines = [
        (1 + text.count("\n", 0, match.start(1)), match[1])
        for match in _DOCSTRING_LINE.finditer(text)
    ]
    lines += [(line, span) for line, span in spans(text) if is_command(span)]
    return [Command(module, line, span, None) for line, span in lines]


@cache
def all_commands() -> list[Command]:
    """Return every command line of the pages and of the modules' docstrings."""
    found = [command for page in PAGES for command in commands_of_page(page)]
    return found + [command for module in MODULES for command in commands_of_docstring(module)]
