#pragma once
// Memory of large buffers that are streamed through, in huge pages where the system has them: they
// spare address translations, which cost streaming loops a tenth or more of their speed.

#include <cstddef>
#include <cstdint>

namespace fastcomm {

// Whole pages, zero at first; a page costs memory when it is first touched. Movable, not copyable.
class Pages {
 public:
  Pages() = default;
  // Throws std::bad_alloc.
  explicit Pages(int64_t bytes);
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  ~Pages();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* mapping_ = nullptr;
  int64_t mapped_bytes_ = 0;
  std::byte* data_ = nullptr;  // in the mapping, at a multiple of a huge page
  int64_t bytes_ = 0;
};

// Gives the memory of those pages back that lie in [begin, begin + bytes) as a whole, which must be
// of Pages; they are zero when they are touched again.
void release_pages(std::byte* begin, int64_t bytes);

}  // namespace fastcomm
