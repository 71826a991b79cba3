// The in-process transport keeps the contract of collectives/transport.h.

#include "collectives/in_process_transport.h"

#include <string>

#include "collectives/in_process_ranks.h"
#include "core/check.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes_of(int value, size_t size = 4) { return Bytes(size, static_cast<std::byte>(value)); }

TEST_CASE("messages of one tag arrive in order, whichever end is posted first") {
  InProcessNetwork network(2);
  const auto sender = network.transport(0);
  const auto receiver = network.transport(1);
  const Bytes first = bytes_of(1);
  const Bytes second = bytes_of(2);
  const Bytes other = bytes_of(3);
  Bytes in_first = bytes_of(0);
  Bytes in_second = bytes_of(0);
  Bytes in_other = bytes_of(0);
  const auto early = receiver->receive(0, 7, in_first);
  const auto sends = {sender->send(1, 7, first), sender->send(1, 7, second),
                      sender->send(1, 8, other)};
  const auto other_tag = receiver->receive(0, 8, in_other);
  const auto late = receiver->receive(0, 7, in_second);
  for (const auto* message : {&early, &other_tag, &late}) (*message)->wait();
  for (const auto& message : sends) message->wait();
  CHECK(in_first == first);
  CHECK(in_second == second);
  CHECK(in_other == other);
}

TEST_CASE("a rank can send to itself, and an empty message is a message") {
  InProcessNetwork network(1);
  const auto transport = network.transport(0);
  const auto send = transport->send(0, 0, {});
  const auto receive = transport->receive(0, 0, {});
  CHECK_NOTHROW(send->wait());
  CHECK_NOTHROW(receive->wait());
}

TEST_CASE("a message that is shorter than its receive fills the beginning") {
  InProcessNetwork network(2);
  const Bytes out = bytes_of(1, 3);
  Bytes in = bytes_of(0, 4);
  const auto send = network.transport(0)->send(1, 0, out);
  const auto receive = network.transport(1)->receive(0, 0, in);
  send->wait();
  receive->wait();
  CHECK(std::equal(out.begin(), out.end(), in.begin()));
  CHECK(in.back() == bytes_of(0, 4).back());
}

TEST_CASE("a message that is larger than its receive is an error at both ends") {
  InProcessNetwork network(2);
  const Bytes out = bytes_of(1, 5);
  Bytes in = bytes_of(0, 4);
  const auto send = network.transport(0)->send(1, 0, out);
  const auto receive = network.transport(1)->receive(0, 0, in);
  CHECK_THROWS_AS(send->wait(), Error);
  CHECK_THROWS_AS(receive->wait(), Error);
  CHECK(in == bytes_of(0, 4));
}

TEST_CASE("abort ends every wait with an error") {
  InProcessNetwork network(3);
  Bytes in[3] = {bytes_of(0), bytes_of(0), bytes_of(0)};
  const auto errors = errors_of_ranks(network, [&](int rank) {
    const auto transport = network.transport(rank);
    if (rank == 2) FASTCOMM_FAIL("rank 2 fails");
    transport->receive(2, 0, in[rank])->wait();
  });
  for (const auto& error : errors) CHECK(error != nullptr);
}

TEST_CASE("a message that is given up leaves its memory alone") {
  InProcessNetwork network(2);
  const Bytes out = bytes_of(1);
  Bytes in = bytes_of(0);
  network.transport(1)->receive(0, 0, in);  // destroyed at once: the memory may be gone by now
  const auto send = network.transport(0)->send(1, 0, out);
  CHECK(in == bytes_of(0));
}

TEST_CASE("the first error of the ranks is thrown") {
  InProcessNetwork network(4);
  Bytes in[4] = {bytes_of(0), bytes_of(0), bytes_of(0), bytes_of(0)};
  CHECK_THROWS_WITH_AS(run_ranks(network,
                                 [&](int rank) {
                                   if (rank == 3) FASTCOMM_FAIL("the reason");
                                   network.transport(rank)->receive(3, 0, in[rank])->wait();
                                 }),
                       doctest::Contains("the reason"), Error);
}

TEST_CASE("a world without ranks is an error") { CHECK_THROWS_AS(InProcessNetwork(0), Error); }

}  // namespace
}  // namespace fastcomm
