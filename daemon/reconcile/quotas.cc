// Quotas by the calendar where Redis has lost its data: what this host knows of a window is told
// with the next report, and the script takes the larger of the two. See Reconciler.
#include <algorithm>

#include "daemon/reconcile/reconciler.h"

namespace sluice::reconcile {
namespace {

// Each shard of a primary shows the loss; one look at the books does for all.
constexpr uint64_t kRestorePauseNs = 100'000'000;

}  // namespace

// A bucket that this daemon meets for the first time, of which an earlier one knew. The word is set
// at once: Redis may be away, or know nothing.
void Reconciler::Recall(Bucket& b, uint64_t now_ns) {
  if (options_.quotas == nullptr || !b.is_dated() || b.reported_ns != 0 || b.restore != 0) return;
  const std::optional<Quota> quota = options_.quotas->Find(b.wire_name());
  if (!quota || quota->tokens <= 0) return;
  const config::CalendarTable::Entry* const entry = b.calendar->EndingAt(quota->end_us);
  if (entry == nullptr || entry->window.begin_us != quota->begin_us || entry->end_ns <= now_ns) {
    return;
  }
  b.restore = quota->tokens;
  b.restore_end_us = quota->end_us;
  const WindowSeen seen = LookAtWindow(b, *buckets_);
  if (!seen.is_ours || (seen.end_ns > now_ns && seen.most >= quota->tokens)) return;
  BucketState state;
  state.debt_us = (entry->end_ns - now_ns) / 1000;
  state.in_window = quota->tokens;
  FoldWindow(b, state, 0, *buckets_, EndsOf(*b.rule), now_ns);
}

// Until Redis has been told again what it lost, it answers with less: what it told before stands.
void Reconciler::RaiseToRestored(const Bucket& b, uint64_t now_ns, BucketState* state) {
  if (!b.is_dated()) return;
  const config::CalendarTable::Entry* const entry = b.calendar->EndingAt(b.restore_end_us);
  if (entry == nullptr || entry->end_ns <= now_ns) return;
  const uint64_t left_us = (entry->end_ns - now_ns) / 1000;
  if (state->debt_us != left_us) return;  // of another window, or of none
  state->in_window = std::max(state->in_window, b.restore);
}

// What Redis told, but for what it told while it had lost it.
void Reconciler::KeepQuota(const Bucket& b, const BucketState& told, uint64_t redis_us) {
  if (options_.quotas == nullptr || b.restore != 0 || told.debt_us == 0 || b.is_mirror) return;
  const auto end_us = static_cast<int64_t>(redis_us + told.debt_us);
  const config::CalendarTable::Entry* const entry = b.calendar->EndingAt(end_us);
  if (entry == nullptr) return;
  options_.quotas->Keep(b.outer_name(), {entry->window.begin_us, end_us, told.in_window});
}

// The same without Redis: what the host's own word says.
void Reconciler::KeepOwnQuota(const Bucket& b) {
  if (options_.quotas == nullptr || !b.is_dated()) return;
  const WindowSeen seen = LookAtWindow(b, *buckets_);
  const config::CalendarTable::Entry* const entry =
      seen.is_ours ? b.calendar->Near(seen.end_ns) : nullptr;
  if (entry == nullptr) return;
  options_.quotas->Keep(b.outer_name(), {entry->window.begin_us, entry->window.end_us, seen.most});
}

// Redis knows less of the shard than it did, and so will its primary of all others: what was told
// of open windows is told again, also of buckets that nobody uses now.
void Reconciler::RestoreQuotas(uint32_t shard, uint64_t now_ns) {
  const uint32_t primary = transport_->PrimaryOf(shard);
  if (primary == kNoPrimary) return;
  uint64_t& restored_ns = PrimaryAt(primary).restored_ns;
  if (restored_ns != 0 && now_ns < restored_ns + kRestorePauseNs) return;
  restored_ns = now_ns;
  for (BucketId id = 0; id < ledger_.bucket_slots(); ++id) {
    Bucket& b = ledger_.bucket(id);
    if (b.text.empty() || !b.is_dated() || b.is_mirror) continue;
    if (transport_->PrimaryOf(b.shard) != primary) continue;
    const config::CalendarTable::Entry* const entry = b.calendar->Near(b.told_end_ns);
    if (entry == nullptr || entry->end_ns <= now_ns || b.told_all <= 0) continue;
    b.restore = std::max(b.restore_end_us == entry->window.end_us ? b.restore : 0, b.told_all);
    b.restore_end_us = entry->window.end_us;
    ledger_.AddUse(id, 0, 0, 0, now_ns);
  }
}

}  // namespace sluice::reconcile
