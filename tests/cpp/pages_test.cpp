// Memory that is streamed through.

#include "core/pages.h"

#include <algorithm>
#include <utility>

#include "doctest.h"

namespace fastcomm {
namespace {

bool is_zero(const std::byte* begin, int64_t bytes) {
  return std::all_of(begin, begin + bytes, [](std::byte b) { return b == std::byte{0}; });
}

TEST_CASE("pages are zero at first, aligned, and all of them can be written") {
  for (const int64_t bytes : {1, 4096, 100'000, (1 << 21) - 1, 1 << 21, 5'000'000}) {
    const Pages pages(bytes);
    REQUIRE(pages.bytes() == bytes);
    CHECK(reinterpret_cast<uintptr_t>(pages.data()) % 4096 == 0);
    CHECK(is_zero(pages.data(), bytes));
    std::fill_n(pages.data(), bytes, std::byte{7});
    CHECK(std::count(pages.data(), pages.data() + bytes, std::byte{7}) == bytes);
  }
}

TEST_CASE("what is moved keeps its memory") {
  Pages first(1000);
  first.data()[999] = std::byte{3};
  std::byte* data = first.data();
  Pages second = std::move(first);
  CHECK(second.data() == data);
  Pages third;
  third = std::move(second);
  CHECK(third.data() == data);
  CHECK(third.data()[999] == std::byte{3});
  CHECK(third.bytes() == 1000);
}

TEST_CASE("releasing a part leaves what is around it") {
  constexpr int64_t kBytes = 1 << 20;
  const Pages pages(kBytes);
  std::fill_n(pages.data(), kBytes, std::byte{7});
  release_pages(pages.data() + 5000, 50'000);
  CHECK(std::count(pages.data(), pages.data() + 5000, std::byte{7}) == 5000);
  CHECK(std::count(pages.data() + 55'000, pages.data() + kBytes, std::byte{7}) == kBytes - 55'000);
  CHECK(is_zero(pages.data() + 8192, 40'000));
  release_pages(pages.data() + 100'000, 10);  // not a whole page: nothing
  CHECK(pages.data()[100'005] == std::byte{7});
}

}  // namespace
}  // namespace fastcomm
