#include "daemon/reconcile/ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/string_view.h"
#include "shm/bucket_name.h"

namespace sluice::reconcile {
namespace {

// All buckets are looked at this often at least, and two for each that is new: so many are never
// kept that a stream of new keys outruns it.
constexpr uint64_t kForgetTurnNs = 120'000'000'000;
constexpr size_t kForgetPerNew = 2;

// No name has a NUL.
std::string MirrorKey(const std::string& text, uint32_t shard) {
  std::string key = text;
  key += '\0';
  key += std::to_string(shard);
  return key;
}

std::unique_ptr<const std::string> WireOf(const std::string& wire) {
  return wire.empty() ? nullptr : std::make_unique<const std::string>(wire);
}

}  // namespace

BucketId Ledger::IdOf(const std::string& key, const std::string& text) {
  const auto found = by_text_.find(key);
  if (found != by_text_.end()) return found->second;
  BucketId id;
  if (free_.empty()) {
    id = buckets_.Add();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  ++new_since_forget_;
  buckets_[id] = Bucket{};
  buckets_[id].text = text;
  by_text_.emplace(key, id);
  return id;
}

BucketId Ledger::InternMirror(const Bucket& of, uint32_t shard, uint64_t now_ns) {
  const BucketId id = IdOf(MirrorKey(of.text, shard), of.text);
  Bucket& b = buckets_[id];
  b.is_mirror = true;
  b.shard = shard;
  b.rule = of.rule;
  b.limit = of.limit;
  b.kind = of.kind;
  b.calendar = of.calendar;
  b.wire = of.wire == nullptr ? nullptr : WireOf(*of.wire);
  b.touched_ns = now_ns;
  return id;
}

BucketId Ledger::Intern(const harvest::Place& place, harvest::Named&& named, uint64_t now_ns) {
  const BucketId id = IdOf(named.text, named.text);
  Bucket& b = buckets_[id];
  b.shard = named.shard;
  b.rule = named.rule;
  b.limit = named.rule->LimitOf(shm::LabelOf(b.text));
  b.kind = named.rule->kind;
  b.calendar = named.rule->calendar;
  b.wire = WireOf(named.wire);
  b.place = place;
  b.touched_ns = now_ns;
  return id;
}

void Ledger::AddUse(BucketId id, int64_t tokens, uint64_t denied, uint64_t since_ns,
                    uint64_t now_ns) {
  Bucket& b = buckets_[id];
  b.pending += tokens;
  if (tokens != 0 && b.pending_since_ns == 0) b.pending_since_ns = since_ns;
  b.attempts += (tokens > 0 ? static_cast<uint64_t>(tokens) : 0) + denied;
  b.touched_ns = now_ns;
  if (b.queued) return;
  Shard& s = shards_[b.shard];
  b.queued = true;
  if (s.queue.empty()) s.queued_since_ns = now_ns;
  s.queue.push_back(id);
}

std::vector<BatchItem> Ledger::TakeQueue(uint32_t shard, uint64_t* oldest_ns) {
  Shard& s = shards_[shard];
  const size_t n = std::min(s.queue.size(), kMaxBatchBuckets);
  std::vector<BatchItem> items;
  items.reserve(n);
  *oldest_ns = 0;
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) PrefetchAll(s.queue[i + kAhead]);
    const BucketId id = s.queue[i];
    Bucket& b = buckets_[id];
    items.push_back({.bucket = id,
                     .tokens = b.pending,
                     .since_ns = b.pending_since_ns,
                     .is_window = shm::IsCountedInWindows(b.kind),
                     .window_end_ns = b.window_end_ns,
                     .in_window = b.in_window,
                     .in_closed = b.in_closed,
                     .restore = b.restore,
                     .restore_end_us = b.restore_end_us});
    if (b.penal != nullptr) {
      items.back().denied = std::exchange(b.penal->fresh, 0);
      items.back().is_lifted = std::exchange(b.penal->is_lifted, false);
      items.back().ban_until_ns = b.penal->is_own ? b.penal->until_ns : 0;
    }
    b.in_window = b.in_closed = 0;
    if (b.pending_since_ns != 0) {
      *oldest_ns = *oldest_ns == 0 ? b.pending_since_ns : std::min(*oldest_ns, b.pending_since_ns);
    }
    b.pending = 0;
    b.pending_since_ns = 0;
    b.queued = false;
    b.in_flight = true;
  }
  s.queue.erase(s.queue.begin(), s.queue.begin() + static_cast<std::ptrdiff_t>(n));
  return items;
}

void Ledger::Acknowledge(uint32_t shard, Batch&& batch, uint64_t now_ns) {
  Shard& s = shards_[shard];
  s.known_seq = static_cast<int64_t>(batch.seq);
  s.journal.push_back({.seq = batch.seq,
                       .first_ns = batch.first_ns,
                       .acked_ns = now_ns,
                       .use_ns = batch.oldest_ns,
                       .items = std::move(batch.items)});
}

