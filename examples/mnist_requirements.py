"""Says which extra brings a package that the example needs and that is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OF_THE_DEMO_EXTRA = ("matplotlib", "numpy", "rich", "sklearn")


@contextmanager
def demo_extra() -> Iterator[None]:
    """End the program, with one sentence, if what is imported here is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OF_THE_DEMO_EXTRA:
            raise
        sys.exit(
            f"{package} is not installed. The extra demo brings it, in fastcomm's folder: "
            'pip install --no-build-isolation ".[demo]"'
        )
