"""Runs pip and shows of what it says only how far the compiler is; all of it if pip fails.

python cmake/show_progress.py install --no-build-isolation .

Without -v pip says nothing while a package is built, with -v it says everything.
"""

import re
import subprocess
import sys

# As ninja counts: [3/40] Building CXX object ...
PROGRESS = re.compile(r"\[\d+/\d+\] ")


def main(arguments: list[str]) -> int:
    """Run pip with these arguments and return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pip", *arguments, "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if PROGRESS.match(line.lstrip()):
            print(line.strip(), flush=True)
    status = process.wait()
    if status != 0:
        sys.stderr.writelines(lines)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
