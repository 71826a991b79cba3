"""What the benchmarks import beyond fastcomm and torch: the packages of its extra demo.

A command imports its modules within :func:`demo_imports`. Where a package is missing, it then ends
with a sentence that says what brings it, and not with a traceback.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

# As they are imported: sklearn is scikit-learn.
PACKAGES = ["matplotlib", "numpy", "rich", "scipy", "sklearn"]
INSTALL = 'pip install --no-build-isolation ".[demo]"'


@contextmanager
def demo_imports() -> Iterator[None]:
    """End the process with a sentence if an import within fails for want of such a package."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        raise SystemExit(
            f"{package} is not installed. The extra demo brings it, in fastcomm's folder: {INSTALL}"
        ) from None


def check_packages(*packages: str) -> None:
    """End the process now, not when processes that it starts need one that is missing."""
    with demo_imports():
        for package in packages:
            importlib.import_module(package)
