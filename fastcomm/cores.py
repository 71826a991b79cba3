"""How many cores this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path


def count_cores(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the number of cores: those of its affinity, or fewer if a cgroup has a quota.

    A container's CPU limit is such a quota. It leaves the affinity alone, and threads beyond it
    only take the time from each other.

    Args:
        cgroups: where these are.
        own: what says in which of them this process is.
    """
    quotas = [
        quota for folder in _own_folders(cgroups, own) if (quota := _quota(folder)) is not None
    ]
    return max(1, math.floor(min([len(os.sched_getaffinity(0)), *quotas])))


def _own_folders(root: Path, own: Path) -> list[Path]:
    """Return the folders of the cgroups that this process is in, of version 2 and 1.

    In a container they may have the path that they have outside, and be the root inside.
    """
    folders = [root, root / "cpu"]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct"):
                top = root / "cpu" if controllers else root
                folder = top / path.lstrip("/")
                folders += [folder, *(above for above in folder.parents if top in above.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    """Return how many cores the processes of a cgroup may use together; None: any number."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    return None
