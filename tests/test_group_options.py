"""What fastcomm's own connections take over from the process group that they serve."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

import fastcomm
import ranks
from fastcomm.cores import count_cores
from fastcomm.sockets import Snapshot
from made_group import made_group

# This machine has it, too; nothing listens there unless it is told to.
OTHER_HOST = "127.0.0.77"


def listening_hosts(before: Snapshot) -> list[str]:
    return [opened.host for opened in before.opened_since(lambda opened: not opened.remote)]


def connect_on_another_host(num_devices: int) -> list[str]:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=OTHER_HOST) for _ in range(num_devices)]
    options._threads = 2 * num_devices
    store = PrefixStore("group", dist.group.WORLD.get_group_store())  # type: ignore[union-attr]
    group = made_group(store, PrefixStore("cpu/", store), options)
    before = Snapshot()
    tensor = torch.ones(100)
    fastcomm.all_reduce(tensor, group=group, codec="fp32")
    assert torch.equal(tensor, torch.full((100,), 2.0))
    return listening_hosts(before)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_connections_use_the_network_that_the_group_uses(num_devices: int) -> None:
    for hosts in ranks.run(2, connect_on_another_host, num_devices):
        assert hosts == [OTHER_HOST] * 2 * num_devices


class GroupInPython(dist.ProcessGroup):
    """As libraries derive it."""


def reduce_over_a_group_without_a_store() -> str:
    group = GroupInPython(dist.get_rank(), 2)  # type: ignore[call-arg]  # a stub
    with pytest.raises(fastcomm.ArgumentError) as caught:
        fastcomm.all_reduce(torch.ones(10), group=group)
    return str(caught.value)


def test_group_without_a_store_is_refused() -> None:
    for message in ranks.run(2, reduce_over_a_group_without_a_store):
        assert "the process group (GroupInPython) has no store" in message
        assert "new_group" in message


# --- the cores of this process -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("4:memory:/\n3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "400000"}, 4),
        ("3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1"}, 8),
        ("3:cpu:/outside\n", {"cpu/cpu.cfs_quota_us": "200000"}, 2),
    ],
    ids=["none", "max", "quota", "half", "parent", "version_1", "version_1_max", "container"],
)
def test_quota_of_a_cgroup_limits_the_cores(
    membership: str,
    files: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "own").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if name.endswith("quota_us"):
            (file.parent / "cpu.cfs_period_us").write_text("100000")
    assert count_cores(tmp_path / "cgroup", tmp_path / "own") == expected
