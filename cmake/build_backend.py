"""The build backend: scikit-build-core's, after a look at what a build needs (build_checks.py).

``requires`` in pyproject.toml is empty on purpose. pip installs what stands there into an
environment of its own, where the torch that fastcomm must be compiled against is not: with torch
among them it downloads gigabytes and builds for another torch. So that environment is left empty,
and the check ends the build there at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_checks

_BUILD_FOLDER = Path("build")


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return that nothing is to be installed; end here if anything is missing."""
    build_checks.require_all()
    return []


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return that nothing is to be installed; end here if anything is missing."""
    build_checks.require_all()
    return []


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what packs the sources, for which no torch is needed."""
    return [f"scikit-build-core>={build_checks.OLDEST_SCIKIT_BUILD_CORE}"]


def prepare_metadata_for_build_wheel(
    folder: str, config_settings: dict[str, Any] | None = None
) -> str:
    """Write the metadata; return the name of their folder."""
    build_checks.require_all()
    name: str = _backend().prepare_metadata_for_build_wheel(folder, config_settings)
    return name


def prepare_metadata_for_build_editable(
    folder: str, config_settings: dict[str, Any] | None = None
) -> str:
    """Write the metadata; return the name of their folder."""
    build_checks.require_all()
    name: str = _backend().prepare_metadata_for_build_editable(folder, config_settings)
    return name


def build_wheel(
    folder: str, config_settings: dict[str, Any] | None = None, metadata_folder: str | None = None
) -> str:
    """Build a wheel, in a folder of this process: others may build from the same checkout."""
    build_checks.require_all()
    name: str = _backend().build_wheel(folder, config_settings, metadata_folder)
    return name


def build_editable(
    folder: str, config_settings: dict[str, Any] | None = None, metadata_folder: str | None = None
) -> str:
    """Build for a checkout that is used in place, in the folder that it keeps for that."""
    build_checks.require_all()
    with _alone():
        name: str = _backend().build_editable(folder, config_settings, metadata_folder)
        return name


def build_sdist(folder: str, config_settings: dict[str, Any] | None = None) -> str:
    """Pack the sources; return the name of the archive."""
    name: str = _backend().build_sdist(folder, config_settings)
    return name


def _backend() -> Any:
    import scikit_build_core.build

    return scikit_build_core.build


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process builds in the folder that a checkout keeps."""
    _BUILD_FOLDER.mkdir(exist_ok=True)
    import fcntl  # which Windows lacks, as a check says

    with open(_BUILD_FOLDER / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
