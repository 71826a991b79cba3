#include "core/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

namespace fastcomm {
namespace {

constexpr int64_t kHugePageBytes = int64_t{1} << 21;

std::byte* align_up(std::byte* address, int64_t alignment) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  const auto mask = static_cast<uintptr_t>(alignment - 1);
  return reinterpret_cast<std::byte*>((value + mask) & ~mask);
}

}  // namespace

Pages::Pages(int64_t bytes) : mapped_bytes_(bytes + kHugePageBytes), bytes_(bytes) {
  void* mapping = mmap(nullptr, static_cast<size_t>(mapped_bytes_), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(mapping);
  data_ = align_up(mapping_, kHugePageBytes);
#ifdef MADV_HUGEPAGE
  // Advice: without huge pages, small ones do. The last part of a huge page stays small, so that
  // nobody pays for more than was asked for.
  const int64_t whole_bytes = bytes / kHugePageBytes * kHugePageBytes;
  if (whole_bytes > 0) madvise(data_, static_cast<size_t>(whole_bytes), MADV_HUGEPAGE);
#endif
}

Pages::Pages(Pages&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapped_bytes_(std::exchange(other.mapped_bytes_, 0)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Pages::~Pages() {
  if (mapping_ != nullptr) munmap(mapping_, static_cast<size_t>(mapped_bytes_));
}

void release_pages(std::byte* begin, int64_t bytes) {
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  std::byte* first = align_up(begin, page_bytes);
  const int64_t whole_bytes = (begin + bytes - first) / page_bytes * page_bytes;
  if (whole_bytes > 0) madvise(first, static_cast<size_t>(whole_bytes), MADV_DONTNEED);
}

}  // namespace fastcomm
