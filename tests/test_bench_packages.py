"""Whoever lacks a package of the extra demo is told so: by the documents, and by each benchmark."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the commands are read by importing what they need")
from documented_programs import extras
from documents import PAGES, ROOT, Section, commands_of_page
from script_arguments import documented_scripts

sys.path.append(str(ROOT / "bench"))
from demo_extra import INSTALL, PACKAGES

DISTRIBUTIONS = {"sklearn": "scikit-learn"}
NEED_NOTHING = ["bench/plain_stream.py", "bench/shaped_link.py"]
IN_NEED = [script for script in documented_scripts() if script not in NEED_NOTHING]
# As if these packages were not installed: import them, and it fails as it would then.
RUN_WITHOUT = """
import runpy, sys
missing, sys.argv = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(missing))
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(packages: list[str], script: str, *arguments: str) -> tuple[int, str]:
    """Return the exit code of a script, and what it said."""
    command = [sys.executable, "-c", RUN_WITHOUT, ",".join(packages), str(ROOT / script)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, done.stdout + done.stderr


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Return the packages that a script imports, or what it imports or starts of our own."""
    files, waiting, found = set[Path](), [file], set[str]()
    while waiting:
        current = waiting.pop()
        if current in files:
            continue
        files.add(current)
        names: list[str] = []
        for node in ast.walk(ast.parse(current.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module.split(".")[0])
            elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
                names.append(Path(str(node.value)).stem)
        for name in names:
            here = [ROOT / folder / f"{name}.py" for folder in ("bench", "examples", "tests")]
            waiting += [other for other in here if other.is_file()]
            found.add(name)
    return frozenset(found & set(PACKAGES))


def commands_without_an_extra(page: Path) -> list[str]:
    """Return the commands whose section names no extra that brings what they import."""
    wrong = []
    for command in commands_of_page(page):
        scripts = [w for w in command.words if re.fullmatch(r"(bench|examples)/\w+\.py", w)]
        for script in scripts:
            needed = {DISTRIBUTIONS.get(name, name) for name in imports_of(ROOT / script)}
            if not needed <= brought_by_extras_of(command.section):
                wrong.append(command.text)
    return wrong


def brought_by_extras_of(section: Section | None) -> set[str]:
    """Return the packages of the extras that a section installs."""
    assert section is not None
    named = re.findall(r'--no-build-isolation\s+"\.\[([\w,]+)\]"', section.text)
    return {package for names in named for name in names.split(",") for package in extras()[name]}


def test_the_packages_are_those_of_the_extra() -> None:
    assert sorted(DISTRIBUTIONS.get(name, name) for name in PACKAGES) == sorted(extras()["demo"])
    assert '".[demo]"' in INSTALL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_extra_is_named_where_the_command_stands(page: Path) -> None:
    assert commands_without_an_extra(page) == []


def test_a_command_without_its_extra_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = "`python bench/ddp.py`"
    page.write_text(
        f"# A\n\n{command}\n\n# B\n\n{command} needs `{INSTALL}`\n\n"
        "# C\n\n`python bench/shaped_link.py`\n"
    )
    assert commands_without_an_extra(page) == ["python bench/ddp.py"]
    assert {"numpy", "rich", "sklearn"} <= imports_of(ROOT / "bench/elastic.py")


@pytest.mark.parametrize("script", IN_NEED)
def test_a_benchmark_says_what_brings_a_missing_package(script: str, tmp_path: Path) -> None:
    arguments = ["--json", str(tmp_path / "out.json")] if script == "bench/gpu.py" else []
    code, said = run_without(PACKAGES, script, *arguments)
    assert code == 1
    assert "Traceback" not in said
    assert re.search(rf"^\w+ is not installed\. .*{re.escape(INSTALL)}$", said, re.MULTILINE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "package"),
    [
        ("bench/accuracy.py", ["--quick"], "sklearn"),
        ("bench/elastic.py", [], "sklearn"),
        ("bench/elastic.py", ["--data-root=none"], "rich"),
        ("bench/gpu.py", ["--json=none/out.json"], "sklearn"),
    ],
)
def test_a_package_that_is_needed_later_is_named_at_once(
    script: str, arguments: list[str], package: str
) -> None:
    code, said = run_without([package], script, *arguments)
    assert code == 1
    assert package in said or DISTRIBUTIONS[package] in said
    assert ".[demo]" in said
    assert said.count("\n") == 1, "a sentence"


@pytest.mark.parametrize("script", NEED_NOTHING)
def test_these_need_none_of_the_packages(script: str) -> None:
    code, said = run_without(PACKAGES, script, "--help")
    assert code == 0, said
