#pragma once
// This rank's connections to the others, which its lanes share, and what has become of the others.
//
// No wait for a message lasts for ever. It ends when
//
// - the message is complete;
// - its peer has ended (canaries.h). Only messages with this peer are aborted, and only those that
//   are not complete: a rank that ends after its last exchange disturbs nobody;
// - it has lasted for the group's timeout. The time is kept here: gloo, when one of its own waits
//   takes too long, closes the connections to all ranks. Shortly before, the peer is asked. If it
//   waits for another rank itself, it gets more time to find out: all are to blame the rank that
//   does not answer, or does something else;
// - an exchange failed, here or, as the news say, elsewhere: the ranks are out of step from there
//   on. It and all that come after it are aborted, and none is begun any more. Those before it go
//   on: every rank takes part in them to the end, or has news of one of them, too. News are passed
//   on and reach all ranks, which report them, but for ranks that fail themselves at the same
//   moment.
//
// Each lane does its exchanges one after another. A rank that has failed in one of a lane may still
// be in an earlier one of another lane, and another rank may be in an earlier one of the same lane.
//
// A message that is given up before it is complete stays until the connections are closed. Without
// it, gloo would neither read nor write what comes after it on its connection: the news.

#include <chrono>
#include <condition_variable>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "bindings/canaries.h"
#include "bindings/notes.h"
#include "collectives/transport.h"

namespace fastcomm {

class Connections {
 public:
  using Work = c10::intrusive_ptr<c10d::Work>;

  // `backends`: over the same ranks; a message uses the one numbered by its sender's rank, modulo
  // their number. None for a group of one rank, which sends nothing. `num_tags`: exchanges use the
  // tags below it.
  Connections(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, size_t num_lanes,
              Tag num_tags, std::chrono::milliseconds timeout);
  ~Connections() { close(); }

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  bool is_gloo() const { return is_gloo_; }

  // The lane begins an exchange: its first one, or the one after that which it began before.
  // Throws PeerError, or MismatchError if ranks disagree, if this one or an earlier one has failed.
  void begin(size_t lane);

  // Start a message of a lane, whose memory must stay until close(). Throw what begin() throws;
  // PeerError if the peer has ended.
  Work send(size_t lane, int peer, Tag tag, std::span<const std::byte> bytes);
  Work receive(size_t lane, int peer, Tag tag, std::span<std::byte> bytes);

  // Returns when a message is complete. Throws what send() throws; PeerError if it takes longer
  // than the timeout.
  void wait(const Work& work);
  // Every message that was started must be handed back, whether it was waited for or not.
  void forget(const Work& work);

  // An exchange of this rank has failed: tells the others, and ends it and those after it.
  void fail(const News& news);
  // The same, if nothing has failed yet.
  void fail_first(const News& news);
  // Ends what is under way on this rank, and begins nothing any more.
  void abort(const std::string& reason) { end_from({false, reason}); }
  // Throws if any exchange has failed, what begin() would; PeerError if `rank` has ended.
  void check(int rank) const;

  // Ends what is under way and all threads, and lets go of the backends. The caller must not hold
  // the GIL, and the memory of all messages must still be there.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();

  struct Lane {
    uint64_t num_begun = 0;      // exchanges; the last of them may be under way
    uint64_t num_before = kAll;  // of its exchanges, before the first that has failed somewhere
    bool has_failed() const { return num_begun > num_before; }
  };

  struct Message {
    size_t lane;
    const char* what;
    int peer;
    std::optional<Clock::time_point> deadline = {};  // while somebody waits for it
    int num_questions = 0;                           // to its peer, since the wait is long
    Clock::time_point asked = {};                    // when the latest was
    std::string verdict = {};                        // why it was aborted after its deadline
    bool is_complete = false;
    bool has_failed = false;  // says the backend
  };

  struct Peer {
    bool is_watched = false;                    // has canaries
    std::optional<Clock::time_point> end = {};  // some canary failed: when it has ended for sure
    bool has_ended = false;
    bool has_ended_after_news = false;
    std::optional<Answer> answer = {};
    Clock::time_point answered = {};
  };

  Peer& peer(int rank) { return peers_[static_cast<size_t>(rank)]; }
  const Peer& peer(int rank) const { return peers_[static_cast<size_t>(rank)]; }
  template <class Post>
  Work start(Message message, Post&& post);
  // Whether the message is complete; else it was aborted, or failed: `reason` says what the backend
  // says then.
  bool wait_once(c10d::Work& work, std::string& reason);
  // Throws what has become of a message that failed; `reason` is what the backend says.
  [[noreturn]] void explain(const Message& message, const std::string& reason);

  // With the lock.
  std::string describe_end(int rank) const;
  void throw_if_failed(size_t lane) const;
  void end(int rank);
  // Handles a message whose deadline is over; returns whether its peer is to be asked.
  bool ask_or_abort(c10d::Work& work, Message& message);
  std::string verdict_on(const Message& message) const;

  // Without it.
  void take_close(int rank, bool is_last);
  // False if nothing ends that had not failed before.
  bool end_from(const News& news);
  void tell(const News& news, int source);  // all but the source
  void take_note(int rank, const Note& note);
  Answer own_state();
  std::chrono::milliseconds time_to_answer() const;
  void watch_deadlines();

  std::vector<c10::intrusive_ptr<c10d::Backend>> backends_;
  const int rank_;
  const int world_size_;
  const bool is_gloo_;
  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::map<c10d::Work*, Message> under_way_;
  std::vector<Work> given_up_;
  std::vector<Peer> peers_;  // by rank
  std::vector<Lane> lanes_;
  std::vector<News> news_;  // in the order in which they came; each ended something
  bool closed_ = false;
  std::thread deadlines_;
  std::unique_ptr<Canaries> canaries_;
};

}  // namespace fastcomm
