#include "collectives/announcement.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "core/check.h"

namespace fastcomm {
namespace {

using Record = std::array<char, kAnnouncementBytes>;

Record make_record(const std::string& text) {
  Record record{};
  std::copy_n(text.begin(), std::min(text.size(), record.size()), record.begin());
  return record;
}

std::string text_of(const Record& record) {
  return {record.begin(), std::find(record.begin(), record.end(), '\0')};
}

}  // namespace

void compare_with_neighbours(Exchange& exchange, std::string_view schedule_name) {
  const int num_ranks = exchange.world_size();
  if (num_ranks == 1) return;
  const Record mine = make_record(exchange.describe() + ", " + std::string(schedule_name));
  std::vector<int> peers{(exchange.rank() + num_ranks - 1) % num_ranks};
  if (num_ranks > 2) peers.push_back((exchange.rank() + 1) % num_ranks);

  std::vector<Record> theirs(peers.size());
  std::vector<std::unique_ptr<PendingMessage>> messages;
  for (size_t i = 0; i < peers.size(); ++i) {
    messages.push_back(
        exchange.receive(peers[i], kAnnouncementTag, std::as_writable_bytes(std::span(theirs[i]))));
    messages.push_back(exchange.send(peers[i], kAnnouncementTag, std::as_bytes(std::span(mine))));
  }
  for (auto& message : messages) exchange.wait(message);
  for (size_t i = 0; i < peers.size(); ++i) {
    if (theirs[i] == mine) continue;
    FASTCOMM_THROW(MismatchError,
                   "the ranks are about to exchange different things:\n  rank "
                       << exchange.rank() << ": " << text_of(mine) << "\n  rank " << peers[i]
                       << ": " << text_of(theirs[i])
                       << "\nmake the same calls, with the same arguments, on every rank");
  }
}

}  // namespace fastcomm
