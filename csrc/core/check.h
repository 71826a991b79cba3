#pragma once
// Checks that throw an Error with the place and the offending value.

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastcomm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A received payload is damaged, foreign, or belongs to another message than the one expected.
class PayloadError : public Error {
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
