#pragma once
// The all-reduce schedules. Each leaves the same bits in the bucket of every rank.

#include <string_view>
#include <vector>

#include "collectives/exchange.h"

namespace fastcomm {

// Error-feedback ring: 2 (N-1) / N of a bucket's payload per rank; a rank encodes N times.
void ring_all_reduce(Exchange& exchange);

// Every rank encodes its whole bucket once, the payloads circulate, all sum them in rank order:
// (N-1) payloads per rank, the exact union of sparse payloads.
void gather_all_reduce(Exchange& exchange);

// Every rank sends each segment's part straight to the owner of the segment, which sends the sum to
// all: the ring's bytes, but a value is encoded twice instead of N times, and in two messages.
void scatter_gather_all_reduce(Exchange& exchange);

struct Schedule {
  std::string_view name;
  void (*run)(Exchange&);
};

const std::vector<Schedule>& schedules();

// Throws Error if there is no such schedule.
const Schedule& schedule(std::string_view name);

// How long the slices of a segment are: so that several are under way at a time, as far as their
// good sizes allow.
int64_t slice_elements(const BucketShape& shape, int64_t segment_elements);

// The pieces of `range` that are at most `slice_elements` long.
std::vector<ElementRange> cut_slices(ElementRange range, int64_t slice_elements);

// `num_segments` contiguous parts of a bucket, aligned and as even as alignment allows; the last
// ones may be short or empty.
std::vector<ElementRange> cut_segments(const BucketShape& shape, int num_segments);

}  // namespace fastcomm
