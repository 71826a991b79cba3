"""Which algorithm "auto" stands for (docs/wire_format.md, section 4)."""

import pytest

import fastcomm
from fastcomm.algorithms import choose_algorithm


@pytest.mark.parametrize(
    ("codec", "world_size", "num_elements", "expected"),
    [
        # Small payloads travel in the opening messages: 256 KiB of 2 ranks, 66 KiB of 4.
        ("fp32", 2, 65_000, "gather"),
        ("fp32", 2, 66_000, "ring"),
        ("int8", 2, 250_000, "gather"),
        ("int8", 4, 16_384, "gather"),
        ("int8", 64, 500, "gather"),
        # Above that, the latency of two messages instead of 2 (N-1), up to 512 KiB.
        ("int8", 4, 67_000, "gather"),
        ("int8", 4, 70_000, "scatter_gather"),
        ("int8", 64, 10_000, "scatter_gather"),
        ("int8", 4, 510_000, "scatter_gather"),
        ("int8", 4, 530_000, "ring"),
        ("int8", 2, 530_000, "ring"),
        ("int4", 8, 10_000_000, "ring"),
        # Sparse payloads are gathered while that costs no more bytes, or hardly any.
        ("topk:0.01", 2, 10_000_000, "gather"),
        ("topk:0.01", 4, 10_000_000, "scatter_gather"),
        ("topk:0.01", 4, 20_000_000, "ring"),
        ("topk:0.001", 4, 10_000_000, "gather"),
        ("topk:0.5", 2, 10_000_000, "ring"),  # sent as int4
    ],
)
def test_auto_depends_on_codec_ranks_and_size(
    codec: str, world_size: int, num_elements: int, expected: str
) -> None:
    runs = [(num_elements, fastcomm.codec(codec))]
    assert choose_algorithm("auto", runs, world_size) == expected


def test_what_is_not_compressed_counts_with_its_size() -> None:
    sign, fp32 = fastcomm.Sign(), fastcomm.Fp32()
    assert choose_algorithm("auto", [(80_000, sign)], 2) == "gather"
    assert choose_algorithm("auto", [(10, sign), (80_000, fp32)], 2) == "ring"


@pytest.mark.parametrize("algorithm", ["ring", "gather", "scatter_gather"])
def test_a_choice_is_kept(algorithm: str) -> None:
    assert choose_algorithm(algorithm, [(10, fastcomm.Int8())], 2) == algorithm
