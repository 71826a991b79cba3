#include "bindings/simulated_group.h"

#include <algorithm>
#include <utility>

#include "bindings/default_floating_point.h"
#include "codecs/velocity/velocity.h"
#include "collectives/in_process_ranks.h"
#include "collectives/opening.h"
#include "core/check.h"

namespace fastcomm {

struct SimulatedGroup::Rank {
  explicit Rank(std::unique_ptr<Transport> network_end)
      : transport(std::move(network_end)), openings(*transport) {}

  std::deque<Job> jobs;
  CodecWorkspace workspace;
  PayloadBuffers buffers;
  std::unique_ptr<Transport> transport;
  Openings openings;
  ExchangeRecord record;
};

SimulatedGroup::SimulatedGroup(int world_size) : network_(world_size) {
  for (int rank = 0; rank < world_size; ++rank) {
    ranks_.push_back(std::make_unique<Rank>(network_.transport(rank)));
  }
}

SimulatedGroup::~SimulatedGroup() = default;

ExchangeRecord& SimulatedGroup::record(int rank) {
  FASTCOMM_CHECK(rank >= 0 && rank < world_size(),
                 "there is no rank " << rank << " in a group of " << world_size());
  return ranks_[static_cast<size_t>(rank)]->record;
}

void SimulatedGroup::submit(int rank, Job job) {
  record(rank);  // checks the rank
  FASTCOMM_CHECK(
      job.tensors.bucket.is_cpu(),
      "simulated ranks have their gradients on the CPU, not on " << job.tensors.bucket.device());
  FASTCOMM_CHECK(!has_failed_, "an earlier exchange of this simulation failed; make a new one");
  ranks_[static_cast<size_t>(rank)]->jobs.push_back(std::move(job));
  while (std::ranges::none_of(ranks_, [](const auto& each) { return each->jobs.empty(); })) {
    std::vector<Job> jobs;
    for (const auto& each : ranks_) {
      jobs.push_back(std::move(each->jobs.front()));
      each->jobs.pop_front();
    }
    run(jobs);
  }
}

void SimulatedGroup::run(std::vector<Job>& jobs) {
  const auto errors = errors_of_ranks(network_, [&](int index) {
    const DefaultFloatingPoint default_floating_point;
    Rank& rank = *ranks_[static_cast<size_t>(index)];
    const Job& job = jobs[static_cast<size_t>(index)];
    const BucketPlan& plan = *job.plan;
    rank.workspace.threads = plan.threads;
    const BucketMemory memory = job.tensors.memory();
    if (job.tensors.velocity) accumulate_velocity(memory, job.momentum, plan.threads.get());
    BucketCodec codec(plan.codecs, memory, plan.runs, job.factor, index, rank.workspace);
    Measurements measurements;
    std::vector<TraceEvent> trace;
    Exchange exchange(codec, *rank.transport, rank.buffers, measurements, job.id,
                      rank.record.is_traced() ? &trace : nullptr);
    rank.openings.run(exchange, *plan.schedule);
    rank.record.add(measurements, trace, 0, job.id);
  });
  has_failed_ = std::ranges::any_of(errors, [](const auto& error) { return error != nullptr; });
  for (size_t rank = 0; rank < jobs.size(); ++rank) {
    std::exception_ptr error;
    try {
      if (errors[rank]) std::rethrow_exception(errors[rank]);
    } catch (const std::exception&) {
      error = current_error_at(describe_place(static_cast<int>(rank), jobs[rank].id));
    }
    jobs[rank].complete(error);
  }
}

}  // namespace fastcomm
