"""What a rank makes of notes that no fastcomm has sent: an error that can be read, and no more."""

import datetime
import time

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore

import ranks
from fastcomm import _C, errors

NUM_LANES = 2
NOTE_BYTES = 2048
NOTE_TAG = 2**25  # "Over gloo, ..." in docs/wire_format.md


def receive_note(note: bytes) -> str:
    """Rank 1 sends a note, rank 0 returns the error that becomes of it."""
    store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]  # a stub
    timeout = datetime.timedelta(seconds=30)
    backends: list[Backend] = [
        dist.ProcessGroupGloo(PrefixStore(str(i), store), dist.get_rank(), 2, timeout=timeout)
        for i in range(2)
    ]
    if dist.get_rank() == 1:
        tensor = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        backends[0].send([tensor], 0, NOTE_TAG).wait()  # type: ignore[attr-defined]  # a stub
        dist.barrier()  # rank 0 has read it
        return ""
    communicator = _C.Communicator(backends, NUM_LANES, timeout)
    message = ""
    while not message:
        try:
            communicator.check(1)
            time.sleep(0.001)
        except errors.PeerError as error:
            message = str(error)
    communicator.abort()
    dist.barrier()
    return message


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        (b"F" + b"x" * (NOTE_BYTES - 1), "x" * (NOTE_BYTES - 1) + " ["),
        (b"F1,2,:caf\xe9 \xff\x01", "The failure: caf? ?? ["),
        (b"F1,2", "The failure: F1,2 ["),
        (b"F1,99999999999999999999999,:all", ":all ["),
        (b"Z" * 10, "rank 1 sent a note that cannot be read: ZZZZZZZZZZ"),
        (b"\x80\x00", "rank 1 sent a note that cannot be read: ?"),
        (b"\x00", "rank 1 sent a note that cannot be read"),
    ],
    ids=["no_end", "not_ascii", "no_colon", "large_number", "letter", "byte", "empty"],
)
def test_note_of_anything_is_an_error_that_can_be_read(note: bytes, shown: str) -> None:
    assert shown in ranks.run(2, receive_note, note)[0]
