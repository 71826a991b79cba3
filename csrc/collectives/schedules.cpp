#include "collectives/schedules.h"

#include <algorithm>

#include "core/check.h"

namespace fastcomm {
namespace {

// With so many slices in a segment, encoding the first and decoding the last, when the wire is
// idle, take little of the whole, and the wire has others while a rank is late with one.
constexpr int64_t kSlicesUnderWay = 6;

}  // namespace

const std::vector<Schedule>& schedules() {
  static const std::vector<Schedule> all{{"ring", ring_all_reduce},
                                         {"gather", gather_all_reduce},
                                         {"scatter_gather", scatter_gather_all_reduce}};
  return all;
}

const Schedule& schedule(std::string_view name) {
  for (const Schedule& candidate : schedules()) {
    if (candidate.name == name) return candidate;
  }
  FASTCOMM_FAIL("there is no algorithm '" << name << "'");
}

int64_t slice_elements(const BucketShape& shape, int64_t segment_elements) {
  const int64_t even = align_up(segment_elements / kSlicesUnderWay, shape.alignment);
  return std::clamp(even, shape.smallest_slice, shape.largest_slice);
}

std::vector<ElementRange> cut_slices(ElementRange range, int64_t slice_elements) {
  std::vector<ElementRange> slices;
  for (int64_t begin = range.begin; begin < range.end; begin += slice_elements) {
    slices.push_back({begin, std::min(range.end, begin + slice_elements)});
  }
  return slices;
}

std::vector<ElementRange> cut_segments(const BucketShape& shape, int num_segments) {
  const int64_t even = (shape.num_elements + num_segments - 1) / num_segments;
  const int64_t segment_elements = std::max(shape.alignment, align_up(even, shape.alignment));
  std::vector<ElementRange> segments;
  for (int segment = 0; segment < num_segments; ++segment) {
    segments.push_back({std::min(shape.num_elements, segment * segment_elements),
                        std::min(shape.num_elements, (segment + 1) * segment_elements)});
  }
  return segments;
}

}  // namespace fastcomm
