#pragma once
// Checks that throw an Error with the place and the offending value.

#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace fastcomm {

class Error : public std::exception {
 public:
  explicit Error(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  // Says, on the way up, where it happened.
  void add_place(const std::string& place) { message_.insert(0, place + ": "); }

 private:
  std::string message_;
};

// A received payload is damaged, foreign, or belongs to another message than the one expected.
class PayloadError : public Error {
 public:
  using Error::Error;
};

// Another rank has ended, fell silent, or failed first.
class PeerError : public Error {
 public:
  using Error::Error;
};

// The ranks were called with different arguments, or are out of step.
class MismatchError : public Error {
 public:
  using Error::Error;
};

}  // namespace fastcomm

#define FASTCOMM_THROW(ErrorType, message)                                    \
  do {                                                                        \
    std::ostringstream fastcomm_stream;                                       \
    fastcomm_stream << message << " [" << __FILE__ << ":" << __LINE__ << "]"; \
    throw ErrorType(fastcomm_stream.str());                                   \
  } while (false)

#define FASTCOMM_FAIL(message) FASTCOMM_THROW(::fastcomm::Error, message)

#define FASTCOMM_CHECK(condition, message)    \
  do {                                        \
    if (!(condition)) FASTCOMM_FAIL(message); \
  } while (false)
