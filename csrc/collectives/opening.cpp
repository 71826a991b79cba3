#include "collectives/opening.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/check.h"
#include "core/printable.h"

namespace fastcomm {
namespace {

constexpr int64_t kMostExtraBytes = 100 * 1024;
// Of two ranks, which send the same either way: slices of larger ones overlap instead.
constexpr int64_t kLargestPayload = 256 * 1024;

using Record = std::array<char, kRecordBytes>;

Record make_record(const std::string& text) {
  Record record{};
  std::copy_n(text.begin(), std::min(text.size(), record.size()), record.begin());
  return record;
}

std::string text_of(std::span<const std::byte> record) {
  const auto* text = reinterpret_cast<const char*>(record.data());
  return printable({text, std::find(text, text + record.size(), '\0')});
}

}  // namespace

int64_t largest_opening_payload(int world_size) {
  const int64_t n = world_size;
  if (n <= 2) return kLargestPayload;
  return kMostExtraBytes * n / ((n - 1) * (n - 2));
}

Openings::Openings(Transport& transport)
    : transport_(transport),
      peers_(static_cast<size_t>(transport.world_size())),
      sent_(std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(opening_bytes()))) {}

int64_t Openings::opening_bytes() const {
  if (!transport_.takes_shorter_messages()) return kRecordBytes;
  return kRecordBytes + largest_opening_payload(transport_.world_size());
}

bool Openings::carries_payload(const Exchange& exchange, const Schedule& schedule) const {
  return schedule.run == gather_all_reduce && transport_.takes_shorter_messages() &&
         exchange.payload_bytes({0, exchange.shape().num_elements}) <=
             largest_opening_payload(transport_.world_size());
}

std::span<std::byte> Openings::received(int rank) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  const auto bytes = static_cast<size_t>(opening_bytes());
  // Payloads, and so openings, are read in words.
  const auto stride = static_cast<size_t>(align_up(opening_bytes(), kSectionAlignment));
  if (peer.memory == nullptr) peer.memory = std::make_unique_for_overwrite<std::byte[]>(2 * stride);
  return {peer.memory.get() + static_cast<size_t>(side_) * stride, bytes};
}

void Openings::post_receive(int rank) {
  auto& receive = peers_[static_cast<size_t>(rank)].receive;
  if (receive == nullptr) receive = transport_.receive(rank, kOpeningTag, received(rank));
}

void Openings::post_ahead(const std::vector<int>& ranks) {
  // Elsewhere, a receive that stays pending at the end may be one too many.
  if (!transport_.takes_shorter_messages()) return;
  for (const int rank : ranks) {
    try {
      post_receive(rank);
    } catch (const std::exception&) {
      // The rank is gone, after an exchange that succeeded; the next one, if any, will say so.
    }
  }
}

void Openings::exchange_openings(Exchange& exchange, std::span<const std::byte> mine,
                                 const std::vector<int>& ranks) {
  std::vector<std::unique_ptr<PendingMessage>> sends;
  for (const int rank : ranks) sends.push_back(exchange.send(rank, kOpeningTag, mine));
  const std::span<const std::byte> record = mine.first(kRecordBytes);
  for (size_t i = 0; i < ranks.size(); ++i) {
    exchange.wait(peers_[static_cast<size_t>(ranks[i])].receive);
    const std::span<const std::byte> theirs = received(ranks[i]).first(kRecordBytes);
    if (std::ranges::equal(theirs, record)) continue;
    exchange.wait(sends[i]);  // so that the other rank learns of it, too
    FASTCOMM_THROW(MismatchError,
                   "the ranks are about to exchange different things:\n  rank "
                       << exchange.rank() << ": " << text_of(record) << "\n  rank " << ranks[i]
                       << ": " << text_of(theirs)
                       << "\nmake the same calls, with the same arguments, on every rank");
  }
  for (auto& send : sends) exchange.wait(send);
}

void Openings::run(Exchange& exchange, const Schedule& schedule) {
  const int num_ranks = exchange.world_size();
  const int rank = exchange.rank();
  if (num_ranks == 1) return schedule.run(exchange);

  // The neighbours first, which always send an opening: see exchange_openings().
  std::vector<int> others{(rank + 1) % num_ranks};
  for (int i = num_ranks - 1; i > 1; --i) others.push_back((rank + i) % num_ranks);
  for (const int other : others) post_receive(other);
  const Record record = make_record(exchange.describe() + ", " + std::string(schedule.name));
  std::ranges::copy(std::as_bytes(std::span(record)), sent_.get());

  if (!carries_payload(exchange, schedule)) {
    // Neighbours are enough to see any difference somewhere.
    const std::vector<int> neighbours(others.begin(), others.begin() + std::min(2, num_ranks - 1));
    exchange_openings(exchange, {sent_.get(), kRecordBytes}, neighbours);
    post_ahead(neighbours);
    return schedule.run(exchange);
  }

  const ElementRange all{0, exchange.shape().num_elements};
  const auto payload_bytes = static_cast<size_t>(exchange.payload_bytes(all));
  const std::span<std::byte> mine{sent_.get() + kRecordBytes, payload_bytes};
  exchange.encode(all, {}, {}, mine, exchange.label(rank, 0));
  exchange_openings(exchange, {sent_.get(), kRecordBytes + payload_bytes}, others);
  std::vector<std::span<const std::byte>> payloads;
  std::vector<MessageLabel> labels;
  for (int source = 0; source < num_ranks; ++source) {
    payloads.push_back(source == rank ? mine
                                      : received(source).subspan(kRecordBytes, payload_bytes));
    labels.push_back(exchange.label(source, 0));
  }
  side_ = 1 - side_;
  post_ahead(others);
  exchange.decode(all, payloads, labels);
}

}  // namespace fastcomm
