"""What the documents point to exists: pages, headings, files, tests, and names in Python."""

import ast
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import fastcomm
from documents import (
    CODE,
    FOLDERS,
    MODULES,
    PAGES,
    ROOT,
    docstring_of,
    prose_and_fences,
    sections,
    spans,
)

# Both are built, or written by a command.
NOT_IN_THE_REPOSITORY = ("build/", "bench/results/")
# What `state` and `simulation` are in the examples.
INSTANCES = {"fastcomm": fastcomm, "state": fastcomm.HookState, "simulation": fastcomm.Simulation}

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FROM_THE_ROOT = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w.*/-]*[\w*/]")
PATH = re.compile(r"\.?[\w*-]+(?:/[\w.*-]*)+|\w[\w*-]*\.(?:cpp|cu|cuh|h|inl|json|md|png|py|txt)")
TEST = re.compile(r"(?<![\w/])(?:test_\w+|\w+_test)(?![\w/*])")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    return "\n".join(prose_and_fences(section)[0] for section in sections(page))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = [section.heading.lower() for section in sections(page)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def wrong_links(page: Path) -> list[str]:
    wrong = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue  # elsewhere
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            wrong.append(target)
    return wrong


def wrong_paths(page: Path) -> list[str]:
    """Return the paths in inline code that lead nowhere, from the page's folder or the root."""
    wrong = []
    for _, span in spans(prose_of(page)):
        if not PATH.fullmatch(span) or span.startswith(NOT_IN_THE_REPOSITORY):
            continue
        below = [page.parent, ROOT]
        if "/" not in span:  # a file that the text around it places
            below += [ROOT / folder for folder in FOLDERS]
            span = f"**/{span}"
        if not any(True for folder in below for _ in folder.glob(span.rstrip("/"))):
            wrong.append(span)
    return wrong


def wrong_paths_from_the_root(text: str) -> list[str]:
    """Return the paths that begin with one of our folders and lead nowhere."""
    found = FROM_THE_ROOT.findall(text)
    found = [path for path in found if not path.startswith(NOT_IN_THE_REPOSITORY)]
    return [path for path in found if not any(ROOT.glob(path.rstrip("/")))]


@cache
def known_tests() -> set[str]:
    """Return the names of all files of tests, and of the test functions in them."""
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/cpp/*.cpp")]
    functions = re.findall(r"^def (test_\w+)", "\n".join(f.read_text() for f in files), re.M)
    return {*(file.stem for file in files), *functions}


def wrong_tests(page: Path) -> list[str]:
    return [name for name in TEST.findall(prose_of(page)) if name not in known_tests()]


@cache
def examples() -> list[tuple[str, str]]:
    """Return the Python examples of all pages, and where they stand."""
    return [
        (f"{name_of(page)}:{fence.line}", fence.text)
        for page in PAGES
        for section in sections(page)
        for fence in prose_and_fences(section)[1]
        if fence.language == CODE
    ]


def chain(node: ast.expr) -> list[str]:
    """Return the names of a.b.c, or nothing for another expression."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def resolve(names: list[str]) -> object:
    """Return what a.b.c is, as far as a class can tell; raise AttributeError if it is nothing."""
    found: object = INSTANCES[names[0]]
    for name in names[1:]:
        found = getattr(found, name)
        if isinstance(found, property):
            found = inspect.signature(found.fget).return_annotation  # type: ignore[arg-type]
    return found


def wrong_names(text: str) -> list[str]:
    """Return what an example takes for a name, or an option, of fastcomm."""
    wrong = []
    for node in ast.walk(ast.parse(text)):
        called = node.func if isinstance(node, ast.Call) else node
        names = chain(called) if isinstance(called, ast.expr) else []
        if not names or names[0] not in INSTANCES or len(names) < 2:
            continue
        try:
            found = resolve(names)
        except AttributeError:
            wrong.append(".".join(names))
            continue
        if isinstance(node, ast.Call):
            given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            known = set(inspect.signature(found).parameters)  # type: ignore[arg-type]
            if "options" in known:
                known |= set(inspect.signature(fastcomm.HookState).parameters)
            wrong += [f"{'.'.join(names)}({option}=)" for option in sorted(given - known)]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_points_to_exists(page: Path) -> None:
    assert not wrong_links(page), "links"
    assert not wrong_paths(page), "paths"
    assert not wrong_paths_from_the_root(page.read_text()), "paths"
    assert not wrong_tests(page), "tests"


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n\n[a](#a-b-c) [b](#a-b) [c](page.md) [d](none.md) [e](https://none)\n"
        "`tests/oracle*.py`, `tests/none*.py`, `csrc/codecs/`, `csrc/none/`, `ring.cpp`, `none.h`\n"
        "test_layers test_none isa_test none_test\n"
    )
    assert wrong_links(page) == ["#a-b", "none.md"]
    assert wrong_paths(page) == ["tests/none*.py", "csrc/none/", "**/none.h"]
    assert wrong_tests(page) == ["test_none", "none_test"]
    assert wrong_paths_from_the_root("see bench/none.py, bench/ddp.py.") == ["bench/none.py"]


def test_the_docstrings_of_modules_point_to_what_exists() -> None:
    wrong = {name_of(module): wrong_paths_from_the_root(docstring_of(module)) for module in MODULES}
    assert not {name: paths for name, paths in wrong.items() if paths}


@pytest.mark.parametrize(("place", "text"), examples(), ids=[place for place, _ in examples()])
def test_the_python_examples_use_names_that_exist(place: str, text: str) -> None:
    assert not wrong_names(text)


def test_names_that_do_not_exist_are_found() -> None:
    right = "fastcomm.register(model, codec='int8', momentum=0.9); state.stats.ratio"
    assert wrong_names(right) == []
    wrong = (
        "fastcomm.registre(m); state.flosh(); state.stats.rate; fastcomm.register(m, policies=1)"
    )
    assert set(wrong_names(wrong)) == {
        *("fastcomm.registre", "state.flosh", "state.stats.rate"),
        "fastcomm.register(policies=)",
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_text_exist(page: Path) -> None:
    calls = [span for _, span in spans(prose_of(page)) if span.split(".")[0] in INSTANCES]
    found = {name for call in calls for name in re.findall(r"^\w+(?:\.\w+)+", call)}
    assert not [name for name in found if wrong_names(name)]


def test_the_first_example_of_the_readme_runs_on_two_ranks(tmp_path: Path) -> None:
    place, text = examples()[
        [place.partition(":")[0] for place, _ in examples()].index("README.md")
    ]
    assert "torchrun --nproc-per-node=2 train.py" in text
    assert len(text.splitlines()) == 10, place
    (tmp_path / "train.py").write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    # What the ranks say goes to files: in one stream, their lines may run into each other.
    command += ["--log-dir", "logs", "--redirects", "1", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ratios = [float(log.read_text()) for log in (tmp_path / "logs").rglob("stdout.log")]
    assert ratios == pytest.approx([7.8, 7.8], abs=0.05)
