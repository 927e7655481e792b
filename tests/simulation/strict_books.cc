#include "tests/simulation/strict_books.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace sluice::simulation {
namespace {

// Of the arguments, as lua/lease.lua has them.
constexpr size_t kRules = 5, kArgsPerRule = 5, kArgsPerBucket = 16;
// Refill is counted in whole microseconds.
constexpr double kRounding = 1e-3;  // tokens

}  // namespace

void StrictBooks::OnCall(bool owns, const Loan& loan) {
  const auto& [index, is_strict, argv, reply] = loan;
  if (reply.is_error() || reply.elements[0].integer != 1) return;
  Shard& shard = shards_[index];
  shard.is_in_doubt = shard.is_in_doubt || !owns;
  const int64_t now_us = reply.elements[1].integer;
  int64_t& told_us = shard.told_us[argv[0]];
  if (told_us == now_us) return;  // a copy: nothing was done
  told_us = now_us;
  const int64_t ahead_us = now_us - static_cast<int64_t>(timeline_->now_ns() / kUs);
  if (shard.ahead_us != INT64_MIN) {
    shard.forward_us += static_cast<double>(std::max<int64_t>(ahead_us - shard.ahead_us, 0));
  }
  shard.ahead_us = ahead_us;
  const size_t first = kRules + 1 + kArgsPerRule * strtoul(argv[kRules].c_str(), nullptr, 10);
  for (size_t at = first; at < argv.size(); at += kArgsPerBucket) {
    buckets_.try_emplace(argv[at], Bucket{index, static_cast<double>(limit_.burst), 0});
  }
}

void StrictBooks::OnSpent(const std::string& text, uint32_t tokens) {
  const auto found = buckets_.find(text);
  if (found == buckets_.end()) return on_violation_(absl::StrCat("spent, not lent: ", text));
  Bucket& bucket = found->second;
  const Shard& shard = shards_[bucket.shard];
  if (shard.is_in_doubt) return;
  judged_ += tokens;
  const uint64_t now_ns = timeline_->now_ns();
  const double per_ns = 1 / static_cast<double>(limit_.interval_ns);
  const double refilled = bucket.level + static_cast<double>(now_ns - bucket.at_ns) * per_ns;
  bucket.level = std::min(refilled, static_cast<double>(limit_.burst)) - tokens;
  bucket.at_ns = now_ns;
  if (bucket.level >= -shard.forward_us * static_cast<double>(kUs) * per_ns - kRounding) return;
  on_violation_(absl::StrCat("strict: ", text, " is ", -bucket.level, " tokens over"));
}

}  // namespace sluice::simulation
