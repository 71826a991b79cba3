"""A run of the MNIST example that does not train is named in words, with the likely reason."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from idx_digits import write_idx_digits

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from mnist_outcome import why_untrained
from mnist_picture import draw_picture
from mnist_report import Row, TrainingProgress
from mnist_table import print_table

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "mnist_ddp.py"


def make_run(codec: str = "int4", **changed: Any) -> Row:
    run = {"codec": codec, "seed": 0, "steps": 200, "final_test_accuracy_percent": 97.0}
    run |= {"loss_not_finite_by_step": None, "seconds_to_target": 3.0, "world_size": 2}
    run |= {"peak_learning_rate": 0.02, "recipe_learning_rate": 0.02, "link_rate": "100mbit"}
    run |= {"batch_size_per_rank": 32, "target_accuracy_percent": 95.0, "data_name": "made-up"}
    run |= {"wire_bytes_per_step": 1000.0, "step_time_median_ms": 10.0, "machine": "a machine"}
    run |= {"torch_version": "2", "wire_bytes_counted_by": "computed"}
    run |= {"wire_bytes_per_step_at_end": 1000.0}
    return run | changed


def table_of(runs: list[Row], failed: dict[str, str] | None = None) -> str:
    output = io.StringIO()
    print_table(Console(file=output, width=100), runs, failed or {})
    return " ".join(output.getvalue().split())


AT_CHANCE: Row = {"final_test_accuracy_percent": 7.8}
NOT_FINITE: Row = {"final_test_accuracy_percent": 9.9, "loss_not_finite_by_step": 25}


def test_run_that_trained_is_not_accused() -> None:
    run = make_run()
    assert why_untrained(run, [run]) is None
    assert "did not train" not in table_of([run])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (NOT_FINITE, "the loss was not finite by step 25"),
        (AT_CHANCE, "7.8 % of the test images were right, which is chance"),
        (AT_CHANCE | {"peak_learning_rate": 3.0}, "3 is too large, where 0.02 suits the data"),
        (AT_CHANCE | {"peak_learning_rate": 1e-5}, "1e-05 is too small, where 0.02 suits"),
        (AT_CHANCE | {"steps": 5}, "5 steps are too few"),
        (AT_CHANCE | {"batch_size_per_rank": 2}, "0.02 is too large for 2 samples per rank"),
    ],
)
@pytest.mark.parametrize("codec", ["none", "int4"])
def test_table_says_that_a_run_did_not_train_and_why(codec: str, changed: Row, words: str) -> None:
    table = table_of([make_run("int8"), make_run(codec, **changed)])
    assert f"{codec} (seed 0) did not train: " in table
    assert words in table
    assert "int8 (seed" not in table


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ([], "a run of plain DDP (none) beside it would tell more"),
        ([make_run("none")], "plain DDP trained: int4 bears less"),
        ([make_run("none", **NOT_FINITE)], "not due to int4: plain DDP did not train either"),
        ([make_run("none", seed=1)], "a run of plain DDP (none) beside it would tell more"),
    ],
)
def test_plain_ddp_at_the_same_seed_is_evidence(plain: list[Row], words: str) -> None:
    run = make_run("int4", **AT_CHANCE)
    assert words in (why_untrained(run, [*plain, run]) or "")


def test_table_says_how_many_of_several_seeds_did_not_train() -> None:
    runs = [make_run(seed=0), make_run(seed=1, **AT_CHANCE), make_run(seed=2, **NOT_FINITE)]
    table = table_of(runs)
    assert "2 of 3" in table
    assert "int4 (seed 0)" not in table
    assert "int4 (seed 1) did not train: in the end" in table
    assert "int4 (seed 2) did not train: the loss" in table


def test_table_says_which_data_were_used() -> None:
    assert "made-up, a CNN under DDP: 2 ranks over links of 100 Mbit/s" in table_of([make_run()])


def test_table_says_what_a_warmup_sends_in_the_end() -> None:
    warmed_up = make_run("topk:0.01", wire_bytes_per_step=300e3, wire_bytes_per_step_at_end=80e3)
    table = table_of([make_run(), warmed_up])
    assert "topk:0.01 sends more while it warms up: at the end it is 80 kB a step" in table
    assert table.count("warms up") == 1


def test_bytes_at_the_end_are_those_since_the_evaluation_before() -> None:
    progress = TrainingProgress(1, step=10, step_ms=[1.0], rows=[row_at(5, 2.0, 50.0)])
    assert progress.summary("computed", 95.0)["wire_bytes_per_step_at_end"] == 100.0
    progress.rows.append(row_at(10, 1.0, 60.0) | {"wire_bytes": 750.0})
    assert progress.summary("computed", 95.0)["wire_bytes_per_step_at_end"] == 50.0


def test_table_without_any_run_says_what_failed() -> None:
    table = table_of([], {"int4": "rank 0: out of memory"})
    assert "int4 failed: rank 0: out of memory" in table


def test_summary_is_valid_json_whatever_the_loss() -> None:
    row = {"step": 5, "loss": float("nan"), "test_accuracy_percent": 9.0, "wire_bytes": 1.0}
    row |= {"seconds_training": 1.0}
    progress = TrainingProgress(total_samples=1, step=5, step_ms=[1.0], rows=[row])
    assert progress.is_lost
    assert progress.summary("computed", 95.0)["loss_not_finite_by_step"] == 5
    assert json.dumps(progress.rows_for_json(), allow_nan=False)


def row_at(step: int, loss: float | None, accuracy: float, seed: int = 0) -> Row:
    row = {"codec": "int4", "seed": seed, "step": step, "loss": loss, "wire_bytes": 100.0 * step}
    return row | {"test_accuracy_percent": accuracy, "seconds_training": 0.1 * step}


@pytest.mark.parametrize(
    "rows",
    [
        [row_at(1, None, 9.0), row_at(2, None, 9.0)],
        [row_at(1, 1e30, 9.0), row_at(2, 2e30, 9.0)],
        [row_at(1, 2.0, 9.0), row_at(2, None, 9.0)],
        [row_at(1, 2.0, 30.0), row_at(2, 0.1, 97.0), row_at(1, None, 9.0, seed=1)],
    ],
    ids=["never finite", "huge", "then not finite", "one seed stopped early"],
)
def test_picture_is_drawn_whatever_the_runs_came_to(tmp_path: Path, rows: list[Row]) -> None:
    run = make_run(**NOT_FINITE)
    draw_picture([run], rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_comparison_at_an_absurd_learning_rate_ends_with_table_and_picture(tmp_path: Path) -> None:
    write_idx_digits(tmp_path, num_training=200, num_testing=50)
    options = ["--compare", "--rate", "none", "--data-root", str(tmp_path), "--lr", "1e6"]
    options += ["--methods", "none,int8", "--steps", "8", "--batch-size", "8"]
    options += ["--json", str(tmp_path / "result.json"), "--output", str(tmp_path / "demo.png")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for method in ("none", "int8"):
        assert f"{method} (seed 0) did not train: the loss was not finite by step" in said
    assert "Likely, the peak learning rate 1e+06 is too large" in said
    assert "MNIST, a CNN under DDP" in said
    assert (tmp_path / "demo.png").is_file()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert [run["data_name"] for run in content["runs"]] == ["MNIST", "MNIST"]
