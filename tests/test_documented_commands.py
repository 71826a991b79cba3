"""Every command line of the documents is one that its program takes."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="bench/accuracy.py imports what the extra test brings")
from documented_programs import check, check_words, scripts_of_make, torchrun_options
from documents import ROOT, Command, all_commands, commands_of_page
from script_arguments import (
    WrongCommandError,
    documented_scripts,
    help_of_script,
    names_of_script,
    options_of_script,
    parse,
)

COMMANDS = all_commands()
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_command_lines_are_where_this_test_looks_for_them() -> None:
    found = {str(command).partition(":")[0] for command in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "bench/README.md", "docs/cuda.md"} <= found
    assert {"bench/codec_benchmark.py", "examples/mnist_ddp.py"} <= found
    assert len(COMMANDS) > 80


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_is_one_that_its_program_takes(command: Command) -> None:
    picture = "examples/mnist_picture.py"
    if picture in command.words and "parse_arguments" not in names_of_script(picture):
        pytest.skip(f"{picture} has no parse_arguments()")
    check(command)


@pytest.mark.parametrize(
    "text",
    [
        "python bench/ddp.py --modell mnist",
        "python bench/codecs.py --codec int7",
        "python bench/allreduce.py --codec int7",
        "python bench/allreduce.py --algorithm rings",
        "python bench/accuracy.py --task mnists",
        "python bench/gpu.py",
        "python bench/none.py",
        "python tests/none.py",
        "python -m fastcom",
        "python -m pytest tests/test_none.py",
        "python -m pytest tests/test_layers.py -k none_of_them",
        "pytest -m gpus",
        "python examples/mnist_ddp.py --compare --rates 1gbit",
        "python examples/mnist_ddp.py --compare --until most",
        "torchrun --nproc-per-node=2 examples/mnist_ddp.py --codecs int8",
        "torchrun --nprocs=2 examples/mnist_ddp.py",
        "torchrun --max-restart",
        'pip install --no-build-isolation ".[demos]"',
        "pip install --no-build-isolatio .",
        "pip install -C cmake.define.FASTCOMM_NONE=ON .",
        "cmake -B build/cpp -DFASTCOMM_NONE=ON",
        "make demos",
        "make fuzz SECONDS=3600",
        "build/cpp/tests/cpp/fastcomm_test",
        "build/c/tests/cpp/fastcomm_tests",
        "build/cpp/tests/cpp/fastcomm_tests -tc='none of them*'",
        "build/cpp/tests/cpp/fastcomm_tests -sf='*none_test*'",
        "ninja -C build/cpp",
    ],
)
def test_a_wrong_command_is_found(text: str) -> None:
    with pytest.raises(WrongCommandError):
        check_words(Command(ROOT / "README.md", 1, text, None).words)


def test_options_belong_to_a_command_of_their_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n`python bench/ddp.py` takes `--model\nmnist`, not `--mode gpt3`.\n")
    right, wrong = (command for command in commands_of_page(page) if command.is_options)
    check(right)
    with pytest.raises(WrongCommandError, match=r"'gpt3'|--mode"):
        check(wrong)


def test_wrapped_and_commented_lines_are_whole_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```\nmake a \\\n    B=1  # or `make c`\nmake d\n```\n`make\ne` `f`\n")
    words = [(command.line, command.words) for command in commands_of_page(page)]
    assert words == [
        (4, ["make", "a", "B=1"]),
        (4, ["make", "c"]),
        (6, ["make", "d"]),
        (8, ["make", "e"]),
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_the_scripts_of_a_target_take_their_arguments(target: str) -> None:
    for words in scripts_of_make(target):
        check_words(["python", *words])


def test_the_recipes_of_make_are_read() -> None:
    assert ["bench/ddp.py", "--quick"] in scripts_of_make("bench")
    # Where fastcomm is to be built first, there is that, too.
    first_words = [script[:2] for script in scripts_of_make("demo")]
    assert ["examples/mnist_ddp.py", "--compare"] in first_words


def test_the_help_of_make_names_its_variables() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"\b([A-Z_]+)=(?=[ ;\n])", "\n".join(re.findall(r"## (.*\n)", makefile)))
    assert {"EPOCHS", "FUZZ_SECONDS"} <= set(named)
    known = re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
    assert set(named) <= set(known)


def test_the_documented_codecs_of_accuracy_are_taken() -> None:
    script = "bench/accuracy.py"
    check_codecs = names_of_script("bench/accuracy_arguments.py")["check_codecs"]
    words = [c.words for c in COMMANDS if not c.is_options and script in c.words]
    for arguments in (w[w.index(script) + 1 :] for w in words):
        check_codecs(parse(script, arguments).codec, torch.nn.Linear(1, 1))


@pytest.mark.parametrize("script", [*documented_scripts(), "examples/mnist_ddp.py"])
def test_the_help_of_a_script_names_options_that_exist(script: str) -> None:
    scripts = [*documented_scripts(), "examples/mnist_ddp.py", "examples/mnist_compare.py"]
    known = {option for other in scripts for option in options_of_script(other)}
    known |= torchrun_options() | {"--compare"}
    text = names_of_script(script)["__doc__"] or ""
    text += help_of_script(script)
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= known
