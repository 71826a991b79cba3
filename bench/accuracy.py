"""How well models train with each codec, and how many bytes that takes.

    python bench/accuracy.py --data-root DIR --world 8 --json out.json -o out.png
    python bench/accuracy.py --data-root DIR --world 8 --json out.json --resume    # go on with it
    python bench/accuracy.py --task digits --lr-sweep 0.25x,0.5x,1x,2x,4x,8x --json rates.json

All ranks live in one process, where their gradients go through the same codecs and schedules as on
a network (fastcomm.Simulation). Tasks:

  mnist    the CNN of examples/mnist_ddp.py, 1.2 M parameters
  digits   scikit-learn's 8x8 digits, a perceptron of 85 k parameters
  text     a character-level transformer of 0.4 M parameters, on Python's own help pages

A codec can have options of the hook: topk:0.001@warmup_steps=100,algorithm=ring. With
momentum=0.9 SGD has none of its own; follow_learning_rate=True calls that method. Every run is a
job of its own; --jobs of them run at a time, each with one thread. An interrupted command goes on
with --resume. Exits with 1 if a job fails; a run that diverges is a result, and in the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_extra import demo_imports

with demo_imports():
    import matplotlib.style

    from accuracy_arguments import jobs_of, parse_arguments, prepare
    from accuracy_jobs import Results, run_jobs
    from accuracy_tables import print_accuracy
    from plot import draw


def main() -> None:
    """Run what the command line asks for."""
    arguments = parse_arguments(__doc__)
    prepare(arguments)
    results = Results(arguments.json, arguments.resume)
    is_sweep = arguments.lr_sweep is not None
    failed = run_jobs(jobs_of(arguments), results, arguments.jobs, arguments.data_root, is_sweep)
    print_accuracy(results.rows)
    if arguments.output is not None and results.rows:
        with matplotlib.style.context(Path(__file__).with_name("plot.mplstyle")):
            draw(results.rows).savefig(arguments.output)
    if failed:
        sys.exit(f"failed runs: {failed}")


if __name__ == "__main__":
    with demo_imports():  # of packages that only some tasks need
        main()
