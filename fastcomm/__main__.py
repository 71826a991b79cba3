"""``python -m fastcomm``: what was built, and what runs."""

import platform

import torch

import fastcomm
from fastcomm import _C, _build_info
from fastcomm.codecs import codec_names


def report() -> dict[str, str]:
    """Return the facts about this build and this machine, in the order to print them."""
    return {
        "fastcomm": fastcomm.__version__,
        "built for torch": f"{_build_info.TORCH_VERSION} (CUDA {_build_info.TORCH_CUDA_VERSION})",
        "running torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "python": platform.python_version(),
        "compiler": _build_info.COMPILER,
        "C++11 ABI": str(_build_info.CXX11_ABI),
        "pybind11 internals": _build_info.PYBIND11_INTERNALS,
        "CUDA architectures": _build_info.CUDA_ARCHITECTURES or "none: built for the CPU only",
        "CPU instruction set": f"{_C.active_isa()} (supported: {', '.join(_C.supported_isas())})",
        "codecs": ", ".join(codec_names()),
        "algorithms": ", ".join(["auto", *_C.algorithm_names()]),
    }


if __name__ == "__main__":
    for name, value in report().items():
        print(f"{name + ':':<21} {value}")
