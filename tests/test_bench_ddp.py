"""bench/ddp.py: its models, what it concludes from times, and one small run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from ddp import measure_model
from ddp_models import Gradients, given_shapes, gpt2_shapes, resnet50_shapes
from ddp_results import DdpRow, hidden_ratio, is_wrong, when_it_pays
from launch import network
from plot import draw

PROGRAM = Path(__file__).resolve().parent.parent / "bench" / "ddp.py"


def num_parameters(shapes: list[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def test_models_have_as_many_parameters_as_the_originals() -> None:
    assert num_parameters(resnet50_shapes()) == 25_557_032
    assert len(resnet50_shapes()) == 161
    assert num_parameters(gpt2_shapes()) == 124_439_808
    assert len(gpt2_shapes()) == 148
    assert num_parameters(given_shapes(megabytes=100, parameters=5)) == 25_000_000


def test_given_gradients_know_their_average() -> None:
    shapes = [(3, 1000), (7,), (1_200, 1000)]
    ranks = [Gradients(shapes, rank, world_size=3) for rank in range(3)]
    averages = [
        torch.stack([r.write(index, torch.empty(shape)) for r in ranks]).mean(0)
        for index, shape in enumerate(shapes)
    ]
    assert ranks[0].relative_error(averages) < 1e-6
    assert ranks[0].relative_error([torch.zeros(shape) for shape in shapes]) == 1
    averages[1][0] += 1
    assert ranks[1].relative_error(averages) > 1e-4


@pytest.mark.parametrize(
    ("step", "compute", "communication", "expected"),
    [
        (10.0, 10.0, 5.0, 1.0),
        (15.0, 10.0, 5.0, 0.0),
        (12.0, 10.0, 4.0, 0.5),
        (9.0, 10.0, 4.0, 1.0),  # times that vary must not give shares beyond 0 and 1
        (19.0, 10.0, 4.0, 0.0),
        (10.0, 10.0, 0.001, None),
        (10.0, 0.001, 10.0, None),
    ],
)
def test_hidden_ratio(
    step: float, compute: float, communication: float, expected: float | None
) -> None:
    assert hidden_ratio(step, compute, communication) == expected


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ([(1e9, 2.0), (None, 1.1)], "pays at every measured rate, unshaped too"),
        ([(None, 1.1), (1e9, 2.0)], "pays at every measured rate, unshaped too"),
        ([(1e9, 2.0)], "pays at every measured rate"),
        ([(1e9, 0.9), (None, 0.8)], "does not pay at any measured rate"),
        # On logarithmic axes 2 and 1/2 are as far from 1: the crossing is in the middle.
        ([(1e8, 3.0), (1e9, 2.0), (1e11, 0.5), (None, 0.4)], "pays below 10 Gbit/s"),
        ([(1e8, 4.0), (1e9, 0.5)], "pays below 464 Mbit/s"),
        ([(1e9, 2.0), (None, 0.5)], "pays up to 1 Gbit/s, but not unshaped"),
        ([(1e9, 2.0), (1e10, 0.9), (None, 1.1)], "pays at 1 Gbit/s, unshaped only"),
        ([(1e9, 0.9), (1e10, 1.1)], "pays at 10 Gbit/s only"),
    ],
)
def test_when_it_pays(speedups: list[tuple[float | None, float]], expected: str) -> None:
    assert when_it_pays(speedups) == expected


def test_a_small_run(tmp_path: Path) -> None:
    output = tmp_path / "ddp.json"
    command = [sys.executable, str(PROGRAM), "--model=given", "--megabytes=1"]
    options = ["--rate=none", "--methods=none,fp16,int8", "--backward-ms=20", "--repetitions=3"]
    subprocess.run([*command, *options, f"--json={output}"], check=True, timeout=60)
    rows = {row["method"]: row for row in json.loads(output.read_text())}
    assert list(rows) == ["none", "fp16", "int8"]
    most_error = {"none": 1e-6, "fp16": 1e-3, "int8": 2e-2}
    wire_bytes = {"none": 1e6, "fp16": 0.5e6, "int8": 0.25e6}
    for method, row in rows.items():
        assert row["benchmark"] == "ddp"
        assert row["failure"] is None
        assert row["world_size"] == 2
        assert row["repetitions"] == 3
        assert row["gradient_bytes"] == 1e6
        assert row["identical"]
        assert row["relative_error"] < most_error[method]
        assert row["wire_bytes_per_step"] == pytest.approx(wire_bytes[method], rel=0.05)
        assert 0.02 <= row["seconds_compute"] <= row["seconds_step_median"] * 1.5
        assert row["seconds_step_min"] >= 0.02
        assert row["ratio_to_bound"] == row["seconds_step_median"] / row["seconds_compute"]
        assert {"machine", "torch", "commit"} <= row.keys()
    failed = rows["int8"] | {"failure": "killed", "seconds_step_median": None}
    (panel,) = draw([*rows.values(), failed]).axes
    assert len(panel.lines) >= len(rows)


def test_a_failing_rank_is_reported() -> None:
    settings = {
        "model": "given",
        "backward_seconds": 0.0,
        "megabytes": 1,
        "parameters": 1,
        "data_root": None,
        "seconds_per_model": 1,
        "fewest": 1,
        "most": 1,
        "threads": 1,
    }
    with network(2, None) as link:
        rows = measure_model(link, ["none", "int7"], settings)
    assert [row.method for row in rows] == ["none", "int7"]
    for row in rows:
        assert row.failure is not None
        assert "int7" in row.failure
        assert row.seconds_step_median is None


def test_wrong_gradients_are_noticed() -> None:
    right = DdpRow("given", "int8", 2, None, 4, 0.0, identical=True, relative_error=0.1)
    assert not is_wrong(right)
    assert is_wrong(DdpRow("given", "int8", 2, None, 4, 0.0, identical=False))
    assert is_wrong(DdpRow("given", "int8", 2, None, 4, 0.0, identical=True, relative_error=1.2))
