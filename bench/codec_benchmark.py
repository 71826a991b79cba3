"""How fast codecs are against b += a and a streaming copy, and top-k against torch.topk.

    python bench/codecs.py --codec int8,topk:0.01 --isa all --threads 1,2 --json out.json

Encode, hop (decode + accumulate + encode) and decode, as a rank of the ring runs them: a bucket in
slices, each with header and checksum. bench/README.md defines the words and counts the bytes. What
was timed is checked; a run with a wrong result exits with 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

import fastcomm
from buffers import BufferPool
from codec_checks import Candidate
from codec_speed import CodecRow, candidates, default_codecs, measure_codec
from codec_tables import print_codecs, print_int8, print_topk
from fastcomm import _C
from int8_rivals import Int8Row, measure_int8
from measure import facts, restart_with_sleeping_threads
from tables import note
from topk_rivals import INPUTS, TopKRow, gaussian, measure_topk

Row: TypeAlias = CodecRow | TopKRow | Int8Row
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ISAS = ["baseline", "avx2", "avx512"]
# Under a minute.
QUICK = {
    "num_elements": 4_000_000,
    "codec": ["int8", "int4", "sign", "topk:0.01"],
    "isa": [_C.active_isa()],
    "threads": [1],
    "repetitions": 5,
}


def codec_list(text: str) -> list[str]:
    """Parse the names of codecs."""
    names = default_codecs() if text == "all" else text.split(",")
    for name in names:
        try:
            fastcomm.codec(name)
        except fastcomm.Error as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names


def isa_list(text: str) -> list[str]:
    """Parse the names of instruction sets."""
    names = _C.supported_isas() if text == "all" else text.split(",")
    for name in names:
        if name not in ISAS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ISAS)} or all")
    return sorted(names, key=ISAS.index)


def thread_list(text: str) -> list[int]:
    """Parse numbers of threads."""
    return [int(number) for number in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-elements", type=int, default=25_000_000)
    parser.add_argument(
        "--codec", type=codec_list, default="all", help="int8,int4,... or all (default)"
    )
    parser.add_argument(
        "--isa", type=isa_list, default="all", help="baseline,avx2,avx512 or all (default)"
    )
    parser.add_argument("--threads", type=thread_list, default="1", help="for instance 1,2")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the gradient")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--no-rivals", action="store_true", help="codecs only")
    parser.add_argument(
        "--torch-compile", action="store_true", help="a compiled int8 too (compiles for 30 s)"
    )
    parser.add_argument("--quick", action="store_true", help="smaller defaults: under a minute")
    parser.add_argument("--json", type=Path, help="where to write the results")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    if arguments.num_elements < 1000 or arguments.repetitions < 1:
        parser.error("--num-elements below 1000, or --repetitions below 1")
    if arguments.dtype != "float32" and not arguments.no_rivals:
        parser.error(f"the rivals take float32 only; use --no-rivals with {arguments.dtype}")
    return arguments


def measure_codecs(
    arguments: argparse.Namespace, measured: list[Candidate], pool: BufferPool
) -> list[Row]:
    """Measure all codecs."""
    rows: list[Row] = []
    pool.fill_gradients(
        torch.from_numpy(gaussian(np.random.default_rng(0), arguments.num_elements))
    )
    for isa, threads in itertools.product(arguments.isa, arguments.threads):
        group = [
            row
            for candidate in measured
            for row in measure_codec(candidate, isa, threads, pool, arguments.repetitions)
        ]
        print_codecs(group)
        rows += group
    return rows


def measure_rivals(arguments: argparse.Namespace, pool: BufferPool) -> list[Row]:
    """Measure top-k and int8, on the best of the instruction sets, against other ways to do it."""
    rows: list[Row] = []
    isa = arguments.isa[-1]
    if "int8" in arguments.codec:
        for threads in arguments.threads:
            compared = measure_int8(
                isa, threads, pool, arguments.repetitions, arguments.torch_compile
            )
            print_int8(compared)
            rows += compared
    sparse = [c for c in map(fastcomm.codec, arguments.codec) if isinstance(c, fastcomm.TopK)]
    selections: list[TopKRow] = []
    for kind, make in INPUTS.items() if sparse else ():
        values = make(np.random.default_rng(0), arguments.num_elements)
        pool.fill_gradients(torch.from_numpy(values))
        selections += [
            measure_topk(codec, kind, isa, threads, pool, arguments.repetitions)
            for codec, threads in itertools.product(sparse, arguments.threads)
        ]
    for threads in arguments.threads if sparse else ():
        print_topk([row for row in selections if row.threads == threads])
    return [*rows, *selections]


def main() -> None:
    """Measure what the command line says."""
    arguments = parse_arguments()
    for name in arguments.isa:
        if name not in _C.supported_isas():
            sys.exit(f"{name!r} is not supported here; use {','.join(_C.supported_isas())} or all")
    restart_with_sleeping_threads()
    about = facts()
    measured = list(candidates(arguments.codec))
    largest_payload = max(
        _C.payload_bytes([candidate.spec], arguments.num_elements, sliced=True)
        for candidate in measured
    )
    pool = BufferPool.allocate(arguments.num_elements, DTYPES[arguments.dtype], largest_payload)
    note(f"{about['cpu_model']}, {about['cores']} cores; torch {about['torch']}")
    note(f"fastcomm {about['fastcomm']}, commit {about['commit']}")
    note(f"median of {arguments.repetitions}; {pool.description}")
    rows = measure_codecs(arguments, measured, pool)
    if not arguments.no_rivals:
        rows += measure_rivals(arguments, pool)
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(row), **about} for row in rows], indent=1))
    if not all(row.correct for row in rows):
        sys.exit("wrong results: see the rows that are not correct")
