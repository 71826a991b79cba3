"""The hook under DDP on a GPU, two ranks sharing it, over gloo."""

import math
from functools import cache

import pytest
import torch

import gpu_training
import on_gpu
import ranks
from training import CLASSES

pytestmark = on_gpu.marks()


def test_fp32_hook_gives_plain_ddp_gradients() -> None:
    for num_ranks in (1, 2, 3):
        function = gpu_training.worst_difference_from_plain_ddp
        assert max(ranks.run(num_ranks, function, None, "fp32")) <= 1e-6


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "int2", "sign", "topk:0.05"])
def test_nothing_is_lost_and_residuals_stay_on_the_gpu(codec: str) -> None:
    for worst, devices in ranks.run(2, gpu_training.keep_books, None, codec):
        assert worst <= 1e-6
        assert devices == [on_gpu.GPU.type]


@cache
def plain_final_loss() -> float:
    return ranks.run(2, gpu_training.final_loss, None, None)[0][0]


@pytest.mark.parametrize(
    ("codec", "share"), [("int8", 0.01), ("int4", 0.02), ("sign", 0.1), ("topk:0.05", 0.2)]
)
def test_compressed_training_follows_plain_ddp(codec: str, share: float) -> None:
    plain_loss = plain_final_loss()
    progress = math.log(CLASSES) - plain_loss
    assert progress > 1, "plain DDP does not learn this"
    for loss, parameters_are_equal in ranks.run(2, gpu_training.final_loss, None, codec):
        assert abs(loss - plain_loss) < share * progress
        assert parameters_are_equal, "the ranks' models drifted apart"


@pytest.mark.parametrize("codec", ["int8", "topk:0.05"])
def test_what_is_sent_is_what_ranks_on_the_cpu_send(codec: str) -> None:
    on_gpu, on_cpu = (ranks.run(2, gpu_training.sent_bytes, None, codec, d) for d in (True, False))
    assert on_gpu == on_cpu


@pytest.mark.parametrize("by_cpu", [False, True], ids=["from the GPU", "from the CPU"])
@pytest.mark.parametrize("codec", ["int8", "sign", "topk:0.05"])
def test_resumed_training_is_bit_identical_to_training_that_went_on(
    codec: str, by_cpu: bool
) -> None:
    ranks.run(2, gpu_training.stop_and_resume, None, codec, by_cpu)


@pytest.mark.parametrize("codec", ["int4", "topk:0.01"])
def test_flush_delivers_all_residuals_in_one_step(codec: str) -> None:
    ranks.run(2, gpu_training.flush_once, None, codec)


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
@pytest.mark.parametrize("codec", ["fp32", "int8", "sign", "topk:0.05"])
def test_overflow_on_one_rank_makes_grad_scaler_skip_on_all(codec: str, poison: float) -> None:
    ranks.run(2, gpu_training.scale_gradients, None, codec, poison)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_models_in_half_precision_learn_and_stay_equal(dtype: torch.dtype) -> None:
    assert all(ranks.run(2, gpu_training.train_in_half_precision, None, dtype))
