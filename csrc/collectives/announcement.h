#pragma once
// Neighbours compare what they are about to exchange, before any payload moves.
//
// The size of every message follows from the arguments of the call, so that ranks that were called
// with different arguments expect messages of different sizes; some transports end the process
// when a message does not fit (gloo does). An announcement is small and of one size: a difference
// becomes an error that shows both sides.

#include <string_view>

#include "collectives/exchange.h"

namespace fastcomm {

// Bytes that one rank sends to each of its neighbours.
inline constexpr int64_t kAnnouncementBytes = 96;

// The announcement's tag: above those of any schedule.
inline constexpr Tag kAnnouncementTag = (Tag{1} << 24) - 1;

// Throws MismatchError on this rank if a neighbour in the ring is about to do something else.
void compare_with_neighbours(Exchange& exchange, std::string_view schedule_name);

}  // namespace fastcomm
