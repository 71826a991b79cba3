#pragma once
// What ranks tell each other besides exchanges (canaries.h).

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/printable.h"

namespace fastcomm {

// By lane: how many of its exchanges come before some place in the order of calls. This order is
// the same on all ranks, as long as they make the same calls.
using Place = std::vector<uint64_t>;

// An exchange has failed on some rank.
struct News {
  bool is_mismatch = false;
  std::string text;  // where, and what
  // That of the exchange. The rank goes on with those before it, and with no other. Of lanes that
  // it does not name: with none.
  Place place = {};

  uint64_t num_before(size_t lane) const { return lane < place.size() ? place[lane] : 0; }
};

// What a rank that is alive is doing.
struct Answer {
  std::optional<int> waits_for;  // a rank; none: it is not in an exchange, or does not wait
};

// A note is one letter, which says what it is, and a text. That of news is its place, each number
// with a comma behind it, a colon, and what happened.
class Note {
 public:
  enum Kind : char { kFailure = 'F', kMismatch = 'M', kQuestion = '?', kAnswer = 'A' };

  explicit Note(const News& news) : text_(1, news.is_mismatch ? kMismatch : kFailure) {
    for (const uint64_t number : news.place) text_ += std::to_string(number) + ',';
    text_ += ':' + news.text;
  }
  explicit Note(const Answer& answer) : text_(1, kAnswer) {
    if (answer.waits_for) text_ += std::to_string(*answer.waits_for);
  }
  static Note question() { return Note(std::string(1, kQuestion)); }
  // Of whatever came from `rank`: what is not a note is the news of a failure of everything.
  static Note received(int rank, const std::string& text) {
    if (!text.empty() && std::string("FM?A").find(text[0]) != std::string::npos) {
      return Note(printable(text));
    }
    return Note(News{false, "rank " + std::to_string(rank) +
                                " sent a note that cannot be read: " + printable(text)});
  }

  const std::string& text() const { return text_; }
  bool is_question() const { return text_[0] == kQuestion; }
  bool is_answer() const { return text_[0] == kAnswer; }

  News news() const {
    News news{text_[0] == kMismatch, {}, {}};
    const char* at = text_.data() + 1;
    const char* end = text_.data() + text_.size();
    while (at != end && *at != ':') {
      uint64_t number = 0;
      const auto [next, error] = std::from_chars(at, end, number);
      if (error != std::errc() || next == end || *next != ',') return {news.is_mismatch, text_, {}};
      news.place.push_back(number);
      at = next + 1;
    }
    if (at != end) news.text.assign(at + 1, end);
    return news;
  }

  // A rank that is not in a group of this size is none.
  Answer answer(int world_size) const {
    int rank = 0;
    const char* end = text_.data() + text_.size();
    const auto [next, error] = std::from_chars(text_.data() + 1, end, rank);
    if (error != std::errc() || next != end || rank < 0 || rank >= world_size) return {};
    return {rank};
  }

 private:
  explicit Note(std::string text) : text_(std::move(text)) {}

  std::string text_;
};

}  // namespace fastcomm
