"""Which of a job's process groups a group is, and which shard of a checkpoint it goes on with."""

import pytest
import torch

import fastcomm
from fastcomm.job_groups import GroupPlace, place_of


@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 1, 2), (1, 5, 3), (3, 2, 1), (2, 2, 1)], ids=str)
def test_groups_along_a_dimension_of_a_mesh_are_counted_in_its_order(
    shape: tuple[int, int, int],
) -> None:
    outer, size, inner = shape
    mesh = torch.arange(outer * size * inner).reshape(shape)
    groups = mesh.transpose(1, 2).reshape(-1, size).tolist()
    places = [place_of(group, mesh.numel()) for group in groups]
    assert [place.index for place in places] == list(range(outer * inner))
    assert [place.shard for place in places] == [group[0] for group in groups]
    assert {place.num_groups for place in places} == {outer * inner}


@pytest.mark.parametrize(
    "groups", [[[0], [1, 2, 3]], [[0, 1, 2], [3]], [[0, 1, 4, 5], [2, 3, 6, 7]]], ids=str
)
def test_groups_that_are_no_dimension_have_names_of_their_own(groups: list[list[int]]) -> None:
    places = [place_of(group, sum(map(len, groups))) for group in groups]
    assert len({place.shard for place in places}) == len(groups)
    for place in places:
        if place.index is None:  # nothing is known but that it has the same lowest rank
            assert place.choose([each.shard for each in places]) == place.shard


def test_group_of_all_ranks_has_no_shard() -> None:
    assert place_of([0, 1, 2], 3) == GroupPlace(None, 0, 1)


def test_shard_keeps_its_order_when_data_parallel_ranks_become_more() -> None:
    saved = [place_of(group, 4).shard for group in ([2, 3], [0, 1])]
    assert [place_of(group, 6).choose(saved) for group in ([0, 1, 2], [3, 4, 5])] == [0, 2]


def test_shard_of_the_only_group_is_for_a_group_of_all_ranks() -> None:
    assert place_of([0, 1], 2).choose([4]) == 4
    assert place_of([1, 3], 4).choose([1]) == 1
    assert place_of([1, 3], 4).choose([None]) is None


@pytest.mark.parametrize("saved", [[0, 1, 2, 3], [0], [None, 0]], ids=str)
def test_shards_of_another_number_are_refused(saved: list[int | None]) -> None:
    with pytest.raises(fastcomm.ArgumentError) as caught:
        place_of([2, 3], 6).choose(saved)
    assert f"states of {len(saved)} process groups" in str(caught.value)
    assert "this job has 3" in str(caught.value)
    assert 'key="fastcomm.shard0"' in str(caught.value)
