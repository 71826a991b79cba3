"""Prints a CMake list: torch's version, C++11 ABI, CUDA version, folder, pybind11 internals id.

pybind11 keeps its shared state in the interpreter under a key that is the internals id; importing
torch puts it there.
"""

import ctypes
from pathlib import Path

import torch

get_state_dict = ctypes.pythonapi.PyInterpreterState_GetDict
get_state_dict.restype = ctypes.py_object
get_state_dict.argtypes = [ctypes.c_void_p]
get_state = ctypes.pythonapi.PyInterpreterState_Get
get_state.restype = ctypes.c_void_p

internals_ids = [
    key for key in map(str, get_state_dict(get_state())) if key.startswith("__pybind11_internals_")
]
print(
    torch.__version__,
    int(torch._C._GLIBCXX_USE_CXX11_ABI),
    torch.version.cuda or "none",
    Path(torch.__file__).parent,
    internals_ids[0] if len(internals_ids) == 1 else "",
    sep=";",
)
