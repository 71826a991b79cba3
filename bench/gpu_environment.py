"""What a GPU machine is: the facts in every row of bench/gpu.py. Works before fastcomm is built."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

Facts = dict[str, str | int | None]
_REPOSITORY = Path(__file__).resolve().parent.parent


def obstacle() -> str:
    """Return why nothing can be measured here, nothing if it can."""
    if torch.version.cuda is None:
        return f"no GPU: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"no GPU: torch {torch.__version__} sees none on this machine"
    return ""


def architecture() -> str:
    """Return the GPU's architecture as CMake has it, such as 90."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def facts(commit: str | None) -> Facts:
    """Return what every row says about where it comes from."""
    gpu = torch.cuda.get_device_properties(0)
    return {
        "machine": f"{platform.node()} {platform.platform()}",
        "cpu_model": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu.name,
        "gpu_count": torch.cuda.device_count(),
        "gpu_memory_bytes": gpu.total_memory,
        "gpu_multiprocessors": gpu.multi_processor_count,
        "gpu_l2_bytes": getattr(gpu, "L2_cache_size", None),
        "gpu_architecture": architecture(),
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _answer("nvcc", "--version"),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nccl": _nccl_version(),
        "triton": _version_of("triton"),
        "python": platform.python_version(),
        "commit": commit or _commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _answer(*command: str) -> str | None:
    """Return the last line that a program says, None if there is no such program."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _nccl_version() -> str | None:
    try:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError):
        return None
    return ".".join(map(str, version))


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    git = ["git", "--no-optional-locks", "-C", str(_REPOSITORY)]
    try:
        done = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
