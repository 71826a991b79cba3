"""What several test files share: the instruction sets, and how hypothesis runs."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

from fastcomm import _C

# In CI the same examples on every run: a red run is the change's fault, not chance's.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
# pytest --hypothesis-profile=thorough: an hour, for changes of a codec.
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "default")


@pytest.fixture(params=_C.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for each instruction set of this host, with that one forced."""
    name: str = request.param
    _C.force_isa(name)
    yield name
    _C.force_isa("")
