// The fold script's arguments and reply, as lua/fold.lua states them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/reconcile/ledger.h"
#include "daemon/redis/reply.h"

namespace sluice::reconcile {

// Generations in which hosts and demand are counted; well above any flush interval.
inline constexpr uint64_t kGenerationUs = 2'000'000;
// Use younger than so many flush intervals counts as fresh; older use is added where it happened.
inline constexpr uint64_t kFreshIntervals = 3;

// Freezes items into a batch: updates demands and fractions, encodes the arguments.
// `instance`: 32 hex digits. `time_us` 0: the script asks TIME.
Batch Freeze(Ledger& ledger, std::vector<BatchItem> items, std::string_view instance, uint64_t seq,
             uint64_t time_us, uint64_t now_ns, uint64_t interval_ns);

// The same for a batch that Redis has forgotten: its number and tokens stay, demands are not
// updated, nothing new having been asked for.
Batch FreezeAgain(Ledger& ledger, JournalEntry&& entry, std::string_view instance, uint64_t time_us,
                  uint64_t now_ns, uint64_t interval_ns);

// The arguments as sent at `now_ns`: a batch that is sent again says how long ago it was frozen, so
// that its use counts where it happened, however long an outage kept it. `known_seq`: what Redis
// must know, or refuse; -1: nothing.
std::string ArgsOf(const Batch& batch, int64_t known_seq, uint64_t now_ns);

struct BucketState {
  uint64_t debt_us = 0;  // of windows: the time left
  int64_t demand_milli = 0;
  int64_t hosts = 1;
  int64_t in_window = 0;  // tokens of all hosts, of windows
  int64_t in_closed = 0;
  uint64_t banned_us = 0;  // under a penalty: how long the ban still lasts
  bool began = false;      // with this batch
};

struct FoldReply {
  bool applied = false;
  bool refused = false;  // earlier batches are missing there
  int64_t last_seq = -1;
  uint64_t now_us = 0;
  int64_t gen = 0;
  std::vector<BucketState> buckets;
};

// InvalidArgument when the reply is not one of the fold script for these buckets.
absl::StatusOr<FoldReply> ParseFoldReply(const redis::Reply& reply,
                                         const std::vector<BatchItem>& items);

}  // namespace sluice::reconcile
