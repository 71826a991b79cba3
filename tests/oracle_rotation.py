"""The randomized Hadamard rotation and the random numbers in plain numpy, for the oracle."""

import numpy as np
import numpy.typing as npt

from oracle_numbers import F32, U32

ROTATION = 256


def philox(counter: tuple[npt.ArrayLike, ...], key: tuple[int, int]) -> U32:
    """Return the four words of Philox4x32-10 for each counter (c0, c1, c2, c3), as rows."""
    words = [np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter)]
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * words[0]
        product1 = np.uint64(0xCD9E8D57) * words[2]
        words = [
            (product1 >> np.uint64(32)) ^ words[1] ^ np.uint64(k0),
            product1 & low,
            (product0 >> np.uint64(32)) ^ words[3] ^ np.uint64(k1),
            product0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(words).astype(np.uint32)


def flips(seed: int) -> U32:
    """Return what to flip in the bits of each element of a block: its sign, or nothing."""
    words = philox((np.arange(ROTATION // 4), 0, 0, 0), (seed, 0))
    return np.asarray(words.T.reshape(-1) << np.uint32(31))


def flipped(values: F32, seed: int) -> F32:
    return (values.view(np.uint32) ^ flips(seed)[: values.size]).view(np.float32)


def transformed(values: F32) -> F32:
    """Multiply a block by the normalized Hadamard matrix; a short one in pieces."""
    pieces = []
    first = 0
    for size in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        if values.size & size:
            pieces.append(hadamard(values[first : first + size]))
            first += size
    return np.concatenate([np.empty(0, np.float32), *pieces])


def hadamard(values: F32) -> F32:
    size = values.size
    distance = 1
    while distance < size:
        pairs = values.reshape(-1, 2, distance)
        a, b = pairs[:, 0], pairs[:, 1]
        values = np.stack([a + b, a - b], axis=1).reshape(-1)
        distance *= 2
    return np.asarray(values * (np.float32(1) / np.sqrt(np.float32(size))))


def rotated(values: F32, seed: int) -> F32:
    return transformed(flipped(values, seed))


def rotated_back(values: F32, seed: int) -> F32:
    return flipped(transformed(values), seed)


def mean_magnitude(values: F32) -> np.float32:
    """Sum in 64 lanes, then halve the lanes until one is left."""
    rows = np.resize(np.abs(values), (-(-values.size // 64), 64))
    rows.reshape(-1)[values.size :] = 0
    sums = np.zeros(64, np.float32)
    for row in rows:
        sums = sums + row
    while sums.size > 1:
        lower, upper = np.split(sums, 2)
        sums = lower + upper
    mean: np.float32 = sums[0] / np.float32(values.size)
    return mean
