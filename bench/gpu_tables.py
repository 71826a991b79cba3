"""The results of bench/gpu.py as tables for people.

python bench/gpu_tables.py results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from demo_extra import demo_imports

with demo_imports():
    from rich.table import Table
    from rich.text import Text

    from gpu_parts import Row
    from tables import console, empty_table, note, number_text


def _verdict(row: Row) -> Text:
    return Text("yes") if row["correct"] else Text("WRONG", "bold red")


def _of(rows: Iterable[Row], benchmark: str) -> list[Row]:
    return [row for row in rows if row["benchmark"] == benchmark]


def kernel_tables(rows: list[Row]) -> list[Table]:
    """Return a table for each number of elements: a line for each codec and variant."""
    tables = []
    for num_elements in sorted({row["num_elements"] for row in _of(rows, "gpu_codec")}):
        of_size = [r for r in _of(rows, "gpu_codec") if r["num_elements"] == num_elements]
        copies = sorted(row["copy_bytes_per_second"] for row in of_size)
        table = empty_table(
            f"Codecs, {num_elements / 1e6:g} M elements of float32; "
            f"copy {copies[len(copies) // 2] / 1e12:.2f} TB/s",
            ["codec", "variant"],
            [f"{op} {unit}" for op in ("encode", "hop", "decode") for unit in ("µs", "/ copy")]
            + ["correct"],
        )
        keys = dict.fromkeys((row["codec"], row["variant"]) for row in of_size)
        for codec, variant in keys:
            found = {
                row["operation"]: row
                for row in of_size
                if (row["codec"], row["variant"]) == (codec, variant)
            }
            cells = []
            for operation in ("encode", "hop", "decode"):
                row = found.get(operation, {})
                cells += [
                    number_text(row.get("seconds_median"), ".1f", 1e6),
                    number_text(row.get("ratio_to_copy"), ".2f"),
                ]
            correct = {"correct": all(row["correct"] for row in found.values())}
            table.add_row(codec, variant, *cells, _verdict(correct))
        tables.append(table)
    return tables


def rival_table(rows: list[Row]) -> Table | None:
    """Return the table of top-k and int8 against other ways to write them."""
    found = [*_of(rows, "gpu_topk"), *_of(rows, "gpu_int8")]
    if not found:
        return None
    columns = ["µs", "/ copy", "torch.topk µs", "speed-up", "time / fastcomm", "correct"]
    table = empty_table("Top-k and int8, encode with error feedback", ["what", "M el."], columns)
    for row in found:
        name = row["codec"] if "codec" in row else f"int8 in {row['method']}"
        table.add_row(
            name,
            f"{row['num_elements'] / 1e6:g}",
            f"{row['seconds_median'] * 1e6:.1f}",
            f"{row['ratio_to_copy']:.2f}",
            number_text(row.get("seconds_torch_topk"), ".0f", 1e6),
            number_text(row.get("speedup_over_torch_topk"), ".1f"),
            number_text(row.get("seconds_ratio_to_fastcomm"), ".2f"),
            _verdict(row),
        )
    return table


def ring_table(rows: list[Row]) -> Table | None:
    """Return the table of all-reduces of ranks that share the GPU."""
    found = _of(rows, "gpu_allreduce")
    if not found:
        return None
    columns = ["MB", "ms", "algbw GB/s", "wire MB", "rel. error", "identical", "correct"]
    table = empty_table(
        f"All-reduce, {found[0]['world_size']} ranks on {found[0]['num_gpus']} GPU",
        ["backend", "method"],
        columns,
    )
    for row in found:
        table.add_row(
            row["backend"],
            row["method"],
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['seconds_median'] * 1e3:.2f}",
            f"{row['algbw_bytes_per_second'] / 1e9:.2f}",
            number_text(row["wire_bytes"], ".2f", 1e-6),
            f"{row['relative_error']:.1e}",
            "yes" if row["identical"] else "NO",
            _verdict(row),
        )
    return table


def part_table(rows: list[Row]) -> Table:
    """Return the table of the parts, the last thing to be printed."""
    table = empty_table("Parts", ["part", "status", "message"], ["s"])
    for row in _of(rows, "gpu_part"):
        style = "" if row["status"] == "ok" else "bold red"
        message = row["message"].strip().splitlines()[-1:] or [""]
        seconds = f"{row['seconds']:.0f}"
        table.add_row(row["part"], Text(row["status"], style), Text(message[0][:110]), seconds)
    return table


def findings(rows: list[Row]) -> list[str]:
    """Return a line for each result that no table has."""
    lines = []
    for row in _of(rows, "gpu_build") + _of(rows, "gpu_cpp_build"):
        what = "fastcomm" if row["benchmark"] == "gpu_build" else "C++ tests"
        lines.append(f"build of {what}: {row['seconds']:.0f} s, {row['num_warnings']} warnings")
    for row in _of(rows, "gpu_tests"):
        counts = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
        lines.append(f"tests: {counts}, {row['seconds']:.0f} s")
    for row in _of(rows, "gpu_test"):
        lines.append(f"  {row['outcome']} {row['count']} x {row['name']}: {row['reason'][:160]}")
    for row in _of(rows, "gpu_cpp_tests"):
        lines.append(f"C++ tests: {row['summary'] or 'did not finish'}, {row['seconds']:.0f} s")
    for row in _of(rows, "gpu_sanitizer"):
        errors = "did not finish" if row["num_errors"] is None else f"{row['num_errors']} errors"
        lines.append(f"{row['tool']}: {errors}, {row['seconds']:.0f} s")
    for row in _of(rows, "gpu_allreduce_failure"):
        lines.append(f"{row['backend']} ({row['way']}): {row['failure'][:160]}")
    for row in _of(rows, "gpu_mnist"):
        lines.append(
            f"{row['data_name']}, {row['codec']}: {row['best_test_accuracy_percent']:.2f} %, "
            f"{row['seconds_training']:.1f} s, {row['step_time_median_ms']:.2f} ms a step"
        )
    return lines


def print_results(rows: list[Row]) -> None:
    """Print everything, what is looked for first at the end."""
    for table in [*kernel_tables(rows), rival_table(rows), ring_table(rows)]:
        if table is not None:
            console.print(table)
    for line in findings(rows):
        console.print(Text(line), soft_wrap=True)
    console.print(part_table(rows))
    if rows and "gpu" in rows[0]:
        first = rows[0]
        note(f"{first['gpu']}, torch {first['torch']}, commit {first['commit']}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    print_results(json.loads(parse_arguments().results.read_text()))
