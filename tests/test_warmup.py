"""What is sent while a codec warms up, and when it does so by itself."""

from typing import Any

import pytest
from torch import nn

import fastcomm
from given_gradients import GivenGradients, one_matrix, random_gradients


def bytes_of_steps(codec: str, num_steps: int, **options: Any) -> list[int]:
    group = GivenGradients(one_matrix(), 2, codec, policy={}, **options)
    return [group.wire_bytes(random_gradients(group.model, 2, step)) for step in range(num_steps)]


@pytest.mark.parametrize("codec", ["sign", "int2", "int2:seed=3"])
def test_few_bit_codecs_step_down_from_int8_over_int4(codec: str) -> None:
    sent = bytes_of_steps(codec, 6, warmup_steps=4)
    int8, int4, target = (bytes_of_steps(name, 1)[0] for name in ("int8", "int4", codec))
    assert sent == [int8, int8, int4, int4, target, target]


@pytest.mark.parametrize(
    ("codec", "steps"),
    [("int8", 0), ("int4", 0), ("fp32", 0), ("sign", 0), ("topk:0.5", 0), ("topk:0.01", 100)],
)
def test_only_codecs_that_need_it_warm_up_by_default(codec: str, steps: int) -> None:
    assert fastcomm.Simulation(one_matrix(), 2, codec).states[0].warmup_steps == steps
    assert fastcomm.Simulation(one_matrix(), 2, codec, warmup_steps=7).states[0].warmup_steps == 7


def test_each_codec_of_a_policy_warms_up_in_its_own_time() -> None:
    model = nn.ModuleDict({name: nn.Linear(64, 64, bias=False) for name in ("dense", "sparse")})
    group = GivenGradients(model, 2, "int8", policy={"sparse*": "topk:0.001"})
    assert group.simulation.states[0].warmup_steps == 100
    first = group.wire_bytes(random_gradients(model, 2, 0))
    for step in range(1, 100):
        group.average(random_gradients(model, 2, step))
    # int4 for the sparse one at first, but int8 for the other all the time: no fp32.
    int8 = fastcomm.Int8().wire_bytes(64 * 64)
    assert int8 < group.wire_bytes(random_gradients(model, 2, 100)) < first < 2 * int8


def test_warm_up_goes_on_where_a_checkpoint_left_it() -> None:
    options: dict[str, Any] = {"policy": {}, "warmup_steps": 6}
    whole = bytes_of_steps("topk:0.01", 8, warmup_steps=6)
    first, second = (GivenGradients(one_matrix(), 2, "topk:0.01", **options) for _ in range(2))
    for step in range(3):
        first.average(random_gradients(first.model, 2, step))
    for rank, state in enumerate(second.simulation.states):
        state.load_state_dict(first.state(rank))
    sent = [second.wire_bytes(random_gradients(second.model, 2, step)) for step in range(3, 8)]
    assert sent == whole[3:]


def test_negative_numbers_of_steps_are_named() -> None:
    with pytest.raises(fastcomm.ArgumentError, match="warmup_steps -1 is negative"):
        fastcomm.Simulation(one_matrix(), 2, "int8", warmup_steps=-1)
