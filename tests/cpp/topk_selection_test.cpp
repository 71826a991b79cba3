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
};

struct Selected {
  std::vector<uint32_t> indices;
  std::vector<float> values;
  std::vector<float> residual;
};

Selected select(const TopKExecution& execution, const Inputs& inputs, int64_t k,
                TopKSelection& selection) {
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
  selection.run(execution, inputs.dtype, pieces, k);
  result.indices.assign(selection.indices().begin(), selection.indices().end());
  result.values.assign(selection.values().begin(), selection.values().end());
  return result;
}

// The definition: the largest magnitudes as integers, ties to the lowest index, never a zero. What
// is not sent stays in the residual: the rounding to bf16, and what is not selected.
Selected sorted_oracle(const Inputs& inputs, int64_t k) {
  Selected result{{}, {}, inputs.residual};
  std::vector<float> values = inputs.gradient;
  for (size_t i = 0; i < inputs.residual.size(); ++i) {
    values[i] += inputs.residual[i];
    if (std::isfinite(values[i])) result.residual[i] = values[i];
  }
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::erase_if(order, [&](uint32_t i) { return values[i] == 0; });
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return magnitude_bits(values[a]) > magnitude_bits(values[b]);
  });
  order.resize(std::min(order.size(), static_cast<size_t>(k)));
  std::sort(order.begin(), order.end());
  for (const uint32_t index : order) {
    result.values.push_back(values[index]);
    if (result.residual.empty() || !std::isfinite(values[index])) continue;
    result.residual[index] = values[index] - bf16_to_float(float_to_bf16(values[index]));
  }
  result.indices = std::move(order);
  return result;
}

void check_same(const Selected& actual, const Selected& expected) {
  REQUIRE(actual.indices == expected.indices);
  REQUIRE(testing::same_bits(testing::with_one_nan(actual.values),
                             testing::with_one_nan(expected.values)));
  REQUIRE(testing::same_bits(actual.residual, expected.residual));
}

void check_selection(const Inputs& inputs, int64_t k) {
  CAPTURE(inputs.gradient.size());
  CAPTURE(k);
  CAPTURE(static_cast<int>(inputs.dtype));
  static ThreadPool two(2);
  static ThreadPool three(3);
  const Selected expected = sorted_oracle(inputs, k);
  for (const Isa isa : supported_isas()) {
    for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &two, &three}) {
      CAPTURE(isa_name(isa));
      CAPTURE(threads == nullptr ? 1 : threads->num_threads());
      TopKSelection selection;
      check_same(select({isa, threads}, inputs, k, selection), expected);
      // Threads share what is more than 65536 elements.
      if (inputs.gradient.size() <= 65536) break;
    }
  }
}

TEST_CASE("selection equals a full sort for all kinds of values") {
  uint64_t seed = 0;
  for (const Values kind : testing::kAllValues) {
    for (const DType dtype : testing::kAllDTypes) {
      for (const int64_t n : {1, 2, 17, 513, 1000, 40'000, 150'001}) {
        CAPTURE(static_cast<int>(kind));
        Inputs inputs{dtype, testing::random_values(kind, n, ++seed), {}, {}};
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
  Inputs inputs{DType::kFloat32, {0, -1, 2, -0.0f, 3}, {}, {}};
  check_selection(inputs, 5);
  check_selection(inputs, 9);
}

// Where the selection samples for k up to 32000; known here in order to mislead it. Should the
// sampling change, the tests below stay true but become ordinary ones.
std::vector<bool> sampled_positions(int64_t num_elements) {
  std::vector<bool> sampled(static_cast<size_t>(num_elements));
  uint64_t random = 0x9e3779b97f4a7c15u;
  for (int64_t first = 0; first + 256 <= num_elements; first += 256) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t run = first + 16 * static_cast<int64_t>((random >> 33) % 16);
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

TEST_CASE("elements that are not finite come first") {
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, 150'000, 8);
  inputs.residual = testing::random_values(Values::kNormal, 150'000, 9);
  inputs.gradient[123] = testing::kInfinity;
  inputs.gradient[140'000] = testing::kNaN;
  for (const int64_t k : {1, 2, 5, 1500}) check_selection(inputs, k);
  const Selected selected = sorted_oracle(inputs, 2);
  CHECK(selected.indices == std::vector<uint32_t>{123, 140'000});
  CHECK(testing::all_finite(selected.residual));
}

TEST_CASE("a residual that is not finite is left as it is, and its element selected first") {
  // How the codec marks elements where a received value is not finite.
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, 150'000, 8);
  inputs.residual = testing::random_values(Values::kNormal, 150'000, 9);
  inputs.residual[7] = inputs.residual[100'000] = testing::kNaN;
  for (const int64_t k : {1, 2, 5, 1500}) check_selection(inputs, k);
}

TEST_CASE("large finite values are not taken for overflow where another value is not finite") {
  Inputs inputs;
  inputs.gradient = testing::random_values(Values::kNormal, 1000, 10);
  inputs.residual.assign(1000, 0.0f);
  inputs.gradient[10] = 3e38f;  // twice this overflows
  inputs.gradient[20] = testing::kNaN;
  check_selection(inputs, 3);
}

TEST_CASE("buffers are reused from one selection to the next, of another size and other values") {
  TopKSelection selection;
  ThreadPool threads(2);
  uint64_t seed = 0;
  for (const Values kind : {Values::kNormal, Values::kAllEqual, Values::kNonFinite}) {
    for (const int64_t n : {70'000, 100, 200'000, 150'000, 5, 40'000}) {
      CAPTURE(static_cast<int>(kind));
      CAPTURE(n);
      Inputs inputs;
      inputs.gradient = testing::random_values(kind, n, ++seed);
      inputs.residual = testing::random_values(Values::kMostlyZero, n, ++seed);
      for (const int64_t k : {n / 5 + 1, std::max<int64_t>(1, n / 1000)}) {
        const Selected expected = sorted_oracle(inputs, k);
        for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &threads}) {
          check_same(select({active_isa(), pool}, inputs, k, selection), expected);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
