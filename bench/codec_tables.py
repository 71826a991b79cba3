"""The results of bench/codecs.py as tables for people."""

from __future__ import annotations

from rich.text import Text

from codec_checks import NO_ORACLE
from codec_speed import CodecRow
from int8_rivals import Int8Row
from measure import median
from tables import console, empty_table
from topk_rivals import TopKRow


def _verdict(is_correct: bool, text: str = "yes") -> Text:
    return Text(text) if is_correct else Text("WRONG", "bold red")


def _circumstances(row: CodecRow | TopKRow | Int8Row) -> str:
    plural = "" if row.threads == 1 else "s"
    return f"{row.num_elements / 1e6:.4g} M elements, {row.threads} thread{plural}"


def print_codecs(rows: list[CodecRow]) -> None:
    """Print the rows of one instruction set and number of threads."""
    first = rows[0]
    add = median([row.add_bytes_per_second for row in rows])
    copy = median([row.stream_copy_bytes_per_second for row in rows])
    table = empty_table(
        f"{first.isa}, {_circumstances(first)}, {first.dtype}\n"
        f"b += a {add / 1e9:.2f} GB/s, streaming copy {copy / 1e9:.2f} GB/s",
        ["codec", "operation"],
        [
            "bits/el.",
            "ms",
            "spread %",
            "G el./s",
            "GB/s",
            "/ b += a",
            "/ copy",
            "kernel / b += a",
            "checked",
        ],
    )
    for row in rows:
        table.add_row(
            row.codec if row.operation == "encode" else "",
            row.operation,
            f"{row.wire_bits_per_element:.2f}",
            f"{row.seconds_median * 1e3:.2f}",
            f"{row.spread_ratio * 100:.0f}",
            f"{row.elements_per_second / 1e9:.3f}",
            f"{row.bytes_per_second / 1e9:.2f}",
            f"{row.ratio_to_add:.2f}",
            f"{row.ratio_to_stream_copy:.2f}",
            f"{row.kernel_ratio_to_add:.2f}",
            _verdict(row.correct, NO_ORACLE if row.oracle == NO_ORACLE else "oracle"),
        )
    console.print(table)


def print_topk(rows: list[TopKRow]) -> None:
    """Print the rows of one instruction set and number of threads."""
    first = rows[0]
    table = empty_table(
        f"Top-k, {first.isa}, {_circumstances(first)}\n"
        "encode with error feedback, and what others take for the selection alone",
        ["codec", "gradient"],
        [
            *("\nms", "spread\n%", "torch.topk\nms", "argpartition\nms", "\nspeed-up"),
            *("\n/ copy", "exact\nk", "\nenergy", "\ncorrect"),
        ],
    )
    for row in rows:
        table.add_row(
            row.codec,
            row.gradient,
            f"{row.seconds_median * 1e3:.2f}",
            f"{row.spread_ratio * 100:.0f}",
            f"{row.seconds_torch_topk * 1e3:.0f}",
            f"{row.seconds_numpy_argpartition * 1e3:.0f}",
            f"{row.speedup_over_torch_topk:.1f} x",
            f"{row.ratio_to_stream_copy:.2f}",
            _verdict(row.is_exact_k),
            f"{row.energy_ratio:.4f}",
            _verdict(row.correct),
        )
    console.print(table)


def print_int8(rows: list[Int8Row]) -> None:
    """Print the rows of one instruction set and number of threads."""
    first = rows[0]
    table = empty_table(
        f"int8 encode with error feedback, {first.isa}, {_circumstances(first)}",
        ["written in"],
        ["ms", "spread %", "time / fastcomm", "/ b += a", "correct"],
    )
    for row in rows:
        table.add_row(
            row.method,
            f"{row.seconds_median * 1e3:.2f}",
            f"{row.spread_ratio * 100:.0f}",
            f"{row.seconds_ratio_to_fastcomm:.2f}",
            f"{row.ratio_to_add:.2f}",
            _verdict(row.correct),
        )
    console.print(table)
