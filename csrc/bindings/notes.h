#pragma once
// What ranks tell each other besides exchanges (canaries.h).

#include <charconv>
#include <optional>
#include <string>

namespace fastcomm {

// An exchange has failed on some rank.
struct News {
  bool is_mismatch = false;
  std::string text;  // where, and what
};

// What a rank that is alive is doing.
struct Answer {
  std::optional<int> waits_for;  // a rank; none: it is not in an exchange, or does not wait
};

// A note is one letter, which says what it is, and a text.
class Note {
 public:
  enum Kind : char { kFailure = 'F', kMismatch = 'M', kQuestion = '?', kAnswer = 'A' };

  explicit Note(const News& news) : text_(news.text) {
    text_.insert(text_.begin(), news.is_mismatch ? kMismatch : kFailure);
  }
  explicit Note(const Answer& answer) : text_(1, kAnswer) {
    if (answer.waits_for) text_ += std::to_string(*answer.waits_for);
  }
  static Note question() { return Note(std::string(1, kQuestion)); }
  // Of an empty text: the news of a failure that nothing is known about.
  static Note received(std::string text) {
    if (text.empty()) text = kFailure;
    return Note(std::move(text));
  }

  const std::string& text() const { return text_; }
  bool is_question() const { return text_[0] == kQuestion; }
  bool is_answer() const { return text_[0] == kAnswer; }
  News news() const { return {text_[0] == kMismatch, text_.substr(1)}; }
  Answer answer() const {
    int rank = 0;
    const char* end = text_.data() + text_.size();
    if (std::from_chars(text_.data() + 1, end, rank).ec != std::errc()) return {};
    return {rank};
  }

 private:
  explicit Note(std::string text) : text_(std::move(text)) {}

  std::string text_;
};

}  // namespace fastcomm
