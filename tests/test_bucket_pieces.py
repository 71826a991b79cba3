"""A bucket whose parameters are synchronized in pieces, each as if it was a bucket."""

from typing import Any

import pytest
import torch

import fastcomm
from fastcomm.regrouping import synchronize_apart


def test_pieces_of_a_bucket_come_back_to_their_places() -> None:
    shapes = [(2, 3), (4,), (2, 2)]
    parameters = [torch.zeros(shape, dtype=torch.complex64) for shape in shapes]
    bucket = torch.arange(28.0)
    pieces: list[tuple[torch.Tensor, list[tuple[int, ...]]]] = []

    def start(
        piece: torch.Tensor, of_parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        pieces.append((piece.clone(), [tuple(each.shape) for each in of_parameters]))
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(piece.add_(100 * len(pieces)))
        return future

    result = synchronize_apart(bucket, parameters, [[0, 2], [1]], start).wait()
    assert result.data_ptr() == bucket.data_ptr()
    first, second = pieces
    assert first[1] == [(2, 3), (2, 2)]
    assert torch.equal(first[0], torch.cat([torch.arange(12.0), torch.arange(20.0, 28.0)]))
    assert second[1] == [(4,)]
    assert torch.equal(bucket[:12], torch.arange(12.0) + 100)
    assert torch.equal(bucket[12:20], torch.arange(12.0, 20.0) + 200)
    assert torch.equal(bucket[20:], torch.arange(20.0, 28.0) + 100)


def test_piece_that_fails_fails_its_bucket() -> None:
    def start(
        piece: torch.Tensor, of_parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        if len(piece) == 3:
            error: Any = fastcomm.PeerError("rank 1 is gone")  # wrong in torch's annotations
            future.set_exception(error)
        else:
            future.set_result(piece)
        return future

    parameters = [torch.zeros(3), torch.zeros(2)]
    future = synchronize_apart(torch.zeros(5), parameters, [[0], [1]], start)
    with pytest.raises(fastcomm.PeerError, match="rank 1 is gone"):
        future.wait()
