// The waits of Connections that last too long.

#include <algorithm>

#include "bindings/c10d_work.h"
#include "bindings/connections.h"

namespace fastcomm {
namespace {

// How long a rank has to answer whether it is alive.
constexpr std::chrono::milliseconds kLongestTimeToAnswer{1000};

// How often a rank is asked: again each time that it says that it waits for another one itself.
constexpr int kMostQuestions = 4;

}  // namespace

std::chrono::milliseconds Connections::time_to_answer() const {
  return std::min(kLongestTimeToAnswer, timeout_ / 4);
}

void Connections::watch_deadlines() {
  std::unique_lock lock(mutex_);
  while (!closed_) {
    // Whoever begins to wait later has a later deadline, or says so.
    const Clock::time_point now = Clock::now();
    Clock::time_point next = now + timeout_ - time_to_answer();
    for (int rank = 0; rank < world_size_; ++rank) {
      const auto& at = peer(rank).end;
      if (at && *at <= now) end(rank);
      if (at) next = std::min(next, *at);
    }
    std::vector<int> to_ask;
    for (auto& [work, message] : under_way_) {
      if (message.deadline && *message.deadline <= now && ask_or_abort(*work, message)) {
        to_ask.push_back(message.peer);
      }
      if (message.deadline) next = std::min(next, *message.deadline);
    }
    for (const int rank : to_ask) canaries_->send(rank, Note::question().text());
    changed_.wait_until(lock, next);
  }
}

bool Connections::ask_or_abort(c10d::Work& work, Message& message) {
  const Peer& other = peer(message.peer);
  const bool is_first = message.num_questions == 0;
  const bool has_answered = other.answer && other.answered >= message.asked;
  const bool may_wait = !other.is_watched || (has_answered && other.answer->waits_for);
  if (!other.has_ended && (is_first || (may_wait && message.num_questions < kMostQuestions))) {
    ++message.num_questions;
    message.asked = Clock::now();
    message.deadline = message.asked + time_to_answer();
    return other.is_watched;
  }
  message.verdict = verdict_on(message);
  message.deadline.reset();
  abort_quietly(work);
  return false;
}

std::string Connections::verdict_on(const Message& message) const {
  const Peer& other = peer(message.peer);
  if (!other.is_watched) return "nothing more is known about this rank";
  if (!other.answer || other.answered < message.asked) {
    return "it does not answer: it is stopped, or cut off";
  }
  if (!other.answer->waits_for) return "it is alive, but does something else";
  return "it waits for rank " + std::to_string(*other.answer->waits_for);
}

}  // namespace fastcomm
