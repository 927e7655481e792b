// A daemon's conversation with one shard about leases: one call on its way at a time, its bytes
// frozen, sent again unchanged until it is answered. Pure: who sends the bytes is the caller.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/lease/lease.h"
#include "daemon/lease/terms.h"
#include "daemon/redis/reply.h"

namespace sluice::lease {

// A copy only reads, so it may come early: a lost message ties tokens up until it is sent again.
inline constexpr uint64_t kResendMinNs = 10'000'000;
inline constexpr uint64_t kResendMaxNs = 250'000'000;
// Calls to a shard: one each kCallGapNs, and so many at once after a pause. One key alone needs no
// more; of many that share the shard, each call is then about several.
inline constexpr uint64_t kCallGapNs = 5'000'000;
inline constexpr uint64_t kCallsAtOnce = 10;
inline constexpr uint64_t kTokensMax = 1ull << 40;  // a bound on what a reply may claim

// `limit` tokens in `period_us`, in lowest terms. Refused where the script could not count exactly.
// `spare_us` as in Terms.
absl::StatusOr<Terms> MakeTerms(uint64_t limit, uint64_t period_us, uint64_t burst,
                                uint64_t wait_ns, uint64_t spare_us = 0);

// 128 random bits, made at each start of a daemon.
using Instance = std::array<uint64_t, 2>;

struct Asked {
  std::string field;  // of the bucket
  Terms terms;
  Ask ask;
  std::string home = {};  // as config::Home::mark(); empty: there are no regions
};

struct Call {
  uint64_t seq = 0;
  uint64_t first_sent_ns = 0;
  uint64_t sent_ns = 0;
  uint64_t timeout_ns = kResendMinNs;
  size_t buckets = 0;
  // ARGV of lua/lease.lua but for `primary`, which stands at kPrimaryArg and is the sender's: it
  // knows whom it sends to.
  std::vector<std::string> args;
};

inline constexpr size_t kPrimaryArg = 3;

class Session {
 public:
  Session(const Instance& instance, uint64_t sync_us) : instance_(instance), sync_us_(sync_us) {}

  // None may be on its way. `time_us` is 0 where scripts may ask TIME.
  const Call& Start(std::span<const Asked> asked, uint64_t time_us, uint64_t now_ns);
  // Is the call on its way to be sent again? Counts as sent then.
  bool Resend(uint64_t now_ns);
  // The grants in the order of what was asked; none where the reply is to no call on its way.
  absl::StatusOr<std::optional<std::vector<Grant>>> OnReply(uint64_t seq, const redis::Reply& reply,
                                                            uint64_t now_ns);

  // When the next call may be started at the earliest.
  uint64_t NextStartNs() const {
    return paced_ns_ - std::min(paced_ns_, (kCallsAtOnce - 1) * kCallGapNs);
  }
  const Call* call() const { return call_.has_value() ? &*call_ : nullptr; }
  uint64_t NextResendNs() const { return call_ ? call_->sent_ns + call_->timeout_ns : UINT64_MAX; }
  const RoundTrip& rtt() const { return rtt_; }

 private:
  Instance instance_;
  uint64_t sync_us_;
  uint64_t seq_ = 0;
  uint64_t paced_ns_ = 0;  // the theoretical arrival time of the next call
  std::optional<Call> call_;
  RoundTrip rtt_;
};

}  // namespace sluice::lease
