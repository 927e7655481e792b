#include "tests/simulation/seats.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "daemon/lease/place_keeper.h"

namespace sluice::simulation {
namespace {

// Of the arguments and the reply, as lua/places.lua has them.
constexpr size_t kSegmentsDigits = 16;
constexpr size_t kArgsHead = 4, kArgsPerBucket = 5, kKept = 2;
constexpr size_t kReplyHead = 3, kReplyPerBucket = 3;

}  // namespace

void Seats::OnCall(bool owns, const Loan& loan) {
  const auto& [index, is_strict, argv, reply] = loan;
  if (reply.is_error() || reply.elements[0].integer != 1) return;
  Shard& shard = shards_[index];
  shard.is_in_doubt = shard.is_in_doubt || !owns;
  const uint64_t now_ns = timeline_->now_ns();
  Heard& heard = shard.heard[argv[0].substr(0, kSegmentsDigits)];
  const int64_t now_us = reply.elements[1].integer;
  if (heard.now_us == now_us) return;  // a copy: nothing was done
  const int64_t fence_us = reply.elements[2].integer;
  if (fence_us > shard.fence_us) shard.begun_ns = now_ns;
  shard.fence_us = fence_us;
  heard = {now_ns, now_us};
  bool lends = false;
  for (size_t i = 0; kArgsHead + kArgsPerBucket * i < argv.size(); ++i) {
    const size_t at = kArgsHead + kArgsPerBucket * i;
    shard.texts.insert(argv[at]);
    shard_of_[argv[at]] = index;
    const int64_t lent = reply.elements[kReplyHead + kReplyPerBucket * i].integer;
    lends = lends || lent > strtoll(argv[at + kKept].c_str(), nullptr, 10);
  }
  if (!lends) return;
  for (const auto& host : *hosts_) {
    if (IsUsedIn(shard, *host) && !IsHeard(shard, *host)) shard.is_in_doubt = true;
  }
}

bool Seats::IsHeard(const Shard& shard, const Host& host) const {
  const auto heard = shard.heard.find(host.Segments());
  return heard != shard.heard.end() && heard->second.at_ns >= shard.begun_ns &&
         timeline_->now_ns() - heard->second.at_ns < lease::kPlacesSilentNs;
}

bool Seats::IsUsedIn(const Shard& shard, const Host& host) {
  return std::any_of(host.in_flight().begin(), host.in_flight().end(), [&shard](const auto& used) {
    return used.second > 0 && shard.texts.contains(used.first);
  });
}

void Seats::OnEnter(const std::string& text) {
  const auto index = shard_of_.find(text);
  if (index == shard_of_.end()) return on_violation_(absl::StrCat("entered, not lent: ", text));
  if (shards_[index->second].is_in_doubt) return;
  ++judged_;
  uint32_t in = 0;
  for (const auto& host : *hosts_) {
    const auto used = host->in_flight().find(text);
    if (used != host->in_flight().end()) in += used->second;
  }
  if (in <= limit_) return;
  on_violation_(absl::StrCat("in flight: ", in, " of ", text, ", more than ", limit_));
}

}  // namespace sluice::simulation
