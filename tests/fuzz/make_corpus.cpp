// Writes the seeds of the fuzz target to a folder: make_corpus FOLDER. For each codec payloads that
// are valid, and payloads that are damaged as networks and foreign programs damage them.
//
// corpus/ holds what this program wrote, and in addition what fuzzing has found (regression-*).

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fuzz_input.h"
#include "values.h"

namespace fastcomm::fuzz {
namespace {

using Bytes = std::vector<std::byte>;

constexpr uint16_t kTopKElements = 3000;

class Corpus {
 public:
  explicit Corpus(const std::filesystem::path& folder) : folder_(folder) {
    std::filesystem::create_directories(folder_);
  }
  void write(const std::string& name, const FuzzInput& input, const Bytes& payloads) const {
    std::ofstream file(folder_ / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&input), sizeof input);
    file.write(reinterpret_cast<const char*>(payloads.data()),
               static_cast<std::streamsize>(payloads.size()));
    file.close();
    if (!file) throw std::runtime_error("cannot write " + (folder_ / name).string());
  }

 private:
  std::filesystem::path folder_;
};

FuzzInput input_for(const FuzzedCodec& codec) {
  FuzzInput input{};
  input.codec_id = codec.wire_id;
  // Blocks and a tail; few elements where they are large.
  const bool is_wide = codec.name == "fp32" || codec.name == "fp16" || codec.name == "bf16";
  input.num_elements = codec.wire_id == kTopKWireId ? kTopKElements : is_wide ? 130 : 600;
  input.density = 1;
  input.isa = 2;
  input.seed = 1;
  return input;
}

// A payload as a sender of `input` makes it.
Bytes valid_payload(const FuzzInput& input, uint64_t seed = 1) {
  const FuzzBucket bucket(input);
  auto values = testing::random_values(testing::Values::kNormal, bucket.num_elements, seed);
  CodecWorkspace workspace;
  BucketCodec codec(bucket.codecs(), {values.data(), DType::kFloat32, nullptr, bucket.num_elements},
                    bucket.runs, 1, 0, workspace);
  const ElementRange range{0, bucket.num_elements};
  Bytes payload(static_cast<size_t>(codec.payload_bytes(range)));
  codec.encode(range, {}, {}, payload, kLabel);
  return payload;
}

Bytes with_byte(Bytes payload, size_t offset, int value) {
  payload.at(offset) = static_cast<std::byte>(value);
  return payload;
}

Bytes with_u16(Bytes payload, size_t offset, uint16_t value) {
  std::memcpy(&payload.at(offset), &value, sizeof value);
  return payload;
}

Bytes with_u32(Bytes payload, size_t offset, uint32_t value) {
  std::memcpy(&payload.at(offset), &value, sizeof value);
  return payload;
}

FuzzInput forged(FuzzInput input, Forgery forgery) {
  input.forgery = static_cast<uint8_t>(forgery);
  return input;
}

void write_codec(const Corpus& corpus, const FuzzedCodec& codec) {
  const FuzzInput input = input_for(codec);
  const Bytes payload = valid_payload(input);
  corpus.write(codec.name + "-valid", input, payload);

  FuzzInput hop = input;
  hop.options = kHop | kResidual;
  hop.num_payloads = 1;  // two
  Bytes two = payload;
  const Bytes second = valid_payload(input, 2);
  two.insert(two.end(), second.begin(), second.end());
  corpus.write(codec.name + "-valid-hop", hop, two);

  Bytes truncated = payload;
  truncated.resize(payload.size() - 7);
  corpus.write(codec.name + "-truncated", input, truncated);
  const size_t middle = payload.size() / 2;
  corpus.write(codec.name + "-flipped-bit", input,
               with_byte(payload, middle, static_cast<int>(payload[middle]) ^ 4));
  corpus.write(codec.name + "-other-codec-id", forged(input, Forgery::kChecksum),
               with_byte(payload, 3, codec.wire_id ^ 63));

  FuzzInput noise = forged(hop, Forgery::kHeader);
  noise.dtype = 2;
  noise.misalignment = 3;
  noise.options |= kRuns;
  testing::Random random(codec.wire_id);
  Bytes body(payload.size());
  for (std::byte& byte : body) byte = static_cast<std::byte>(random.next() >> 40);
  corpus.write(codec.name + "-noise", noise, body);
}

// Fields that are the same for all codecs.
void write_headers(const Corpus& corpus, const FuzzedCodec& codec) {
  const FuzzInput input = input_for(codec);
  const FuzzInput sealed = forged(input, Forgery::kChecksum);
  const Bytes payload = valid_payload(input);
  corpus.write("header-magic", input, with_byte(payload, 0, 'G'));
  corpus.write("header-version", input, with_byte(payload, 2, 99));
  corpus.write("header-size", input, with_u32(payload, 24, 0xffffffff));
  corpus.write("header-num-elements", sealed, with_u32(payload, 4, 0x80000000));
  corpus.write("header-step", sealed, with_u32(payload, 8, 8));
  corpus.write("header-parameter", sealed, with_u32(payload, 20, 0));
  corpus.write("header-only", sealed, Bytes(payload.begin(), payload.begin() + kHeaderBytes));
  corpus.write("header-half", input, Bytes(payload.begin(), payload.begin() + kHeaderBytes / 2));
  corpus.write("header-none", input, {});
}

void write_topk(const Corpus& corpus) {
  FuzzInput input = forged(input_for({kTopKWireId, "topk"}), Forgery::kHeader);
  FuzzInput hop = input;
  hop.options = kHop | kResidual;
  const Bytes payload = valid_payload(input);
  const size_t counts = kHeaderBytes;
  const size_t offsets = counts + 16;
  const size_t k = static_cast<size_t>(topk_count(kDensities[input.density], kTopKElements));
  const auto values = offsets + static_cast<size_t>(align_up(static_cast<int64_t>(2 * k), 16));
  const auto both = [&](const std::string& name, const Bytes& bytes) {
    corpus.write("topk-" + name, input, bytes);
    corpus.write("topk-" + name + "-hop", hop, bytes);
  };
  both("count-too-large", with_u32(payload, counts, static_cast<uint32_t>(k) + 1));
  both("count-wraps", with_u32(payload, counts, 0xffffffff));
  both("offset-out-of-range", with_u16(payload, offsets + 2 * k - 2, kTopKElements));
  both("offsets-descend", with_u16(payload, offsets, kTopKElements - 1));
  corpus.write("topk-offset-twice-hop", hop, with_u16(payload, offsets + 2, 0));
  corpus.write("topk-nan-hop", hop, with_u16(payload, values, 0x7fff));

  FuzzInput large = input;  // three sub-blocks, on several threads
  large.num_sub_blocks = 2;
  large.density = 0;
  large.options = kThreads;
  Bytes body(200, std::byte{1});  // repeated
  corpus.write("topk-sub-blocks", large, body);
  large.options = kThreads | kHop;
  for (std::byte& byte : body) byte = std::byte{0};
  corpus.write("topk-sub-blocks-hop", large, with_u32(body, counts + 4, 20));
}

void write_corpus(const Corpus& corpus) {
  for (const FuzzedCodec& codec : fuzzed_codecs()) {
    write_codec(corpus, codec);
    if (codec.name == "int8") write_headers(corpus, codec);
  }
  write_topk(corpus);
}

}  // namespace
}  // namespace fastcomm::fuzz

int main(int num_arguments, char** arguments) {
  if (num_arguments != 2) {
    std::fprintf(stderr, "usage: make_corpus FOLDER\n");
    return 2;
  }
  fastcomm::fuzz::write_corpus(fastcomm::fuzz::Corpus(arguments[1]));
}
