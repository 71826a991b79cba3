"""What was built is told; what does not fit the running torch is refused before it is loaded."""

import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcomm
from fastcomm import _C, _build_info, _compatibility

# What happens at import needs a fresh interpreter. The memory map shows the native module however
# it was loaded.
IMPORT_AND_REPORT = """
import sys, torch
{before}
try:
    import fastcomm
except Exception as error:
    print(type(error).__module__, type(error).__qualname__)
    print(error)
else:
    print("imported")
loaded = "fastcomm._C" in sys.modules
mapped = "fastcomm/_C." in open("/proc/self/maps").read()
print("native module:", "loaded" if loaded or mapped else "not loaded")
"""


def run_python(tmp_path: Path, *arguments: str) -> str:
    # An empty working directory: a source tree there would hide the installed package.
    completed = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def import_fastcomm(tmp_path: Path, before: str) -> str:
    return run_python(tmp_path, "-c", IMPORT_AND_REPORT.format(before=before))


@pytest.mark.parametrize("running", ["2.12.1+cpu", "2.14.0", "3.13.0+cu128", "2.14.0a0+git1a2b3c"])
def test_torch_mismatch_names_both_versions_and_the_command(running: str) -> None:
    with pytest.raises(fastcomm.Error) as caught:
        _compatibility.check_torch("2.13.0+cpu", running)
    message = str(caught.value)
    assert "built for torch 2.13.0+cpu" in message
    assert f"torch {running} is running" in message
    assert "pip install --no-build-isolation" in message


@pytest.mark.parametrize("running", ["2.13.0+cpu", "2.13.1", "2.13.2+cu128", "2.13.0a0+git1a2b3c"])
def test_torch_of_the_same_minor_version_fits(running: str) -> None:
    _compatibility.check_torch("2.13.0+cpu", running)


def test_import_under_another_torch_fails_before_the_native_module_is_loaded(
    tmp_path: Path,
) -> None:
    output = import_fastcomm(tmp_path, 'torch.__version__ = "2.99.0+other"')
    assert "fastcomm.errors Error" in output
    assert f"built for torch {_build_info.TORCH_VERSION}, but torch 2.99.0+other" in output
    assert _compatibility.REBUILD_COMMAND in output
    assert "native module: not loaded" in output


def test_import_under_the_right_torch_loads_the_native_module(tmp_path: Path) -> None:
    """Also shows that the test above would notice a loaded module."""
    output = import_fastcomm(tmp_path, "")
    assert output == "imported\nnative module: loaded\n"


def test_import_without_a_build_says_how_to_build(tmp_path: Path) -> None:
    output = import_fastcomm(tmp_path, 'sys.modules["fastcomm._build_info"] = None')
    assert "fastcomm.errors Error" in output
    assert "native module of fastcomm is not built" in output
    assert "pip install --no-build-isolation ." in output
    assert "native module: not loaded" in output


def test_python_m_fastcomm_prints_what_was_built_and_what_runs(tmp_path: Path) -> None:
    lines = run_python(tmp_path, "-m", "fastcomm").splitlines()
    facts = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert facts["fastcomm"] == fastcomm.__version__
    assert facts["built for torch"].startswith(_build_info.TORCH_VERSION)
    assert facts["running torch"].startswith(torch.__version__)
    assert facts["CPU instruction set"].startswith(_C.supported_isas()[-1])
    for isa in _C.supported_isas():
        assert isa in facts["CPU instruction set"]
    for codec in ["fp32", "bf16", "fp16", "fp8", "int8", "int4", "int2", "sign", "topk:DENSITY"]:
        assert codec in facts["codecs"].split(", ")
    for algorithm in ["auto", "ring", "gather", "scatter_gather"]:
        assert algorithm in facts["algorithms"].split(", ")
    assert "CUDA architectures" in facts


def test_every_native_codec_has_a_python_name() -> None:
    for native in _C.dense_formats():
        assert str(fastcomm.codec(native.name)) == native.name


def test_forcing_an_unknown_instruction_set_lists_the_supported_ones() -> None:
    before = _C.active_isa()
    with pytest.raises(fastcomm.Error, match="'sse9' is not supported by this CPU") as caught:
        _C.force_isa("sse9")
    for isa in _C.supported_isas():
        assert isa in str(caught.value)
    assert _C.active_isa() == before


def test_forced_instruction_set_is_in_use_until_it_is_restored(isa: str) -> None:
    assert _C.active_isa() == isa
    _C.force_isa("")
    assert _C.active_isa() == _C.supported_isas()[-1]


def test_the_package_is_typed() -> None:
    package = importlib.resources.files("fastcomm")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("_C.pyi").is_file()
