// Top-k selection against a full sort, on inputs that mislead its sample too.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "codecs/sparse/selection.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm {
namespace {

using testing::Values;

struct Inputs {
  DType dtype = DType::kFloat32;
  std::vector<float> gradient;  // representable in dtype
  std::vector<float> residual;  // empty: none
  std::vector<int64_t> cuts;    // where one piece ends and the next begins
  std::vector<uint32_t> forced;
};

struct Selected {
  std::vector<uint32_t> indices;
  std::vector<float> values;
  std::vector<float> residual;
};

Selected select(Isa isa, const Inputs& inputs, int64_t k, TopKSelection& selection) {
  Selected result{{}, {}, inputs.residual};
  const auto gradient = testing::to_dtype(inputs.dtype, inputs.gradient);
  std::vector<TopKPiece> pieces;
  int64_t begin = 0;
  auto add_piece = [&](int64_t end) {
    const auto first = static_cast<size_t>(begin);
    pieces.push_back({gradient.data() + first * dtype_bytes(inputs.dtype),
                      result.residual.empty() ? nullptr : result.residual.data() + first,
                      end - begin});
    begin = end;
  };
  for (const int64_t cut : inputs.cuts) add_piece(cut);
  add_piece(static_cast<int64_t>(inputs.gradient.size()));
  selection.run(isa, inputs.dtype, pieces, k, inputs.forced);
  result.indices.assign(selection.indices().begin(), selection.indices().end());
  result.values.assign(selection.values().begin(), selection.values().end());
  return result;
}

// The definition: the largest magnitudes as integers, ties to the lowest index, never a zero.
Selected sorted_oracle(const Inputs& inputs, int64_t k) {
  Selected result{{}, {}, inputs.residual};
  std::vector<float> values = inputs.gradient;
  for (size_t i = 0; i < inputs.residual.size(); ++i) {
    values[i] += inputs.residual[i];
    if (std::isfinite(values[i])) result.residual[i] = values[i];
  }
  for (const uint32_t index : inputs.forced) values[index] = testing::kNaN;
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::erase_if(order, [&](uint32_t i) { return values[i] == 0; });
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return magnitude_bits(values[a]) > magnitude_bits(values[b]);
  });
  order.resize(std::min(order.size(), static_cast<size_t>(k)));
  std::sort(order.begin(), order.end());
  for (const uint32_t index : order) result.values.push_back(values[index]);
  result.indices = std::move(order);
  return result;
}

// A NaN's bits are not part of the contract.
std::vector<float> with_one_nan(std::vector<float> values) {
  for (float& value : values) value = std::isnan(value) ? testing::kNaN : value;
  return values;
}

void check_selection(const Inputs& inputs, int64_t k) {
  CAPTURE(inputs.gradient.size());
  CAPTURE(k);
  CAPTURE(static_cast<int>(inputs.dtype));
  const Selected expected = sorted_oracle(inputs, k);
  for (const Isa isa : supported_isas()) {
    CAPTURE(isa_name(isa));
    TopKSelection selection;
    const Selected actual = select(isa, inputs, k, selection);
    REQUIRE(actual.indices == expected.indices);
    REQUIRE(testing::same_bits(with_one_nan(actual.values), with_one_nan(expected.values)));
    REQUIRE(testing::same_bits(actual.residual, expected.residual));
  }
}

TEST_CASE("selection equals a full sort for all kinds of values") {
  uint64_t seed = 0;
  for (const Values kind : testing::kAllValues) {
    for (const DType dtype : testing::kAllDTypes) {
      for (const int64_t n : {1, 2, 17, 513, 1000, 40'000, 70'001}) {
        CAPTURE(static_cast<int>(kind));
        Inputs inputs{dtype, testing::random_values(kind, n, ++seed), {}, {}, {}};
        inputs.gradient = testing::rounded_to(dtype, inputs.gradient);
        if (seed % 2 == 0) inputs.residual = testing::random_values(Values::kNormal, n, seed + 1);
        if (seed % 3 == 0) inputs.cuts = {0, n / 3, n / 3, n - n / 5};
        for (const int64_t k : {int64_t{1}, std::max<int64_t>(1, n / 100), n / 3 + 1, n}) {
          check_selection(inputs, k);
        }
      }
    }
  }
}

