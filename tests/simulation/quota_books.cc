#include "tests/simulation/quota_books.h"

#include <algorithm>
#include <utility>

#include "tests/simulation/timeline.h"

namespace sluice::simulation {
namespace {

// On the host's monotonic clock.
uint64_t BeginNs(const config::CalendarTable::Entry& entry) {
  const auto length_us = static_cast<uint64_t>(entry.window.end_us - entry.window.begin_us);
  return entry.end_ns - std::min(entry.end_ns, length_us * kUs);
}

}  // namespace

void QuotaBooks::Hear(const reconcile::Ledger& ledger) {
  for (reconcile::BucketId id = 0; id < ledger.bucket_slots(); ++id) {
    const reconcile::Bucket& bucket = ledger.bucket(id);
    if (!bucket.is_dated() || bucket.told_end_ns == 0) continue;
    const config::CalendarTable::Entry* const entry = bucket.calendar->Near(bucket.told_end_ns);
    // A host whose clock is behind hears of a window that it has not begun, and begins it anew.
    if (entry == nullptr || bucket.in_flight || bucket.reported_ns < BeginNs(*entry)) continue;
    Use& use = uses_[{bucket.text, entry->window.end_us}];
    if (bucket.restore != 0 && bucket.restore != use.restored) GiveUp(&use);
    use.restored = bucket.restore;
    if (bucket.reported_ns == use.reported_ns) continue;
    use.reported_ns = bucket.reported_ns;
    use.others = std::max(use.others, bucket.told_all - use.own);
    use.confirmed = std::max(use.confirmed, std::exchange(use.at_reply, use.own));
  }
}

void QuotaBooks::Open() {
  found_ = kept_;
  for (auto& [window, use] : uses_) GiveUp(&use);
}

void QuotaBooks::GiveUp(Use* use) {
  use->others -= use->own - use->confirmed;
  use->confirmed = use->at_reply = use->own;
}

int64_t QuotaBooks::Spend(const Window& window, uint32_t tokens) {
  Use& use = uses_[window];
  use.own += tokens;
  judged_ += tokens;
  return use.own + use.others;
}

std::optional<reconcile::Quota> QuotaBooks::Find(const std::string& names) const {
  const auto found = found_.find(names.substr(0, names.find('\0')));
  return found == found_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace sluice::simulation
