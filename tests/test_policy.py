"""Each parameter gets the codec that its policy says, in one message for a bucket."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from fastcomm import _C
from fastcomm.policy import Policy
from given_gradients import GivenGradients, random_gradients
from training import backward, conserving_step, mlp


class Language(nn.Module):
    """What a small language model has: an embedding, a norm, layers, a head."""

    def __init__(self, words: int = 40, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norm = nn.LayerNorm((2, width))
        self.first = nn.Linear(width, 16 * width)
        self.second = nn.Linear(16 * width, width)
        self.head = nn.Linear(width, words)


def codecs_of(
    model: nn.Module, codec: str, patterns: dict[str, str] | None, smallest: int = 100
) -> dict[str, str]:
    policy = Policy(fastcomm.codec(codec), patterns, smallest)
    policy.attach(model)
    return {name: str(policy.codec_of(parameter)) for name, parameter in model.named_parameters()}


def test_first_pattern_that_matches_decides() -> None:
    patterns = {"embed*": "int8", "*.weight": "int4", "*": "topk:0.01"}
    found = codecs_of(Language(), "int2", patterns)
    assert found["embed.weight"] == "int8"
    assert found["first.weight"] == found["head.weight"] == "int4"


def test_biases_and_small_parameters_stay_uncompressed_whatever_the_pattern() -> None:
    found = codecs_of(Language(), "int8", {"*": "topk:0.01"}, smallest=200)
    assert found["first.bias"] == "fp32"
    assert found["norm.weight"] == "fp32"  # of two dimensions, and small
    assert found["first.weight"] == "topk:0.01"


def test_what_no_pattern_matches_gets_the_codec() -> None:
    found = codecs_of(Language(), "int8", {"first*": "sign"})
    assert found["first.weight"] == "sign"
    assert found["second.weight"] == found["embed.weight"] == "int8"


@pytest.mark.parametrize("codec", ["int2", "sign", "topk:0.1"])
def test_codecs_that_send_little_spare_embedding_norm_and_head(codec: str) -> None:
    found = codecs_of(Language(words=20), codec, None)
    assert {name for name, its in found.items() if its == codec} == {
        "first.weight",
        "second.weight",
    }
    assert found["embed.weight"] == found["head.weight"] == found["norm.weight"] == "fp32"


@pytest.mark.parametrize(
    ("codec", "words", "expected"),
    [
        # 131 072 other elements; embedding and head have 64 for each word.
        ("sign", 100, "int8"),
        ("sign", 1000, "sign"),
        ("topk:0.1", 80, "int8"),
        ("topk:0.01", 40, "topk:0.01"),
    ],
)
def test_what_is_spared_takes_no_more_than_its_share_of_the_bytes(
    codec: str, words: int, expected: str
) -> None:
    found = codecs_of(Language(words), codec, None)
    assert found["embed.weight"] == found["head.weight"] == expected
    assert found["first.bias"] == "fp32"


def test_what_is_frozen_does_not_count() -> None:
    model = Language(words=25)
    for part in (model.embed, model.first, model.second):
        part.requires_grad_(False)
    assert codecs_of(model, "sign", None)["head.weight"] == "sign"  # all that there is to send


@pytest.mark.parametrize(
    ("codec", "patterns"), [("int8", None), ("int4", None), ("topk:0.01", {}), ("topk:0.5", None)]
)
def test_other_codecs_and_an_empty_policy_compress_all_matrices(
    codec: str, patterns: dict[str, str] | None
) -> None:
    found = codecs_of(Language(), codec, patterns)
    assert found["embed.weight"] == found["head.weight"] == str(fastcomm.codec(codec))


def test_the_only_layer_is_no_head() -> None:
    assert codecs_of(nn.Linear(40, 40), "sign", None)["weight"] == "sign"


@pytest.mark.parametrize(
    ("patterns", "what"),
    [
        ({"heads*": "int8"}, "'heads\\*' is no parameter's first match; .*head.weight"),
        ({"*": "int8", "head*": "sign"}, "'head\\*' is no parameter's first match"),
        ({"head*": "int9"}, "unknown codec 'int9'"),
        (["int8"], "policy must be a dict"),
    ],
)
def test_policies_that_cannot_be_meant_are_named(patterns: Any, what: str) -> None:
    with pytest.raises(fastcomm.ArgumentError, match=what):
        codecs_of(Language(), "int8", patterns)


def test_stochastic_codecs_in_a_policy_need_error_feedback_off() -> None:
    with pytest.raises(fastcomm.ArgumentError, match="rounds at random"):
        fastcomm.Simulation(Language(), 2, "int8", policy={"first*": "int4:stochastic"})


MIXED = {
    "0.weight": "int2:seed=3",
    "2.weight": "topk:0.02",
    "4.weight": "topk:0.1",
    "*": "int8",
}


def bytes_of_a_step() -> int:
    model = DistributedDataParallel(mlp())
    options: dict[str, Any] = {"policy": MIXED, "min_compress_elements": 1, "warmup_steps": 0}
    state = fastcomm.register(model, "int8", algorithm="gather", **options)
    for step in range(3):
        assert conserving_step(model, state, step) <= 1e-5
    before = state.stats.wire_bytes
    backward(model, 3)
    return state.stats.wire_bytes - before


def test_bucket_of_several_codecs_is_one_message() -> None:
    for sent in ranks.run(2, bytes_of_a_step):
        header, record = fastcomm.Fp32().wire_bytes(0), _C.OPENING_RECORD_BYTES
        sizes = {"0": 60 * 150, "2": 150 * 97, "4": 970}
        plain = sum(-(-4 * n // 16) * 16 for n in (150, 97, 10))
        expected = header + record + plain
        for name, codec in (("0", "int2:seed=3"), ("2", "topk:0.02"), ("4", "topk:0.1")):
            expected += fastcomm.codec(codec).wire_bytes(sizes[name]) - header
        assert sent == expected


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("algorithm", ["ring", "gather", "scatter_gather"])
def test_nothing_is_lost_under_a_policy(algorithm: str, num_ranks: int) -> None:
    model = mlp()
    group = GivenGradients(
        model,
        num_ranks,
        "int8",
        policy=MIXED,
        algorithm=algorithm,
        min_compress_elements=1,
        warmup_steps=0,
    )
    given: dict[str, torch.Tensor] = {}
    delivered: dict[str, torch.Tensor] = {}
    for step in range(4):
        of_ranks = random_gradients(model, num_ranks, step)
        averages = group.average(of_ranks)
        for name, average in averages.items():
            total = sum((g[name].double() for g in of_ranks), start=torch.zeros(()).double())
            given[name] = given.get(name, torch.zeros(())) + total
            delivered[name] = delivered.get(name, torch.zeros(())) + num_ranks * average.double()
    for name, total in given.items():
        held = sum((group.residual(rank, name).double() for rank in range(num_ranks)), start=0)
        missing = (delivered[name].flatten() + held - total.flatten()).abs().max()
        assert missing <= 1e-5 * total.abs().max()


def differ_in_policy() -> str:
    model = DistributedDataParallel(mlp())
    own = "int4" if dist.get_rank() else "sign"
    with pytest.raises(fastcomm.MismatchError) as caught:
        fastcomm.register(model, "int8", policy={"0.*": own})
    return str(caught.value)


def test_ranks_with_different_policies_are_told_so() -> None:
    first, second = ranks.run(2, differ_in_policy)
    assert first == second
    assert "policy=0.*: sign" in first
    assert "policy=0.*: int4" in first


def attach_late() -> str:
    model = DistributedDataParallel(mlp())
    state = fastcomm.HookState("int8", policy={})  # the same codec for all: needs no names
    model.register_comm_hook(state, fastcomm.compress_hook)
    backward(model, 0)
    state.attach(model)  # for the names in a checkpoint
    assert conserving_step(model, state, 1) <= 1e-6
    late = fastcomm.HookState("int8", policy={"0.*": "int4"})
    late._residuals.layout(list(model.module.parameters()))
    with pytest.raises(fastcomm.ArgumentError) as caught:
        late.attach(model)
    return str(caught.value)


def test_names_may_come_late_for_checkpoints_but_not_for_policies() -> None:
    for message in ranks.run(2, attach_late):
        assert "the first step is over" in message


def policy_without_names() -> str:
    model = DistributedDataParallel(mlp())
    state = fastcomm.HookState("int8", policy={"0.*": "int4"})
    model.register_comm_hook(state, fastcomm.compress_hook)
    with pytest.raises(fastcomm.ArgumentError) as caught:
        backward(model, 0)
    state.attach(model)
    backward(model, 0)
    assert conserving_step(model, state, 1) <= 1e-6
    return str(caught.value)


def test_a_policy_without_names_says_how_to_get_them() -> None:
    for message in ranks.run(2, policy_without_names):
        assert "state.attach(ddp_model)" in message
