"""Reads what ptxas -v said of each kernel, prints a table, and fails if registers were spilled.

usage: kernel_report.py BUILD_LOG
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def main() -> int:
    """Return the exit status."""
    log = Path(sys.argv[1]).read_text()
    by_arch = defaultdict(list)
    spilled = []
    for kernel in KERNEL.finditer(log):
        by_arch[kernel["arch"]].append(int(kernel["registers"]))
        if int(kernel["stores"]) or int(kernel["loads"]):
            spilled.append(f"{kernel['arch']} {kernel['name']}: {kernel['stores']} bytes stored")
    if not by_arch:
        print(f"{sys.argv[1]} tells of no kernel: was it compiled with -Xptxas -v?")
        return 1
    print("arch     kernels  registers (median, most)  spilling")
    for arch, registers in sorted(by_arch.items()):
        registers.sort()
        num_spilled = sum(line.startswith(f"{arch} ") for line in spilled)
        median = registers[len(registers) // 2]
        print(f"{arch:8} {len(registers):7}  {median:10}, {registers[-1]:4} {num_spilled:17}")
    print(*spilled, sep="\n")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
