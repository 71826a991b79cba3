"""The layers keep to themselves: read from the sources, because a breach may well compile."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each layer may include itself and those before it.
LAYERS = ["core", "codecs", "collectives", "bindings"]
CPP_SUFFIXES = {".h", ".cpp", ".inl", ".cu", ".cuh"}
OWN_FOLDERS = ["bench", "cmake", "csrc", "examples", "fastcomm", "tests"]
OWN_SUFFIXES = CPP_SUFFIXES | {".py", ".pyi", ".cmake", ".txt", ".in"}
MOST_LINES = 300

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
CODEC_NAME = re.compile(r'kName = "(\w+)"')
DTYPE_WORD = re.compile(r"\b(?:DType|BFloat16|Float16|kFloat\w*|float|half|bfloat16|float16)\b")
ENVIRONMENT = re.compile(r"\b(?:(?:secure_)?getenvb?|environb?)\b")


def files_of(folder: str, suffixes: set[str]) -> list[Path]:
    files = sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes and p.is_file())
    assert files, f"{folder} has no sources: has it moved?"
    return files


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def code_of(file: Path) -> str:
    return COMMENT.sub("", file.read_text())


def included_by(file: Path) -> list[str]:
    return INCLUDE.findall(code_of(file))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_includes_only_those_before_it(layer: str) -> None:
    forbidden = LAYERS[LAYERS.index(layer) + 1 :]
    breaches = [
        f"{name_of(file)} includes {header}"
        for file in files_of(f"csrc/{layer}", CPP_SUFFIXES)
        for header in included_by(file)
        if header.split("/")[0] in forbidden or ".." in header
    ]
    assert not breaches


def test_every_folder_of_csrc_is_a_layer() -> None:
    assert sorted(p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()) == sorted(LAYERS)


def test_only_the_bindings_see_torch_and_python() -> None:
    foreign = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h|caffe2)\b")
    files = [f for layer in LAYERS[:-1] for f in files_of(f"csrc/{layer}", CPP_SUFFIXES)]
    breaches = [
        f"{name_of(file)} includes {header}"
        for file in [*files, *files_of("tests/cpp", CPP_SUFFIXES)]
        for header in included_by(file)
        if foreign.match(header)
    ]
    assert not breaches


def test_schedules_name_no_codec_and_no_dtype() -> None:
    codecs = {
        name
        for file in files_of("csrc/codecs/dense", {".h"})
        for name in CODEC_NAME.findall(file.read_text())
    }
    assert {"fp32", "int8"} <= codecs, "the dense codecs are not where this test looks for them"
    words = re.compile("|".join(sorted(codecs | {"topk", "top_k", "dense", "sparse"})), re.I)
    breaches = [
        f"{name_of(file)} names {match.group()!r}"
        for file in files_of("csrc/collectives", CPP_SUFFIXES)
        for pattern in (words, DTYPE_WORD)
        for match in pattern.finditer(code_of(file))
    ]
    assert not breaches


def test_the_environment_is_not_read() -> None:
    files = files_of("csrc", CPP_SUFFIXES) + files_of("fastcomm", {".py"})
    assert not [name_of(file) for file in files if ENVIRONMENT.search(file.read_text())]


def test_no_source_file_is_too_long() -> None:
    lengths = {
        name_of(file): len(file.read_text().splitlines())
        for folder in OWN_FOLDERS
        for file in files_of(folder, OWN_SUFFIXES)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
