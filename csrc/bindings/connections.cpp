#include "bindings/connections.h"

#include <ATen/ATen.h>
#include <pthread.h>

#include <algorithm>
#include <utility>

#include "bindings/c10d_work.h"
#include "core/check.h"

namespace fastcomm {
namespace {

// A shorter timeout of a group is taken for this one.
constexpr std::chrono::milliseconds kShortestTimeout{100};

// Of more ranks only the neighbours in the ring are watched; news reach the others through them.
constexpr int kMostWatched = 16;

// How soon all canaries of a rank that has ended fail after the first one did.
constexpr std::chrono::seconds kTimeToEnd{1};

// How long a thread takes to see that the message that it waits for was complete when its peer
// ended.
constexpr std::chrono::milliseconds kTimeToRead{100};

// The message's memory as a tensor, without a copy.
std::vector<at::Tensor> as_tensors(std::byte* bytes, size_t size) {
  return {at::from_blob(bytes, {static_cast<int64_t>(size)}, at::kByte)};
}

std::vector<int> watched_peers(int rank, int world_size) {
  std::vector<int> peers;
  for (int distance = 1; distance < world_size; ++distance) {
    const bool is_neighbour = distance == 1 || distance == world_size - 1;
    if (is_neighbour || world_size <= kMostWatched) peers.push_back((rank + distance) % world_size);
  }
  return peers;
}

[[noreturn]] void throw_news(const News& news) {
  constexpr auto* kConsequence =
      "a synchronization has failed, so that the ranks are out of step; restart from a checkpoint. "
      "The failure: ";
  if (news.is_mismatch) FASTCOMM_THROW(MismatchError, kConsequence << news.text);
  FASTCOMM_THROW(PeerError, kConsequence << news.text);
}

}  // namespace

Connections::Connections(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, size_t num_lanes,
                         Tag num_tags, std::chrono::milliseconds timeout)
    : backends_(std::move(backends)),
      rank_(backends_.empty() ? 0 : backends_[0]->getRank()),
      world_size_(backends_.empty() ? 1 : backends_[0]->getSize()),
      is_gloo_(!backends_.empty() && backends_[0]->getBackendName() == "gloo"),
      timeout_(std::clamp(timeout, kShortestTimeout, kForever)),
      peers_(static_cast<size_t>(world_size_)),
      lanes_(num_lanes) {
  if (!is_gloo_) return;  // what others do when a rank is gone is up to them
  const std::vector<int> watched = watched_peers(rank_, world_size_);
  for (const int rank : watched) peer(rank).is_watched = true;
  try {
    canaries_ = std::make_unique<Canaries>(
        backends_, num_tags, watched,
        Canaries::Callbacks{
            [this](int rank, bool is_last) { take_close(rank, is_last); },
            [this](int rank, const std::string& text) {
              take_note(rank, Note::received(rank, text));
            },
        });
    deadlines_ = std::thread([this] { watch_deadlines(); });
    pthread_setname_np(deadlines_.native_handle(), "fastcomm-late");
    canaries_->start();
  } catch (...) {
    close();
    throw;
  }
}

Connections::Work Connections::send(size_t lane, int peer, Tag tag,
                                    std::span<const std::byte> bytes) {
  auto tensors = as_tensors(const_cast<std::byte*>(bytes.data()), bytes.size());
  return start({lane, "sending to", peer}, [&] {
    return backends_[static_cast<size_t>(rank_) % backends_.size()]->send(tensors, peer,
                                                                          static_cast<int>(tag));
  });
}

Connections::Work Connections::receive(size_t lane, int peer, Tag tag, std::span<std::byte> bytes) {
  auto tensors = as_tensors(bytes.data(), bytes.size());
  return start({lane, "receiving from", peer}, [&] {
    return backends_[static_cast<size_t>(peer) % backends_.size()]->recv(tensors, peer,
                                                                         static_cast<int>(tag));
  });
}

template <class Post>
Connections::Work Connections::start(Message message, Post&& post) {
  {
    const std::lock_guard lock(mutex_);
    throw_if_failed(message.lane);
    if (peer(message.peer).has_ended) FASTCOMM_THROW(PeerError, describe_end(message.peer));
  }
  Work work;
  try {
    work = post();
  } catch (const std::exception& error) {
    explain(message, error.what());
  }
  const std::lock_guard lock(mutex_);
  // What was found meanwhile was told to those that were under way only.
  if (lanes_[message.lane].has_failed() || closed_) abort_quietly(*work);
  under_way_.emplace(work.get(), std::move(message));
  return work;
}

void Connections::wait(const Work& work) {
  std::string reason = "it was aborted";
  // An abort also ends the wait for a message that is complete; the next wait finds it so.
  const bool is_complete = wait_once(*work, reason) || wait_once(*work, reason);
  Message message;
  {
    const std::lock_guard lock(mutex_);
    Message& waited = under_way_.at(work.get());
    waited.deadline.reset();
    waited.is_complete = is_complete;
    message = waited;
  }
  if (!is_complete) explain(message, reason);
}

bool Connections::wait_once(c10d::Work& work, std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    Message& message = under_way_.at(&work);
    const bool has_ended = peer(message.peer).has_ended;
    const bool is_late = !message.verdict.empty() && !has_ended;
    const bool is_over = lanes_[message.lane].has_failed() || closed_;
    if (is_over || message.has_failed || is_late) return false;
    message.deadline = Clock::now() + (has_ended ? kTimeToRead : timeout_ - time_to_answer());
    if (has_ended) changed_.notify_all();
  }
  try {
    return is_gloo_ ? work.wait(kForever) : work.wait();
  } catch (const std::exception& error) {
    reason = error.what();
  }
  const std::lock_guard lock(mutex_);
  under_way_.at(&work).has_failed = true;
  return false;
}