size_t Ledger::Rewind(uint32_t shard, int64_t last_seq, Batch&& refused) {
  Shard& s = shards_[shard];
  s.known_seq = last_seq;
  for (const BatchItem& item : refused.items) {
    Bucket& b = buckets_[item.bucket];
    b.in_flight = false;
    ++b.journal_pins;
    b.again += item.tokens;
  }
  s.again.push_front({.seq = refused.seq,
                      .first_ns = refused.first_ns,
                      .use_ns = refused.oldest_ns,
                      .items = std::move(refused.items)});
  size_t n = 0;
  for (; !s.journal.empty() && static_cast<int64_t>(s.journal.back().seq) > last_seq; ++n) {
    for (const BatchItem& item : s.journal.back().items) {
      buckets_[item.bucket].again += item.tokens;
    }
    s.again.push_front(std::move(s.journal.back()));
    s.journal.pop_back();
  }
  return n;
}

JournalEntry Ledger::TakeAgain(uint32_t shard) {
  Shard& s = shards_[shard];
  JournalEntry entry = std::move(s.again.front());
  s.again.pop_front();
  for (const BatchItem& item : entry.items) {
    Bucket& b = buckets_[item.bucket];
    b.again -= item.tokens;
    --b.journal_pins;
    b.in_flight = true;
  }
  return entry;
}

void Ledger::TrimJournal(uint32_t shard, uint64_t now_ns) {
  std::deque<JournalEntry>& journal = shards_[shard].journal;
  while (!journal.empty() && now_ns > journal.front().acked_ns + kJournalNs) {
    const std::vector<BatchItem>& items = journal.front().items;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i + kAhead < items.size()) Prefetch(items[i + kAhead].bucket);
      --buckets_[items[i].bucket].journal_pins;
    }
    journal.pop_front();
  }
}

void Ledger::Forget(uint64_t now_ns, harvest::Harvester& harvester) {
  const uint64_t elapsed_ns = std::min(now_ns - std::min(now_ns, forgot_ns_), kForgetTurnNs);
  const auto by_time = static_cast<size_t>(static_cast<double>(buckets_.size()) *
                                           static_cast<double>(elapsed_ns) / kForgetTurnNs);
  if (forgot_ns_ == 0 || by_time != 0) forgot_ns_ = now_ns;
  if (free_.size() == buckets_.size()) return;
  const size_t due = by_time + kForgetPerNew * std::exchange(new_since_forget_, 0);
  for (size_t i = 0; i < std::min(due, buckets_.size()); ++i) {
    if (forget_at_ >= buckets_.size()) forget_at_ = 0;
    const BucketId id = forget_at_++;
    Bucket& b = buckets_[id];
    if (b.text.empty() || b.queued || b.in_flight || b.journal_pins != 0 || b.pending != 0 ||
        now_ns < b.touched_ns + kForgetNs || b.is_banned(now_ns)) {
      continue;
    }
    harvester.Forget(b.place);
    by_text_.erase(b.is_mirror ? MirrorKey(b.text, b.shard) : b.text);
    b = Bucket{};
    free_.push_back(id);
  }
}

void Ledger::Rebind(const config::CompiledRules& rules) {
  for (BucketId id = 0; id < buckets_.size(); ++id) {
    Bucket& b = buckets_[id];
    if (b.text.empty()) continue;
    b.rule = rules.Find(shm::LabelOf(b.text));
    if (b.rule == nullptr) continue;
    b.limit = b.rule->LimitOf(shm::LabelOf(b.text));
    b.kind = b.rule->kind;
    const std::shared_ptr<const config::CalendarTable> former = std::move(b.calendar);
    b.calendar = b.rule->calendar;
    if (former == nullptr || b.calendar == nullptr || former == b.calendar) continue;
    b.window_end_ns = config::Moved(*former, *b.calendar, b.window_end_ns);
    b.told_end_ns = config::Moved(*former, *b.calendar, b.told_end_ns);
  }
}

uint64_t Ledger::OldestUseNs(const Shard& shard) const {
  uint64_t oldest = shard.batch && shard.batch->oldest_ns != 0 ? shard.batch->oldest_ns : 0;
  if (!shard.again.empty() && shard.again.front().use_ns != 0) {
    const uint64_t since = shard.again.front().use_ns;
    oldest = oldest == 0 ? since : std::min(oldest, since);
  }
  if (!shard.queue.empty()) {
    // Queued in order of arrival: the head is among the oldest.
    const uint64_t since = buckets_[shard.queue.front()].pending_since_ns;
    if (since != 0) oldest = oldest == 0 ? since : std::min(oldest, since);
  }
  return oldest;
}

size_t Ledger::pending_buckets() const {
  size_t n = 0;
  for (const Shard& s : shards_) {
    n += s.queue.size() + (s.batch ? s.batch->items.size() : 0);
    for (const JournalEntry& entry : s.again) n += entry.items.size();
  }
  return n;
}

}  // namespace sluice::reconcile
