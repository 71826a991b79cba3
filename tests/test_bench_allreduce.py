"""bench/allreduce.py: its arguments, what it concludes from times, and one small run."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from allreduce import groups_of_processes, parse_peers, parse_sizes
from allreduce_tables import linear_fit
from plot import draw

PROGRAM = Path(__file__).resolve().parent.parent / "bench" / "allreduce.py"


def test_sizes_are_ranges_and_lists() -> None:
    assert parse_sizes("64K:1M") == [65536, 262144, 1048576]
    assert parse_sizes("1K,100000000") == [1024, 100_000_000]


@pytest.mark.parametrize("text", ["", "64Q", "3", "1K:", "-4"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a size"):
        parse_sizes(text)


def test_peers_that_can_end_their_process_have_one_of_their_own() -> None:
    methods = [*parse_peers("gloo,fp16,powersgd"), "int8"]
    assert groups_of_processes(methods) == [
        ["gloo", "fp16", "int8"],
        ["gloo", "powersgd2"],
        ["gloo", "powersgd4"],
    ]
    assert groups_of_processes(["int8"]) == [["int8"]]
    assert parse_peers("none") == []
    with pytest.raises(ArgumentTypeError, match="unknown peer 'mpi'"):
        parse_peers("gloo,mpi")


def test_the_line_through_times_is_found() -> None:
    start, slope, r_squared = linear_fit([1, 2, 4, 8], [5.0, 7.0, 11.0, 19.0])
    assert start == pytest.approx(3)
    assert slope == pytest.approx(2)
    assert r_squared == pytest.approx(1)
    assert linear_fit([1, 2, 3], [1.0, 5.0, 1.0])[2] < 0.1


def test_rows_say_what_happened_to_each_method(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    arguments = [
        *("--sizes", "1K,256K", "--codec", "fp32,int8,topk:0.01"),
        *("--peers", "gloo,fp16,quantize_tensor", "--seconds", "0.1", "--json", str(output)),
    ]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    measured = [row for row in rows if row["benchmark"] == "allreduce"]
    methods = ["gloo", "fp16", "fp32", "int8", "topk:0.01"]
    assert {(row["method"], row["size_bytes"]) for row in measured} >= {
        (method, size) for method in methods for size in (1024, 262144)
    }
    for row in measured:
        assert row["identical"], row
        assert row["seconds_median"] > 0
        assert row["world_size"] == 2
        assert row["ideal_seconds"] is None  # unshaped
        errors = {"gloo": 1e-6, "fp32": 1e-6, "fp16": 1e-3, "int8": 0.02}
        if row["method"] in errors:
            assert row["relative_error"] < errors[row["method"]]
        if row["method"] == "int8":
            assert row["wire_bytes"] < 1.2 * row["num_elements"] + 400
    # PyTorch's hook has an error on gloo; if it ever works, it is measured.
    (quantized,) = [row for row in rows if row["method"] == "quantize_tensor"][:1]
    assert "failure" in quantized or quantized["seconds_median"] > 0
    assert draw(measured).get_axes()
