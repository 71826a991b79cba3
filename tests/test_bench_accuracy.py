"""bench/accuracy.py: its options, its runs, and one small command."""

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
from accuracy_arguments import (
    check_codecs,
    jobs_of,
    parse_arguments,
    parse_codecs,
    parse_rate,
    prepare,
)
from accuracy_jobs import Results, run_jobs
from accuracy_text import CharacterTransformer, load_text
from accuracy_training import (
    Job,
    evaluation_steps,
    learning_rate_share,
    make_optimizer,
    parse_codec,
    train,
)

PROGRAM = Path(__file__).resolve().parent.parent / "bench" / "accuracy.py"
JOB = Job("digits", "sgd", 2, "int8", 0.1, seed=3, steps=40, batch_size_per_rank=16)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, complaint in (
        (["--task=digit"], "'digit' is none of"),
        (["--world=1"], "at least 2"),
        (["--quick", "--codec=int8@warmup_steps"], "option=value"),
        (["--quick", "--optimizer=adamw", "--codec=int8@momentum=0.9"], "is for --optimizer sgd"),
        (["--lr=0.1", "--lr-sweep=0.1"], "not allowed"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(None, arguments)
        assert complaint in capsys.readouterr().err


def test_what_would_fail_later_is_refused_before_the_first_run(tmp_path: Path) -> None:
    existing = tmp_path / "there.json"
    existing.write_text("[]")
    for arguments, complaint in (
        (["--codec=int8@policy={'head':'fp32'}"], "digits: codec"),
        ([f"--json={existing}"], "--resume"),
    ):
        with pytest.raises(SystemExit, match=complaint):
            prepare(parse_arguments(None, ["--quick", *arguments]))
    prepare(parse_arguments(None, ["--quick", f"--json={existing}", "--resume"]))


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
    path = tmp_path / "rows.json"
    row = {"benchmark": "accuracy", **dataclasses.asdict(JOB)}
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
