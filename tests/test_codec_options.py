"""Options after the colon of a codec's name: what they do, and what is said of wrong ones."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastcomm
import ranks
from fastcomm import ArgumentError, PayloadError
from promises import CODECS, STOCHASTIC_CODECS, is_rotated

ROTATED_CODECS = [name for name in CODECS if is_rotated(name)]
WITH_OPTIONS = [
    *STOCHASTIC_CODECS,
    *(f"{name},seed=4294967295" for name in STOCHASTIC_CODECS),
    *(f"{name}:seed=17" for name in ROTATED_CODECS),
]


@pytest.mark.parametrize("name", [*CODECS, *WITH_OPTIONS, "topk:0.01", "topk:1e-05"])
def test_text_of_a_codec_is_the_name_that_makes_it_again(name: str) -> None:
    codec = fastcomm.codec(name)
    assert str(codec) == name
    assert fastcomm.codec(str(codec)) == codec
    assert hash(fastcomm.codec(name)) == hash(codec)


def test_options_are_those_of_the_class() -> None:
    assert fastcomm.codec("int8:stochastic,seed=3") == fastcomm.Int8(rounding="stochastic", seed=3)
    assert fastcomm.codec("int8:seed=3,stochastic") == fastcomm.codec("int8:stochastic,seed=3")
    assert fastcomm.codec("sign:seed=3") == fastcomm.Sign(seed=3)
    assert fastcomm.codec("sign:seed=0") == fastcomm.codec("sign")
    assert fastcomm.codec("sign:seed=3") != fastcomm.codec("sign")
    assert fastcomm.codec("int8:stochastic").is_stochastic
    assert not fastcomm.codec("int8").is_stochastic


# --- wrong options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("int8:foo", "foo"),
        ("int8:3", "3"),
        ("int8:Stochastic", "Stochastic"),
        ("int8:stochastic,foo", "foo"),
        ("int8:stochastic,", ""),
        ("sign:seed", "seed"),
        ("sign:seed=", "seed="),
        ("sign:seed=-1", "seed=-1"),
        ("sign:seed=1.5", "seed=1.5"),
        ("fp32:nearest", "nearest"),
    ],
)
def test_unknown_option_is_named_with_an_example(name: str, option: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"{name} has an unknown option")) as caught:
        fastcomm.codec(name)
    assert repr(option) in str(caught.value)
    assert "int8:stochastic,seed=1" in str(caught.value)


@pytest.mark.parametrize(
    "name", [name for name in CODECS if not name.startswith(("topk", "int8", "int4"))]
)
def test_stochastic_rounding_where_there_is_none_lists_what_there_is(name: str) -> None:
    message = f"rounding 'stochastic' is not available for {name}; use nearest"
    with pytest.raises(ArgumentError, match=re.escape(message)):
        fastcomm.codec(f"{name}:stochastic")


@pytest.mark.parametrize("name", ["int8:seed=3", "fp32:seed=1", "fp8:seed=1"])
def test_seed_without_random_numbers_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"uses no random numbers; leave out seed="):
        fastcomm.codec(name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastcomm.codec(f"sign:seed={2**32}"),
        lambda: fastcomm.codec(f"int8:stochastic,seed={10**30}"),
        lambda: fastcomm.Int2(seed=-1),
    ],
)
def test_seed_out_of_range_names_the_range(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match=re.escape("is outside 0 to 2**32 - 1")):
        make()


# --- stochastic rounding replaces error feedback ------------------------------------------------


def use_with_error_feedback(name: str) -> None:
    codec = fastcomm.codec(name)
    for attempt in (
        lambda: codec.encode(torch.ones(3), torch.zeros(3)),
        lambda: fastcomm.all_reduce(torch.ones(3), codec=codec, residual=torch.zeros(3)),
        lambda: fastcomm.HookState(codec),
    ):
        with pytest.raises(ArgumentError) as caught:
            attempt()
        message = str(caught.value)
        assert f"{name!r} rounds at random, which replaces error feedback" in message
        assert f'codec="{codec.name}"' in message
        assert "error_feedback=False" in message
    fastcomm.all_reduce(torch.ones(3), codec=codec)
    fastcomm.HookState(codec, error_feedback=False)


def test_stochastic_rounding_with_error_feedback_is_refused_with_both_ways_out() -> None:
    ranks.run(1, use_with_error_feedback, "int8:stochastic,seed=1")


# --- rotations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROTATED_CODECS)
def test_seed_changes_the_rotation_and_nothing_else(name: str) -> None:
    gradient = torch.from_numpy(np.random.default_rng(0).standard_normal(1000, np.float32))
    payloads = set()
    for seed in (0, 1, 2**32 - 1):
        codec = fastcomm.codec(f"{name}:seed={seed}")
        payload = codec.encode(gradient)
        payloads.add(payload.numpy().tobytes())
        error = (codec.decode(payload) - gradient).norm() / gradient.norm()
        assert error < 0.7, f"seed {seed}"
    assert len(payloads) == 3


@pytest.mark.parametrize("name", ROTATED_CODECS)
def test_payload_of_another_rotation_is_refused(name: str) -> None:
    payload = fastcomm.codec(f"{name}:seed=5").encode(torch.ones(40))
    for out in (None, torch.empty(40)):
        with pytest.raises(PayloadError, match="codec parameter 5, this rank expects 6"):
            fastcomm.codec(f"{name}:seed=6").decode(payload, out)
