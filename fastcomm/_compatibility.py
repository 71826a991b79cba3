"""Checks that the native module fits the running torch, before it is loaded.

c10d is not part of torch's stable ABI: a module built for one minor version loads under another
and then calls the wrong virtual functions.
"""

import torch

from fastcomm.errors import Error

# The cache is skipped: pip keeps the wheel that it built for the other torch.
REBUILD_COMMAND = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."


def minor_version(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as ``2.13.0+cpu``."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def check_torch(built_for: str, running: str) -> None:
    """Raise :class:`fastcomm.Error` if the two versions of torch are not ABI-compatible."""
    if minor_version(built_for) != minor_version(running):
        raise Error(
            f"fastcomm was built for torch {built_for}, but torch {running} is running. "
            f"Rebuild it against the installed torch, in a checkout of fastcomm: {REBUILD_COMMAND}"
        )


def check_build() -> None:
    """Check the torch that fastcomm was built for against the running one."""
    try:
        from fastcomm import _build_info
    except ImportError:
        raise Error(
            "the native module of fastcomm is not built. In a checkout of fastcomm: "
            "pip install --no-build-isolation ."
        ) from None
    check_torch(_build_info.TORCH_VERSION, torch.__version__)
