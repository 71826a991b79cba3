"""Figures of what the benchmarks wrote with --json.

    python bench/plot.py out.json ... -o fig.png

The "benchmark" field of the rows says what to draw.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from demo_extra import demo_imports

with demo_imports():
    import matplotlib.style
    from matplotlib.figure import Figure, SubFigure

    from plot_accuracy import curves_height, draw_curves, draw_finals, draw_rates, rates_height
    from plot_allreduce import allreduce_height, draw_allreduce
    from plot_codecs import codecs_height, draw_codecs
    from plot_ddp import ddp_height, draw_ddp
    from plot_rivals import INT8_HEIGHT, TOPK_HEIGHT, draw_int8, draw_topk
    from plot_style import Row, distinct, draw_footer, select

_WIDTH, _FOOTER_HEIGHT = 9.0, 0.3  # inches


class Drawing(NamedTuple):
    """How to draw the rows of one benchmark."""

    draw: Callable[[SubFigure, list[Row]], None]
    height: Callable[[list[Row]], float]  # in inches


# By the "benchmark" field of the rows.
DRAWINGS = {
    "accuracy": Drawing(draw_finals, curves_height),
    "accuracy_curve": Drawing(draw_curves, curves_height),
    "accuracy_learning_rate": Drawing(draw_rates, rates_height),
    "allreduce": Drawing(draw_allreduce, allreduce_height),
    "codec": Drawing(draw_codecs, codecs_height),
    "ddp": Drawing(draw_ddp, ddp_height),
    "topk": Drawing(draw_topk, lambda rows: TOPK_HEIGHT),
    "int8": Drawing(draw_int8, lambda rows: INT8_HEIGHT),
}


def draw(rows: list[Row]) -> Figure:
    """Draw the benchmarks of the rows one below the other, and where they come from."""
    parts = {name: select(rows, benchmark=name) for name in distinct(rows, "benchmark")}
    heights = [DRAWINGS[name].height(part) for name, part in parts.items()]
    heights.append(_FOOTER_HEIGHT)
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    pieces = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for (name, part), piece in zip(parts.items(), pieces, strict=False):
        DRAWINGS[name].draw(piece, part)
    draw_footer(pieces[-1], rows)
    return figure


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", type=Path, help="results of benchmarks")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".png, .svg or .pdf")
    return parser.parse_args()


def main() -> None:
    """Draw the files of the command line."""
    arguments = parse_arguments()
    rows = [row for file in arguments.json for row in json.loads(file.read_text())]
    known = [row for row in rows if row.get("benchmark") in DRAWINGS]
    if len(known) < len(rows):
        others = dict.fromkeys(str(r.get("benchmark")) for r in rows if r not in known)
        print(f"left out, for want of a drawing: benchmark {', '.join(others)}")
    if not known:
        sys.exit(f"nothing to draw; drawings: {', '.join(DRAWINGS)}")
    with matplotlib.style.context(Path(__file__).with_suffix(".mplstyle")):
        draw(known).savefig(arguments.output)


if __name__ == "__main__":
    main()
