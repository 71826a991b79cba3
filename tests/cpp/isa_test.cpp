#include "core/isa.h"

#include <string>

#include "core/check.h"
#include "doctest.h"

namespace fastcomm {
namespace {

struct RestoreIsa {
  ~RestoreIsa() { force_isa(""); }
};

TEST_CASE("the baseline is always supported; the fastest is the default") {
  REQUIRE_FALSE(supported_isas().empty());
  CHECK(supported_isas().front() == Isa::kBaseline);
  CHECK(active_isa() == supported_isas().back());
}

TEST_CASE("every supported instruction set can be forced, and the choice undone") {
  const RestoreIsa restore;
  for (const Isa isa : supported_isas()) {
    force_isa(isa_name(isa));
    CHECK(active_isa() == isa);
  }
  force_isa("baseline");
  force_isa("");
  CHECK(active_isa() == supported_isas().back());
}

TEST_CASE("an unknown instruction set is an error that lists the supported ones") {
  const RestoreIsa restore;
  try {
    force_isa("mmx");
    FAIL("no error");
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find("'mmx'") != std::string::npos);
    CHECK(message.find("baseline") != std::string::npos);
  }
  CHECK(active_isa() == supported_isas().back());
}

}  // namespace
}  // namespace fastcomm