void Connections::forget(const Work& work) {
  const std::lock_guard lock(mutex_);
  const auto entry = under_way_.find(work.get());
  if (!entry->second.is_complete && !closed_) given_up_.push_back(work);
  under_way_.erase(entry);
}

void Connections::explain(const Message& message, const std::string& reason) {
  std::unique_lock lock(mutex_);
  throw_if_failed(message.lane);
  const std::string what = std::string(message.what) + " rank " + std::to_string(message.peer);
  const Peer& other = peer(message.peer);
  if (!message.verdict.empty() && !other.has_ended) {
    FASTCOMM_THROW(PeerError, what << ": not complete after " << timeout_.count() / 1000.0
                                   << " s, the timeout of the process group; " << message.verdict);
  }
  // The news of a failure, or the other canaries, may be a little later.
  const Lane& lane = lanes_[message.lane];
  changed_.wait_for(lock, kTimeToEnd,
                    [&] { return lane.has_failed() || closed_ || other.has_ended; });
  throw_if_failed(message.lane);
  if (other.has_ended) FASTCOMM_THROW(PeerError, what << ": " << describe_end(message.peer));
  FASTCOMM_THROW(PeerError, what << " failed: " << reason);
}

std::string Connections::describe_end(int rank) const {
  std::string text = "rank " + std::to_string(rank) + " has ended, or closed its connection";
  // It may have done so because of them.
  if (peer(rank).has_ended_after_news) text += ", after a later failure: " + news_.front().text;
  return text;
}

void Connections::throw_if_failed(size_t lane) const {
  // The first ones that came: later calls all report the same.
  for (const News& news : news_) {
    if (lanes_[lane].num_begun > news.num_before(lane)) throw_news(news);
  }
}

void Connections::begin(size_t lane) {
  const std::lock_guard lock(mutex_);
  ++lanes_[lane].num_begun;
  throw_if_failed(lane);
}

void Connections::check(int rank) const {
  const std::lock_guard lock(mutex_);
  if (!news_.empty()) throw_news(news_.front());
  if (peer(rank).has_ended) FASTCOMM_THROW(PeerError, describe_end(rank));
}

void Connections::fail(const News& news) {
  if (end_from(news)) tell(news, rank_);
}

void Connections::fail_first(const News& news) {
  {
    const std::lock_guard lock(mutex_);
    if (!news_.empty()) return;
  }
  fail(news);
}

void Connections::tell(const News& news, int source) {
  for (int rank = 0; rank < world_size_; ++rank) {
    if (peer(rank).is_watched && rank != source) canaries_->send(rank, Note(news).text());
  }
}

void Connections::take_note(int rank, const Note& note) {
  if (note.is_question()) {
    canaries_->send(rank, Note(own_state()).text());
  } else if (note.is_answer()) {
    const std::lock_guard lock(mutex_);
    peer(rank).answer = note.answer(world_size_);
    peer(rank).answered = Clock::now();
  } else if (const News news = note.news(); end_from(news)) {
    tell(news, rank);
  }
}

Answer Connections::own_state() {
  const std::lock_guard lock(mutex_);
  for (const auto& [work, message] : under_way_) {
    if (message.deadline) return {message.peer};
  }
  return {};
}

bool Connections::end_from(const News& news) {
  const std::lock_guard lock(mutex_);
  bool is_new = false;
  for (size_t lane = 0; lane < lanes_.size(); ++lane) {
    if (news.num_before(lane) >= lanes_[lane].num_before) continue;
    lanes_[lane].num_before = news.num_before(lane);
    is_new = true;
  }
  if (!is_new) return false;
  news_.push_back(news);
  for (const auto& [work, message] : under_way_) {
    if (lanes_[message.lane].has_failed()) abort_quietly(*work);
  }
  changed_.notify_all();
  return true;
}

void Connections::take_close(int rank, bool is_last) {
  const std::lock_guard lock(mutex_);
  if (is_last) return end(rank);
  peer(rank).end =
      std::min(peer(rank).end.value_or(Clock::time_point::max()), Clock::now() + kTimeToEnd);
  changed_.notify_all();
}

void Connections::end(int rank) {
  peer(rank).end.reset();
  peer(rank).has_ended = true;
  peer(rank).has_ended_after_news = !news_.empty();
  for (auto& [work, message] : under_way_) {
    if (message.peer == rank && message.deadline) message.deadline = Clock::now() + kTimeToRead;
  }
  changed_.notify_all();
}

void Connections::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (const auto& [work, message] : under_way_) abort_quietly(*work);
    changed_.notify_all();
  }
  if (deadlines_.joinable()) deadlines_.join();
  if (canaries_) canaries_->stop();
  given_up_.clear();
  canaries_.reset();
  backends_.clear();
}

}  // namespace fastcomm
