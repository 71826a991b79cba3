#pragma once
// The mode in which codecs compute, whatever the thread was told before.

#include <cfenv>

namespace fastcomm {

// torch.set_flush_denormal() changes the mode of the thread that calls it and of those that it
// creates, and would lose small residuals.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&given_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&given_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t given_;
};

}  // namespace fastcomm
