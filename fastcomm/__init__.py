"""Compressed gradient synchronization for PyTorch data-parallel training, with nothing lost."""

from fastcomm._compatibility import check_build

check_build()

from fastcomm.codecs import (  # noqa: E402  (the check must come before the native module)
    Bf16,
    Codec,
    Fp32,
    Int4,
    Int8,
    TopK,
    codec,
)
from fastcomm.errors import ArgumentError, Error, MismatchError, PayloadError  # noqa: E402
from fastcomm.hook import HookState, compress_hook, register  # noqa: E402
from fastcomm.reduce import Work, all_reduce  # noqa: E402
from fastcomm.stats import Stats  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Bf16",
    "Codec",
    "Error",
    "Fp32",
    "HookState",
    "Int4",
    "Int8",
    "MismatchError",
    "PayloadError",
    "Stats",
    "TopK",
    "Work",
    "all_reduce",
    "codec",
    "compress_hook",
    "register",
]
