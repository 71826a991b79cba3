"""bench/accuracy.py: its statistics, its options, and one small run."""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn has the digits, and brings scipy")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from accuracy_arguments import check_codecs, jobs_of, parse_arguments, parse_codecs, parse_rate
from accuracy_jobs import Results, run_jobs
from accuracy_statistics import (
    Interval,
    bytes_to_target,
    interval,
    largest_working,
    paired_difference,
    summarize,
    try_learning_rates,
)
from accuracy_tables import print_accuracy
from accuracy_tasks import load_task
from accuracy_text import CharacterTransformer, load_text
from accuracy_training import (
    Job,
    evaluation_steps,
    learning_rate_share,
    make_optimizer,
    parse_codec,
    train,
)
from plot import draw

PROGRAM = Path(__file__).resolve().parent.parent / "bench" / "accuracy.py"
JOB = Job("digits", "sgd", 2, "int8", 0.1, seed=3, steps=40, batch_size_per_rank=16)

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_row(codec: str, seed: int, accuracy: float | None, **others: Any) -> Row:
    """Return the row of a run with everything but its accuracy made up."""
    row: Row = {
        "benchmark": "accuracy",
        **dataclasses.asdict(dataclasses.replace(JOB, codec=codec, seed=seed)),
        "diverged": accuracy is None,
        "divergence": "made up" if accuracy is None else None,
        "final_accuracy_percent": accuracy,
        "best_accuracy_percent": accuracy,
        "wire_bytes_per_step": 1000.0,
        "wire_bytes_per_step_after_warmup": 500.0,
        "ratio_after_warmup": 4.0,
        "steps_taken": 40,
        **{"torch": "2", "commit": "1"},
    }
    return row | others


def curve_row(codec: str, seed: int, step: int, accuracy: float) -> Row:
    job = dataclasses.asdict(dataclasses.replace(JOB, codec=codec, seed=seed))
    figures = {"step": step, "wire_bytes": 10 * step, "accuracy_percent": accuracy}
    return {"benchmark": "accuracy_curve", **job, **figures, "torch": "2", "commit": "1"}


def test_intervals_are_students() -> None:
    # Standard deviation 1, three values: 4.30265 is the 97.5 % quantile with 2 degrees of freedom.
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.half_width is not None
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert interval([5.0]) == Interval(5.0, None)
    assert interval([]) is None


def test_differences_are_of_the_same_seed() -> None:
    # The seeds differ by much more than the codecs: 1, 2 and 3 worse, whatever the seed.
    found = paired_difference({0: 9.0, 1: 48.0, 2: 87.0, 9: 1.0}, {2: 90.0, 1: 50.0, 0: 10.0})
    assert found is not None
    assert found.half_width is not None
    assert found.mean == -2
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert found.has_zero
    assert not Interval(-2.0, 1.9).has_zero
    assert not Interval(-2.0, None).has_zero


def test_the_target_is_reached_at_the_first_evaluation_as_good() -> None:
    curve = [curve_row("int8", 0, step, value) for step, value in ((3, 97), (1, 90), (2, 96))]
    assert bytes_to_target(curve, 95.5) == 20
    assert bytes_to_target(curve, 97) == 30
    assert bytes_to_target(curve, 98) is None
    losses: list[Row] = [{"task": "text", "step": 1, "wire_bytes": 10, "loss_nats": None}]
    losses.append(losses[0] | {"step": 2, "wire_bytes": 20, "loss_nats": 1.4})
    assert bytes_to_target(losses, 1.5) == 20


def test_summaries() -> None:
    runs = [run_row("fp32", seed, value) for seed, value in enumerate((98.0, 98.2, 98.4))]
    runs += [run_row("int8", seed, value) for seed, value in enumerate((97.0, 97.2, None))]
    # fp32's mean less 0.2: the target is 98.
    curves = [curve_row("fp32", seed, step, 96.0 + step) for seed in range(3) for step in (1, 2)]
    curves += [curve_row("int8", 0, 1, 98.5), curve_row("int8", 1, 1, 97.2)]
    fp32, int8 = summarize(runs, curves)
    assert (fp32.codec, fp32.runs, fp32.diverged, fp32.reached) == ("fp32", 3, 0, 3)
    assert fp32.wire_bytes_to_target == 20
    assert fp32.difference is None
    assert (int8.codec, int8.runs, int8.diverged, int8.reached) == ("int8", 3, 1, 1)
    assert int8.wire_bytes_to_target is None
    assert int8.difference is not None
    assert int8.difference.mean == pytest.approx(-1)
    assert int8.final is not None
    assert int8.final.mean == pytest.approx(97.1)
    print_accuracy([*curves, *runs])
    assert len(draw([*curves, *runs]).axes) == 2


