"""What the MNIST example needs and does not find is named, with the extra that brings it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# Runs a script as Python does, where one package is not installed.
_WITHOUT = """
import os, runpy, sys
package, script, *sys.argv[1:] = sys.argv[1:]
sys.modules[package] = None
sys.argv[0] = script
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("rich", ["mnist_ddp.py", "--help"]),
        ("sklearn", ["mnist_ddp.py", "--compare", "--data", "digits", "--rate", "none"]),
        ("matplotlib", ["mnist_ddp.py", "--compare", "--help"]),
        ("matplotlib", ["mnist_picture.py", "--help"]),
    ],
)
def test_missing_package_is_named_in_one_sentence(package: str, command: list[str]) -> None:
    script = str(EXAMPLES / command[0])
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, package, script, *command[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"{package} is not installed. The extra demo brings it, in fastcomm's folder: pip install "
        '--no-build-isolation ".[demo]"\n'
    )
