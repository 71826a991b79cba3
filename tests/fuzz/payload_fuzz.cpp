// Decoding damaged payloads: whatever arrives, a rank either uses it or throws PayloadError.
//
// A payload with the right header and checksum may still be wrong inside (a faulty peer, one with
// another version of the code): nothing may then be read or written out of bounds, no other
// exception be thrown, no residual be spoilt, and all instruction sets must do the same.
// `make fuzz` runs this under libFuzzer; the tests run it over corpus/ (replay.cpp).

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>

#include "core/crc32c.h"
#include "fuzz_input.h"
#include "values.h"

namespace fastcomm::fuzz {
namespace {

constexpr size_t kPayloadSizeOffset = 24;
constexpr size_t kChecksumOffset = 28;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "payload_fuzz: %s\n", what);
  std::abort();
}

// Memory of exactly `bytes`, so that the sanitizer sees every step beyond its end. It begins
// `misalignment` bytes after a multiple of the alignment that payloads have.
class ExactMemory {
 public:
  explicit ExactMemory(size_t bytes, size_t misalignment = 0)
      : memory_(static_cast<std::byte*>(::operator new(bytes + misalignment, kAlignment))),
        bytes_(memory_.get() + misalignment, bytes) {}
  ExactMemory(std::span<const std::byte> contents, size_t misalignment = 0)
      : ExactMemory(contents.size(), misalignment) {
    if (!contents.empty()) std::memcpy(bytes_.data(), contents.data(), contents.size());
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  static constexpr std::align_val_t kAlignment{static_cast<size_t>(kSectionAlignment)};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::span<std::byte> bytes_;
};

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

void store(std::span<std::byte> payload, size_t offset, uint32_t value) {
  std::memcpy(payload.data() + offset, &value, sizeof value);
}

uint32_t checksum_of(std::span<const std::byte> payload) {
  const uint32_t crc = crc32c(0, payload.first(kChecksumOffset));
  return crc32c(crc, payload.subspan(static_cast<size_t>(kHeaderBytes)));
}

// The codec id and the parameter of the header that this bucket's payloads have, from one of them.
PayloadFormat format_of(const FuzzBucket& bucket, size_t payload_bytes) {
  std::vector<float> zeros(static_cast<size_t>(bucket.num_elements));
  CodecWorkspace workspace;
  BucketCodec codec(bucket.codecs(), {zeros.data(), DType::kFloat32, nullptr, bucket.num_elements},
                    bucket.runs, 1, 0, workspace);
  std::vector<std::byte> payload(payload_bytes);
  codec.encode({0, bucket.num_elements}, {}, {}, payload, kLabel);
  PayloadFormat format;
  format.codec_id = static_cast<uint8_t>(payload[3]);
  std::memcpy(&format.num_elements, &payload[4], sizeof format.num_elements);
  std::memcpy(&format.parameter, &payload[20], sizeof format.parameter);
  return format;
}

std::vector<ExactMemory> make_payloads(const FuzzInput& input, const FuzzBucket& bucket,
                                       size_t payload_bytes, std::span<const std::byte> bytes) {
  const auto forgery = static_cast<Forgery>(input.forgery % kNumForgeries);
  const size_t num_payloads = input.num_payloads % 4 + 1;
  std::optional<PayloadFormat> format;
  if (forgery == Forgery::kHeader) format = format_of(bucket, payload_bytes);
  std::vector<ExactMemory> payloads;
  for (size_t i = 0; i < num_payloads; ++i) {
    if (forgery == Forgery::kHeader) {
      // Repeated, so that short inputs reach the end of long payloads.
      std::span<std::byte> payload = payloads.emplace_back(payload_bytes).bytes();
      for (size_t j = 0; j < payload_bytes; ++j) {
        payload[j] = bytes.empty() ? std::byte{0} : bytes[(i * payload_bytes + j) % bytes.size()];
      }
      seal_payload(payload, kLabel, *format);
      continue;
    }
    const size_t begin = i * bytes.size() / num_payloads;
    const size_t end = (i + 1) * bytes.size() / num_payloads;
    std::span<std::byte> payload = payloads.emplace_back(bytes.subspan(begin, end - begin)).bytes();
    if (forgery == Forgery::kChecksum && payload.size() >= static_cast<size_t>(kHeaderBytes)) {
      store(payload, kPayloadSizeOffset, static_cast<uint32_t>(payload.size()));
      store(payload, kChecksumOffset, checksum_of(payload));
    }
  }
  return payloads;
}

struct Outcome {
  bool is_refused;
  std::vector<float> result;       // of decoding
  std::vector<std::byte> payload;  // of a hop
  std::vector<float> residual;
};

std::shared_ptr<ThreadPool> threads() {
  static const auto pool = std::make_shared<ThreadPool>(3);
  return pool;
}

// Decodes the payloads, or encodes with them, on the active instruction set.
Outcome run(const FuzzInput& input, const FuzzBucket& bucket, const std::vector<float>& gradient,
            const std::vector<float>& residual, std::span<const ExactMemory> payloads) {
  const size_t misalignment = input.misalignment % 16;
  const ExactMemory gradient_memory(testing::to_dtype(bucket.dtype, gradient),
                                    misalignment * dtype_bytes(bucket.dtype));
  const ExactMemory residual_memory(bytes_of(residual), misalignment * sizeof(float));
  auto* const residual_data = reinterpret_cast<float*>(residual_memory.bytes().data());
  CodecWorkspace workspace;
  if ((input.options & kThreads) != 0) workspace.threads = threads();
  BucketCodec codec(bucket.codecs(),
                    {gradient_memory.bytes().data(), bucket.dtype,
                     bucket.has_residual ? residual_data : nullptr, bucket.num_elements},
                    bucket.runs, 0.5f, 1, workspace);

  const ElementRange range{0, bucket.num_elements};
  std::vector<std::span<const std::byte>> received;
  for (const ExactMemory& payload : payloads) received.push_back(payload.bytes());
  const std::vector<MessageLabel> labels(received.size(), kLabel);
  const bool is_hop = (input.options & kHop) != 0;
  Outcome outcome{false, {}, {}, {}};
  try {
    if (is_hop) {
      const ExactMemory sent(static_cast<size_t>(codec.payload_bytes(range)));
      codec.encode(range, received, labels, sent.bytes(), kLabel);
      outcome.payload.assign(sent.bytes().begin(), sent.bytes().end());
    } else {
      codec.decode(range, received, labels);
      outcome.result = testing::to_floats(bucket.dtype, gradient_memory.bytes());
    }
  } catch (const PayloadError&) {
    outcome.is_refused = true;
  }
  if (bucket.has_residual) {
    outcome.residual.assign(residual_data, residual_data + bucket.num_elements);
    require(testing::all_finite(outcome.residual), "a residual became non-finite");
    require(!outcome.is_refused || testing::same_bits(outcome.residual, residual),
            "a payload that was refused changed a residual");
  }
  if (is_hop && !outcome.is_refused) {
    // What was sent on must be a payload that the next rank does not refuse.
    const ExactMemory next(outcome.payload);
    const std::span<const std::byte> payload = next.bytes();
    codec.decode(range, {&payload, 1}, {&kLabel, 1});
  }
  return outcome;
}

bool is_same(const Outcome& a, const Outcome& b) {
  if (a.is_refused || b.is_refused) return a.is_refused == b.is_refused;
  return a.payload == b.payload && testing::same_bits(a.residual, b.residual) &&
         testing::same_bits(testing::with_one_nan(a.result), testing::with_one_nan(b.result));
}

void run_input(const FuzzInput& input, std::span<const std::byte> bytes) {
  const FuzzBucket bucket(input);
  size_t payload_bytes;
  {
    CodecWorkspace workspace;
    const BucketCodec codec(bucket.codecs(), {nullptr, bucket.dtype, nullptr, bucket.num_elements},
                            bucket.runs, 1, 0, workspace);
    payload_bytes = static_cast<size_t>(codec.payload_bytes({0, bucket.num_elements}));
  }
  const auto payloads = make_payloads(input, bucket, payload_bytes, bytes);
  const auto kind = testing::kAllValues[input.gradients % std::size(testing::kAllValues)];
  const auto gradient = testing::rounded_to(
      bucket.dtype, testing::random_values(kind, bucket.num_elements, input.seed));
  const auto residual = testing::random_values(
      testing::Values::kNormal, bucket.has_residual ? bucket.num_elements : 0, input.seed + 1);

  const Isa isa = supported_isas()[input.isa % supported_isas().size()];
  force_isa(isa_name(isa));
  const Outcome outcome = run(input, bucket, gradient, residual, payloads);
  if (isa == Isa::kBaseline) return;
  force_isa(isa_name(Isa::kBaseline));
  require(is_same(outcome, run(input, bucket, gradient, residual, payloads)),
          "the instruction sets differ");
}

}  // namespace
}  // namespace fastcomm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fastcomm::fuzz::FuzzInput input;
  if (size < sizeof input) return 0;
  std::memcpy(&input, data, sizeof input);
  fastcomm::fuzz::run_input(input, std::as_bytes(std::span(data, size)).subspan(sizeof input));
  return 0;
}
