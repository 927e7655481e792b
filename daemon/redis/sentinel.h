#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "daemon/redis/endpoint.h"
#include "daemon/redis/reply.h"

namespace sluice::redis {

// What a sentinel knows of a primary.
struct SentinelReply {
  Endpoint primary;
  // Rises with each failover; of two sentinels the one with the higher knows more.
  int64_t epoch = 0;
};

// Reads a reply to SENTINEL MASTER from a peer that may be anybody. InvalidArgument says what is
// wrong with it.
absl::StatusOr<SentinelReply> ParseSentinelMaster(const Reply& reply);

// Whether an error line to SENTINEL MASTER says that the sentinel watches no primary of that name.
bool IsUnknownMaster(std::string_view line);

}  // namespace sluice::redis
