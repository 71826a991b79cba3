"""Compressed gradient synchronization for PyTorch data-parallel training, with nothing lost."""

from fastcomm._compatibility import check_build

check_build()

from fastcomm.checkpoint import load_sharded_state_dict, sharded_state_dict  # noqa: E402
from fastcomm.codecs import (  # noqa: E402
    Bf16,
    Codec,
    DenseCodec,
    Fp8,
    Fp16,
    Fp32,
    Int2,
    Int4,
    Int8,
    Sign,
    TopK,
    codec,
)
from fastcomm.errors import (  # noqa: E402
    ArgumentError,
    Error,
    MismatchError,
    PayloadError,
    PeerError,
)
from fastcomm.hook import HookState, compress_hook  # noqa: E402
from fastcomm.reduce import Work, all_reduce  # noqa: E402
from fastcomm.registration import register  # noqa: E402
from fastcomm.simulation import Simulation  # noqa: E402
from fastcomm.stats import Stats  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Bf16",
    "Codec",
    "DenseCodec",
    "Error",
    "Fp8",
    "Fp16",
    "Fp32",
    "HookState",
    "Int2",
    "Int4",
    "Int8",
    "MismatchError",
    "PayloadError",
    "PeerError",
    "Sign",
    "Simulation",
    "Stats",
    "TopK",
    "Work",
    "all_reduce",
    "codec",
    "compress_hook",
    "load_sharded_state_dict",
    "register",
    "sharded_state_dict",
]