def test_the_largest_learning_rate_that_works() -> None:
    # fp32's best is 98, so that 97 is still good.
    finals: dict[str, dict[float, list[float | None]]] = {
        "fp32": {0.1: [98.0, 98.0], 0.4: [97.5, 97.5], 0.2: [97.9, 97.9], 0.8: [99.0, None]},
        "int8": {0.1: [98.0, 98.0], 0.2: [97.0, 97.2], 0.4: [96.0, 97.0], 0.8: [None, None]},
        "sign": {0.1: [90.0, 98.0], 0.2: [98.0, None]},
    }
    rows = [
        run_row(codec, seed, value, learning_rate=rate, benchmark="accuracy_learning_rate")
        for codec, by_rate in finals.items()
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]
    tried = try_learning_rates(rows)
    assert {codec: largest_working(by_rate) for codec, by_rate in tried.items()} == {
        "fp32": 0.4,
        "int8": 0.2,
        "sign": None,
    }
    assert tried["sign"][0.2].diverged == 1
    print_accuracy(rows)
    assert len(draw(rows).axes) == 1


def test_codecs_with_options() -> None:
    text = "topk:0.001@warmup_steps=5,algorithm=ring,error_feedback=True"
    options = {"warmup_steps": 5, "algorithm": "ring", "error_feedback": True}
    assert parse_codec(text) == ("topk:0.001", options)
    assert parse_codec("int8") == ("int8", {})
    policy = "sign@policy={'a.*':'fp32','b.*':'int8'},momentum=0.9"
    options = {"policy": {"a.*": "fp32", "b.*": "int8"}, "momentum": 0.9}
    assert parse_codec(policy) == ("sign", options)
    assert parse_codecs(f"{policy},fp32") == [policy, "fp32"]
    codecs = parse_codecs(f"fp32,{text},int8:stochastic,seed=1@error_feedback=False")
    assert codecs == ["fp32", text, "int8:stochastic,seed=1@error_feedback=False"]
    check_codecs(codecs, torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "text",
    ["int7", "int8@", "int8@warmup_steps", "int8@warmup_steps=", "int8@no_such=1", "int8@1=2"],
)
def test_wrong_codecs_are_named_at_once(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text.partition("@")[0]):
        check_codecs(parse_codecs(f"fp32,{text}"), torch.nn.Linear(1, 1))


