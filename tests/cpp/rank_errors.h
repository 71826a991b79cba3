#pragma once
// What the errors of ranks say.

#include <exception>
#include <string>
#include <vector>

#include "core/check.h"

namespace fastcomm::testing {

// What a rank's error says; its type first.
inline std::string describe(const std::exception_ptr& error) {
  if (error == nullptr) return "none";
  try {
    std::rethrow_exception(error);
  } catch (const PayloadError& caught) {
    return std::string("PayloadError: ") + caught.what();
  } catch (const std::exception& caught) {
    return std::string("Error: ") + caught.what();
  }
}

inline std::vector<std::string> describe(const std::vector<std::exception_ptr>& errors) {
  std::vector<std::string> described;
  for (const auto& error : errors) described.push_back(describe(error));
  return described;
}

inline bool is_payload_error(const std::string& error, const std::string& why) {
  return error.starts_with("PayloadError") && error.find(why) != std::string::npos;
}

}  // namespace fastcomm::testing
