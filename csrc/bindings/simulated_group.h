#pragma once
// A group of ranks that live in one process, for simulations: the schedules and codecs of real
// groups, over the in-process transport.
//
// One thread of the caller speaks for all ranks, one after the other. An exchange runs when every
// rank has submitted its part of it, on a thread for each rank; the call that submits the last part
// returns when it is over.

#include <deque>
#include <memory>
#include <vector>

#include "bindings/communicator.h"
#include "collectives/in_process_transport.h"

namespace fastcomm {

class SimulatedGroup {
 public:
  explicit SimulatedGroup(int world_size);
  ~SimulatedGroup();

  int world_size() const { return network_.world_size(); }

  // Runs what has a part of every rank then. The bucket is on the CPU. The caller must not hold the
  // GIL; job.complete is called on its thread, for all ranks of an exchange, after which one that
  // failed leaves the group unusable.
  // Throws Error for a rank that is not in the group, a bucket on a device, or after a failure.
  void submit(int rank, Job job);

  ExchangeRecord& record(int rank);

 private:
  struct Rank;
  void run(std::vector<Job>& jobs);

  InProcessNetwork network_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  bool has_failed_ = false;
};

}  // namespace fastcomm
