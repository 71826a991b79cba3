"""Where a rank of the example computes, and how the ranks talk."""

import os
import sys

import torch
import torch.distributed as dist


def join_ranks(device_type: str) -> torch.device:
    """Initialize the default process group of the ranks that torchrun started.

    Ranks on GPUs take one after another. They talk over NCCL if each of this host's ranks has one
    to itself, else over gloo, which lets them share.

    Returns:
        The device of this rank.
    """
    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device_type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))
        dist.init_process_group("gloo")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        sys.exit(
            f"--device cuda: torch {torch.__version__} sees no GPU on this machine; "
            "leave the option out to train on the CPU"
        )
    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", local_rank % num_gpus)
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True
    if num_gpus >= local_ranks:
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return device


def get_random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of the random numbers that a model on ``device`` draws: bytes."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    """Go on with the random numbers that follow after ``get_random_state``."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def describe_device(device: torch.device) -> dict[str, str | None]:
    """Return what the JSON file of a run says about the device and the backend."""
    is_gpu = device.type == "cuda"
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if is_gpu else None,
        "backend": dist.get_backend_config(),
    }
