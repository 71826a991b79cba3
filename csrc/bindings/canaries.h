#pragma once
// How a rank learns at once that another one has ended, and how ranks talk besides exchanges.
//
// A *canary* is a receive from a peer with a tag that no exchange uses: one for each peer and
// backend, each waited for by a thread. Those of the first backend receive *notes*: short texts.
//
// A canary fails when its connection is closed, after all that came before has been read. When all
// canaries of a peer have failed, the peer has *ended*: it sends nothing any more. Without
// canaries, gloo leaves messages that are half received or half sent, when their connection closes,
// until the timeout. A note may be half received, too: so a peer has also ended a while after its
// first canary failed.

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "collectives/transport.h"

namespace fastcomm {

class Canaries {
 public:
  // Called on the canaries' threads.
  struct Callbacks {
    std::function<void(int peer, bool is_last)> on_close;  // one of the peer's canaries has failed
    std::function<void(int peer, const std::string& note)> on_note;
  };

  // Canaries over all of `backends`, which must be gloo's, with a tag of their own.
  Canaries(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, Tag tag,
           const std::vector<int>& peers, Callbacks callbacks);
  ~Canaries();

  // Begins to watch.
  void start();

  // Sends a note, which arrives after those sent before. Does not wait. A long note is cut.
  void send(int peer, const std::string& note);

  // Ends the threads, when the notes have left, or after a moment. There are no callbacks
  // afterwards. Not from a callback.
  void stop();

 private:
  struct Canary;
  // Posts the receive of a canary's next note, unless its connection is closed, or all stop.
  void post(Canary& canary);
  void watch(Canary& canary);
  void wait_for_sends();

  const std::vector<c10::intrusive_ptr<c10d::Backend>> backends_;
  const Tag tag_;
  const Callbacks callbacks_;
  std::vector<std::unique_ptr<Canary>> canaries_;
  std::mutex mutex_;              // guards what follows, and the canaries' receives
  std::vector<size_t> num_left_;  // by rank: canaries that have not failed
  std::vector<c10::intrusive_ptr<c10d::Work>> sends_;
  bool stopped_ = false;
};

}  // namespace fastcomm
