// How a bucket is cut.

#include "collectives/schedules.h"
#include "core/check.h"
#include "doctest.h"

namespace fastcomm {
namespace {

// Contiguous, from `begin` to `end`, nothing twice.
void check_covers(const std::vector<ElementRange>& parts, int64_t begin, int64_t end) {
  for (const ElementRange& part : parts) {
    REQUIRE(part.begin == begin);
    REQUIRE(part.end >= part.begin);
    begin = part.end;
  }
  REQUIRE(begin == end);
}

TEST_CASE("segments cover the bucket, aligned and as even as alignment allows") {
  for (const int64_t alignment : {1, 256, 512}) {
    for (const int num_segments : {1, 2, 3, 5, 8, 64}) {
      for (const int64_t n : {0, 1, 5, 255, 256, 257, 511, 512, 513, 4103, 100'003, 10'000'000}) {
        CAPTURE(alignment);
        CAPTURE(num_segments);
        CAPTURE(n);
        const auto segments = cut_segments({n, alignment, 1 << 20, 1 << 20}, num_segments);
        REQUIRE(segments.size() == static_cast<size_t>(num_segments));
        check_covers(segments, 0, n);
        const int64_t longest = segments.front().size();
        REQUIRE(longest * num_segments < n + num_segments * alignment + 1);
        bool is_after_short = false;
        for (const ElementRange& segment : segments) {
          REQUIRE((segment.empty() || segment.begin % alignment == 0));
          REQUIRE(segment.size() <= longest);
          // Only one segment may be ragged; behind it all are empty.
          if (is_after_short) REQUIRE(segment.empty());
          is_after_short = is_after_short || segment.size() < longest;
        }
      }
    }
  }
}

TEST_CASE("slices cover their segment, all but the last of full size") {
  for (const int64_t slice_elements : {1, 512, 4096}) {
    for (const int64_t n : {0, 1, 511, 512, 513, 4096, 10'001}) {
      const auto slices = cut_slices({1024, 1024 + n}, slice_elements);
      check_covers(slices, 1024, 1024 + n);
      for (size_t i = 0; i + 1 < slices.size(); ++i) REQUIRE(slices[i].size() == slice_elements);
      for (const ElementRange& slice : slices) REQUIRE_FALSE(slice.empty());
    }
  }
}

TEST_CASE("a segment has six slices, as far as their good sizes allow") {
  const BucketShape shape{
      .num_elements = 0, .alignment = 512, .smallest_slice = 1024, .largest_slice = 4096};
  CHECK(slice_elements(shape, 0) == 1024);
  CHECK(slice_elements(shape, 6 * 1024) == 1024);
  CHECK(slice_elements(shape, 6 * 2048) == 2048);
  CHECK(slice_elements(shape, 6 * 2048 + 6) == 2560);  // aligned
  CHECK(slice_elements(shape, 1'000'000) == 4096);
}

TEST_CASE("schedules are found by name; an unknown name is an error that says it") {
  for (const Schedule& one : schedules()) CHECK((schedule(one.name).run == one.run));
  CHECK_THROWS_WITH_AS(schedule("tree"), doctest::Contains("'tree'"), Error);
}

}  // namespace
}  // namespace fastcomm
