"""The example of docs/adding_a_codec.md is the header that the C++ tests build with."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_of_the_page_is_the_header_that_is_tested() -> None:
    page = (ROOT / "docs/adding_a_codec.md").read_text()
    examples = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert examples == [(ROOT / "tests/cpp/int6.h").read_text()]
