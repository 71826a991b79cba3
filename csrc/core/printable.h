#pragma once
// Texts that came from another rank.

#include <algorithm>
#include <string>

namespace fastcomm {

// A text that is fit for a message, whatever came: what is not ASCII becomes '?'.
inline std::string printable(std::string text) {
  std::ranges::replace_if(text, [](char c) { return c != '\n' && (c < ' ' || c > '~'); }, '?');
  return text;
}

}  // namespace fastcomm