TEST_CASE("k above the number of elements selects all that are not zero") {
  Inputs inputs{DType::kFloat32, {0, -1, 2, -0.0f, 3}, {}, {}, {}};
  check_selection(inputs, 5);
  check_selection(inputs, 9);
}

// Where the selection samples; known here in order to mislead it. Should the sampling change, the
// tests below stay true but become ordinary ones.
std::vector<bool> sampled_positions(int64_t num_elements) {
  std::vector<bool> sampled(static_cast<size_t>(num_elements));
  uint64_t random = 0x9e3779b97f4a7c15u;
  for (int64_t first = 0; first + 1024 <= num_elements; first += 1024) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t run = first + 16 * static_cast<int64_t>((random >> 33) % 64);
    std::fill_n(sampled.begin() + run, 16, true);
  }
  return sampled;
}

TEST_CASE("a sample that misjudges the values leaves the selection exact") {
  constexpr int64_t kNumElements = 1 << 17;
  const std::vector<bool> sampled = sampled_positions(kNumElements);
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, kNumElements, 5);
  auto enlarge_where = [&](auto&& condition) {
    for (size_t i = 0; i < inputs.gradient.size(); ++i) {
      if (condition(i)) inputs.gradient[i] *= 1e6f;
    }
  };
  SUBCASE("it sees large values only: too few candidates") {
    enlarge_where([&](size_t i) { return sampled[i]; });
  }
  SUBCASE("it sees small values only: too many candidates") {
    enlarge_where([&](size_t i) { return !sampled[i]; });
  }
  SUBCASE("a cluster that it misses") {
    enlarge_where([&](size_t i) { return i >= 50'000 && i < 53'000 && !sampled[i]; });
  }
  SUBCASE("a cluster that it hits") {
    enlarge_where([](size_t i) { return i >= 50'000 && i < 50'100; });
  }
  SUBCASE("it sees zeros only") {
    for (size_t i = 0; i < inputs.gradient.size(); ++i) {
      if (sampled[i]) inputs.gradient[i] = 0;
    }
  }
  SUBCASE("everything ties") {
    for (float& value : inputs.gradient) value = value < 0 ? -2.0f : 2.0f;
  }
  SUBCASE("nearly everything is zero, in fewer places than k") {
    for (size_t i = 0; i < inputs.gradient.size(); ++i) {
      if (i % 1000 != 0) inputs.gradient[i] = 0;
    }
  }
  SUBCASE("one element that is not finite") { inputs.gradient[77'777] = -testing::kInfinity; }
  for (const bool has_residual : {false, true}) {
    if (has_residual) {
      inputs.residual = testing::random_values(Values::kMostlyZero, kNumElements, 6);
    }
    for (const int64_t k : {13, 1311, 13107}) check_selection(inputs, k);
  }
}

TEST_CASE("non-finite elements come first, forced ones among them") {
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, 50'000, 8);
  inputs.residual = testing::random_values(Values::kNormal, 50'000, 9);
  inputs.gradient[123] = testing::kInfinity;
  inputs.gradient[40'000] = testing::kNaN;
  inputs.forced = {7, 30'000};
  TopKSelection selection;
  for (const Isa isa : supported_isas()) {
    const Selected selected = select(isa, inputs, 4, selection);
    CHECK(selected.indices == std::vector<uint32_t>{7, 123, 30'000, 40'000});
    for (const float value : selected.values) CHECK_FALSE(std::isfinite(value));
    for (const float value : selected.residual) CHECK(std::isfinite(value));
  }
}

TEST_CASE("large finite values are not taken for overflow where another value is not finite") {
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, 1000, 10);
  inputs.residual.assign(1000, 0.0f);
  inputs.gradient[10] = 3e38f;  // twice this overflows
  inputs.gradient[20] = testing::kNaN;
  check_selection(inputs, 3);
}

TEST_CASE("buffers are reused from one selection to the next of another size") {
  TopKSelection selection;
  for (const int64_t n : {70'000, 100, 200'000, 5, 40'000}) {
    Inputs inputs;
    inputs.gradient = testing::random_values(Values::kNormal, n, static_cast<uint64_t>(n));
    const int64_t k = std::max<int64_t>(1, n / 50);
    const Selected actual = select(active_isa(), inputs, k, selection);
    CHECK(actual.indices == sorted_oracle(inputs, k).indices);
  }
}

}  // namespace
}  // namespace fastcomm
