#pragma once
// The dense block codecs. A new one is its header and a line here; every instruction set, the
// Python names, the tests and the benchmarks follow (docs/adding_a_codec.md).

#include "codecs/dense/bf16.h"
#include "codecs/dense/fp16.h"
#include "codecs/dense/fp32.h"
#include "codecs/dense/fp8.h"
#include "codecs/dense/int2.h"
#include "codecs/dense/int4.h"
#include "codecs/dense/int8.h"
#include "codecs/dense/sign.h"

// Codecs that are not part of this repository: a header that CMake names
// (-DFASTCOMM_EXTRA_DENSE_CODECS=my_codecs.h).
#ifdef FASTCOMM_EXTRA_DENSE_CODECS
#include FASTCOMM_EXTRA_DENSE_CODECS
#endif