def test_learning_rates_of_the_command_line() -> None:
    assert parse_rate("0.5") == (0.5, False)
    assert parse_rate("0.5x") == (0.5, True)
    for wrong in ("x", "-1", "0", "nan", "infx"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_rate(wrong)


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "there.json"
    existing.write_text("[]")
    for arguments, complaint in (
        (["--task=digit"], "'digit' is none of"),
        (["--world=1"], "at least 2"),
        (["--quick", "--codec=int8@warmup_steps"], "option=value"),
        (["--quick", "--codec=int8@policy={'head':'fp32'}"], "digits: codec"),
        (["--quick", "--optimizer=adamw", "--codec=int8@momentum=0.9"], "is for --optimizer sgd"),
        (["--quick", f"--json={existing}"], "--resume"),
        (["--lr=0.1", "--lr-sweep=0.1"], "not allowed"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(None, arguments)
        assert complaint in capsys.readouterr().err


def test_jobs_of_a_command_line() -> None:
    given = ["--task=digits", "--world=2,8", "--codec=fp32,int8", "--seeds=0,1", "--epochs=2"]
    jobs = jobs_of(parse_arguments(None, [*given, "--lr-sweep=1x,0.5"]))
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 2 * 2 * 2
    assert {job.batch_size_per_rank * job.world_size for job in jobs} == {64}
    assert {job.steps for job in jobs} == {45}  # of 1437 samples, twice
    assert {job.learning_rate for job in jobs if job.optimizer == "sgd"} == {0.1, 0.5}
    assert [job.seed for job in jobs] == [0] * 16 + [1] * 16


def test_the_schedule_and_the_evaluations() -> None:
    shares = [learning_rate_share(step, 99) for step in range(99)]
    assert shares[8] == pytest.approx(0.9)
    assert shares[9] == pytest.approx(1)
    assert max(shares) == shares[9]
    assert 0 < shares[-1] < 0.001
    assert sorted(evaluation_steps(100, 5)) == [5, 10, 20, 40, 60, 80, 100]
    assert sorted(evaluation_steps(1, 5)) == [1]


def test_momentum_is_the_hooks_or_the_optimizers() -> None:
    model = torch.nn.Linear(2, 2)
    with_momentum = dataclasses.replace(JOB, codec="topk:0.01@momentum=0.9")
    assert make_optimizer(with_momentum, model).defaults["momentum"] == 0
    assert make_optimizer(JOB, model).defaults["momentum"] == 0.9


def test_the_text_and_its_transformer() -> None:
    text = load_text()
    assert len(text.held_out) == pytest.approx(len(text.training) / 9, rel=1e-3)
    inputs, targets = text.windows(torch.tensor([0, text.num_windows - 1]))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert targets[1, -1] == text.training[-1]
    assert 2.5 < text.unigram_loss_nats() < math.log(text.num_characters)
    model = CharacterTransformer(text.num_characters).eval()
    later = inputs.clone()
    later[:, 40:] = 0
    with torch.inference_mode():
        # What comes later is not seen.
        torch.testing.assert_close(model(later)[:, :40], model(inputs)[:, :40])
        assert not torch.equal(model(later)[:, 40:], model(inputs)[:, 40:])


def test_the_same_seed_gives_the_same_figures() -> None:
    steps: list[int] = []
    first = train(JOB, None, steps.append)
    assert steps == list(range(1, JOB.steps + 1))
    torch.rand(7)  # what others draw does not matter
    second = train(JOB, None, steps.append)
    other = train(dataclasses.replace(JOB, seed=4), None, steps.append)
    for rows in (first, second, other):
        del rows[-1]["seconds"]
    assert first == second
    assert [row["loss_nats"] for row in other[:-1]] != [row["loss_nats"] for row in first[:-1]]


def test_a_run_that_diverges() -> None:
    for rate, explanation in ((1e20, "not finite|training loss"), (1e-12, "no better than 50")):
        rows = train(dataclasses.replace(JOB, learning_rate=rate), None, lambda _: None)
        assert rows[-1]["diverged"]
        assert any(part in rows[-1]["divergence"] for part in explanation.split("|"))
        assert "NaN" not in json.dumps(rows)
        assert "Infinity" not in json.dumps(rows)


def test_resuming_leaves_out_what_is_there(tmp_path: Path) -> None:
    task = load_task("digits", None)
    assert task.num_samples == 1437
    path = tmp_path / "rows.json"
    row = run_row("int8", JOB.seed, 98.0)
    path.write_text(json.dumps([row]))
    results = Results(path, resume=True)
    assert results.has(JOB, is_sweep=False)
    assert results.has(JOB, is_sweep=True)
    assert not results.has(dataclasses.replace(JOB, learning_rate=0.2), is_sweep=True)
    assert run_jobs([JOB], results, 1, None, is_sweep=False) == 0
    assert json.loads(path.read_text()) == [row]
    results.add([row | {"seed": 9, "benchmark": "accuracy_learning_rate"}])
    resumed = Results(path, resume=True)
    assert len(resumed.rows) == 2
    # The runs of a sweep have no curves.
    assert not resumed.has(dataclasses.replace(JOB, seed=9), is_sweep=False)
    assert resumed.has(dataclasses.replace(JOB, seed=9), is_sweep=True)
    assert Results(path, resume=False).rows == []


def test_a_small_run(tmp_path: Path) -> None:
    output, picture = tmp_path / "accuracy.json", tmp_path / "accuracy.png"
    command = [sys.executable, str(PROGRAM), "--quick", "--steps=60", "--seeds=0"]
    command += ["--codec=fp32,int8", "--jobs=1", f"--json={output}", f"--output={picture}"]
    subprocess.run(command, check=True, timeout=100)
    rows = json.loads(output.read_text())
    runs = {row["codec"]: row for row in rows if row["benchmark"] == "accuracy"}
    assert list(runs) == ["fp32", "int8"]
    for codec, row in runs.items():
        assert not row["diverged"]
        assert row["steps_taken"] == row["steps"] == 60
        assert 80 < row["final_accuracy_percent"] <= row["best_accuracy_percent"] <= 100
        assert 0 < row["best_loss_nats"] <= row["final_loss_nats"] < 1
        # 64 x 256, 256 x 256 and 256 x 10 weights, and biases; each of 2 ranks sends half, twice.
        assert row["raw_bytes_per_step"] == 4 * 85_002
        assert row["ratio"] == row["raw_bytes_per_step"] / row["wire_bytes_per_step"]
        assert row["ratio_after_warmup"] == pytest.approx(row["ratio"], rel=0.01)
        assert {"machine", "torch", "commit", "seconds"} <= row.keys()
        curve = [r for r in rows if r["benchmark"] == "accuracy_curve" and r["codec"] == codec]
        assert curve[-1]["step"] == 60
        assert curve[-1]["wire_bytes"] == 60 * row["wire_bytes_per_step"]
        assert curve[-1]["accuracy_percent"] == row["final_accuracy_percent"]
        assert {"machine", "torch", "commit"} <= curve[0].keys()
    assert runs["fp32"]["ratio"] == pytest.approx(1, rel=0.05)
    assert 3 < runs["int8"]["ratio"] < 4
    assert picture.stat().st_size > 10_000
