#include "daemon/reconcile/reconciler.h"

#include <algorithm>
#include <utility>

#include "daemon/log.h"
#include "daemon/reconcile/batch.h"
#include "daemon/reconcile/windows.h"
#include "shm/take.h"

namespace sluice::reconcile {
namespace {

constexpr uint64_t kHostsTurnNs = kGenerationUs * 1000;
constexpr int kLeastJump = 4;  // tokens

uint64_t Jittered(uint64_t ns, double random) {
  return ns / 2 + static_cast<uint64_t>(static_cast<double>(ns) / 2 * random);
}

}  // namespace

Reconciler::Reconciler(ReconcilerOptions options, const shm::MappedBuckets* buckets,
                       shm::ControlWriter* control, Transport* transport,
                       std::function<double()> random)
    : options_(std::move(options)),
      buckets_(buckets),
      control_(control),
      transport_(transport),
      random_(std::move(random)),
      harvester_(buckets, control->info().hash_key, options_.shard_count, options_.use_since_ns),
      ledger_(shards()) {
  OpenKeeper();
}

void Reconciler::SetRules(std::shared_ptr<const config::CompiledRules> rules, uint64_t now_ns) {
  now_ns_ = now_ns;
  // What came under the former rules is believed by their measure: a lower limit could not have
  // admitted it.
  if (rules_ != nullptr) {
    Harvest(now_ns);
    if (rules_->seq() == rules->seq()) MoveWindows(*buckets_, *rules_, *rules);
  }
  rules_ = std::move(rules);
  ledger_.Rebind(*rules_);
  RebindBans();
  if (keeper_ != nullptr) keeper_->SetRules(*rules_, now_ns);
  if (places_ != nullptr) places_->SetRules(*rules_, now_ns);
  if (homes_ != nullptr) homes_->SetRules(*rules_);
  harvester_.SetRules(rules_);
  has_strict_ = false;
  totals_by_id_.clear();
  for (const config::CompiledRule& rule : rules_->rules()) {
    totals_by_id_.push_back(&totals_[rule.label]);
    has_strict_ = has_strict_ || rule.is_lent();
  }
}

Reconciler::Primary& Reconciler::PrimaryAt(uint32_t index) {
  if (index >= primaries_.size()) primaries_.resize(index + 1);
  return primaries_[index];
}

Breaker::State Reconciler::breaker(uint32_t primary) const {
  return primary < primaries_.size() ? primaries_[primary].breaker.state()
                                     : Breaker::State::kClosed;
}

uint32_t Reconciler::ShardsOf(uint32_t primary) const {
  uint32_t n = 0;
  for (uint32_t i = 0; transport_ != nullptr && i < shards(); ++i) {
    n += transport_->PrimaryOf(i) == primary ? 1 : 0;
  }
  return n;
}

uint64_t Reconciler::IntervalNs() const {
  const double primaries =
      transport_ == nullptr ? 1 : std::max<double>(1, transport_->primary_count());
  const double by_fleet =
      static_cast<double>(hosts_) * shards() / (kCallsPerPrimary * primaries) * 1e9;
  return std::max(options_.flush_interval_ns, static_cast<uint64_t>(by_fleet));
}

void Reconciler::Tick(uint64_t now_ns) {
  now_ns_ = now_ns;
  if (started_ns_ == 0) {
    started_ns_ = now_ns;
    for (uint32_t i = 0; i < shards(); ++i) {
      SetMode(i, options_.has_redis ? shm::ShardMode::kStale : shm::ShardMode::kHealthy, now_ns);
    }
  }
  stats_.interval_ns = IntervalNs();
  if (now_ns >= hosts_turn_ns_ + kHostsTurnNs) {
    hosts_turn_ns_ = now_ns;
    // Without replies, as in an outage, the last view stands.
    if (hosts_next_ != 0) {
      hosts_ = hosts_next_;
      control_->SetHosts(static_cast<uint64_t>(hosts_));
    }
    hosts_next_ = 0;
  }
  Harvest(now_ns);
  ExpireBans();
  ledger_.Forget(now_ns, harvester_);
  if (!options_.has_redis) return;
  keeper_->Tick(now_ns);
  places_->Tick(now_ns);
  if (homes_ != nullptr) homes_->Tick(now_ns);
  ExpireShares(now_ns);
  farewells_.Queue(now_ns, &ledger_);
  uint64_t oldest_ns = 0;
  for (uint32_t i = 0; i < shards(); ++i) {
    FlushDue(i, now_ns, /*at_once=*/false);
    ledger_.TrimJournal(i, now_ns);
    Judge(i, now_ns);
    const uint64_t use_ns = ledger_.OldestUseNs(ledger_.shard(i));
    if (use_ns != 0 && i < options_.shard_count)
      oldest_ns = oldest_ns == 0 ? use_ns : std::min(oldest_ns, use_ns);
  }
  stats_.oldest_use_ns = oldest_ns != 0 && now_ns > oldest_ns ? now_ns - oldest_ns : 0;
  Probe(now_ns);
}

// The two header words are this daemon's own: relaxed orders nothing.
void Reconciler::Harvest(uint64_t now_ns) {
  harvester_.Harvest(now_ns, *this);
  harvester_.Sweep(now_ns,
                   {.now_ns = now_ns,
                    .grace_ns = control_->header().grace_ns.load(std::memory_order_relaxed),
                    .max_debt_ns = control_->header().max_debt_ns.load(std::memory_order_relaxed)},
                   *this);
  last_harvest_ns_ = now_ns;
}

uint32_t Reconciler::OnBucket(const harvest::Place& place, harvest::Named named) {
  if (keeper_ != nullptr && named.rule->kind == shm::Kind::kLease) {
    return kStrictBucket | keeper_->OnBucket(place, std::move(named), now_ns_);
  }
  const uint32_t shard = named.shard;
  const uint16_t rule = named.rule->id;
  if (places_ != nullptr && named.rule->is_lent()) places_->OnBucket(place, named, now_ns_);
  const BucketId id = ledger_.Intern(place, std::move(named), now_ns_);
  // A host without a view of a key takes its part of the fleet while nobody can tell more.
  Bucket& b = ledger_.bucket(id);
  if (b.reported_ns == 0 && hosts_ > 1 && ledger_.shard(shard).mode == shm::ShardMode::kEmergency) {
    b.hosts = hosts_;
    b.inv_share = InverseShare(1.0 / static_cast<double>(hosts_));
  }
  Recall(b, now_ns_);
  // The claimer's hint may be another's, or of an earlier policy.
  b.forced = IsForced(b);
  shm::SetAux(buckets_->slots()[place.slot], place.key, b.inv_share, b.shown_shard(), rule);
  return id;
}

void Reconciler::Count(const config::CompiledRule& rule, int64_t tokens, uint64_t denied,
                       bool is_degraded) {
  RuleTotals& totals = *totals_by_id_[rule.id];
  const uint64_t allowed = tokens > 0 ? static_cast<uint64_t>(tokens) : 0;
  totals.allowed += allowed;
  totals.denied += denied;
  if (is_degraded) totals.degraded += allowed + denied;
  stats_.harvested_tokens += allowed;
}

void Reconciler::OnUse(uint32_t bucket, int64_t tokens, uint64_t denied, uint64_t need) {
  last_use_ns_ = now_ns_;
  if ((bucket & kStrictBucket) != 0) {
    return OnStrictUse(bucket & ~kStrictBucket, tokens, denied, need);
  }
  Bucket& b = ledger_.bucket(bucket);
  if (b.rule != nullptr) {
    const bool is_emergency = ledger_.shard(b.shard).mode == shm::ShardMode::kEmergency;
    Count(*b.rule, tokens, denied, options_.has_redis && (b.forced || is_emergency));
    if (near_.IsNews(b, *buckets_, now_ns_)) {
      ++totals_by_id_[b.rule->id]->near_limit;
      log::Debug("near its limit: %s", b.outer_name());
    }
    if (b.is_penal()) Penalise(bucket, b, denied);
  }
  if (places_ != nullptr && b.rule != nullptr && b.rule->is_lent()) {
    last_strict_ns_ = now_ns_;
    places_->OnUse(b.text, tokens, denied, need, now_ns_);
  }
  if (!options_.has_redis || b.kind == shm::Kind::kInFlight) {  // nothing to fold
    KeepOwnQuota(b);
    b.touched_ns = now_ns_;
    return;
  }
  const uint64_t since_ns = last_harvest_ns_ != 0 ? last_harvest_ns_ : now_ns_;
  ledger_.AddUse(bucket, tokens, denied, since_ns, now_ns_);
  WindowSeen seen;
  if (tokens != 0 && shm::IsWindow(b.kind)) {
    seen = LookAtWindow(b, *buckets_);
    NoteWindowUse(b, tokens, seen);
  }
  if (tokens != 0 && b.kind == shm::Kind::kSlidingLog) NoteLogUse(b, tokens, now_ns_);
  if (IsJump(b, now_ns_)) ledger_.shard(b.shard).urgent = true;
  if (options_.region_count > 1) Exchange(b, tokens, denied, since_ns, seen);
}

void Reconciler::OnOverflow(uint16_t rule, int64_t tokens) {
  const config::CompiledRule* r = rules_->ById(rule);
  if (r == nullptr) return;
  totals_[r->label].allowed += static_cast<uint64_t>(tokens);
  stats_.overflow_tokens += static_cast<uint64_t>(tokens);
}

// Demand jumps, or a bucket nears its limit: twice what was expected and a few more, and a quarter
// of the room that was left.
bool Reconciler::IsJump(const Bucket& b, uint64_t now_ns) const {
  if (b.pending < kLeastJump) return false;  // as is usual, and known from the bucket's first line
  const double elapsed_s = static_cast<double>(now_ns - std::min(b.reported_ns, now_ns)) / 1e9;
  const double expected = b.demand.rate() * std::min(elapsed_s, 1.0);
  const double pending = static_cast<double>(b.pending);
  const double used_ns = pending * static_cast<double>(b.limit.interval_ns);
  const double room_ns =
      b.limit.tau_ns > b.debt_ns ? static_cast<double>(b.limit.tau_ns - b.debt_ns) : 0;
  return pending >= 2 * expected + kLeastJump && used_ns >= room_ns / 4;
}

void Reconciler::FlushDue(uint32_t index, uint64_t now_ns, bool at_once) {
  Shard& s = ledger_.shard(index);
  if (s.batch) {
    if (!s.batch->waiting && now_ns >= s.retry_ns) Send(index, now_ns);
    return;
  }
  if (!s.again.empty()) {
    if (now_ns >= s.retry_ns && MaySend(index, now_ns)) SendAgain(index, now_ns);
    return;
  }
  if (s.queue.empty()) return;
  if (!(at_once || IsDue(index, now_ns)) || now_ns < s.retry_ns || !MaySend(index, now_ns)) return;
  uint64_t oldest_ns = 0;
  std::vector<BatchItem> items = ledger_.TakeQueue(index, &oldest_ns);
  s.batch = Freeze(ledger_, std::move(items), options_.instance, s.next_seq++, /*time_us=*/0,
                   now_ns, IntervalOf(index));
  s.batch->oldest_ns = oldest_ns;
  s.urgent = index >= options_.shard_count && !s.queue.empty();  // the rest of a full exchange
  s.queued_since_ns = now_ns;
  ++stats_.batches;
  stats_.batched_buckets += s.batch->items.size();
  Send(index, now_ns);
}

// While the breaker is open use stays pending, where it can still be merged and aged. A half-open
// one lets a single batch through.
bool Reconciler::MaySend(uint32_t index, uint64_t now_ns) {
  const uint32_t primary = transport_->PrimaryOf(index);
  if (primary == kNoPrimary) return false;
  const Breaker& breaker = PrimaryAt(primary).breaker;
  return breaker.state() == Breaker::State::kClosed || breaker.WantsTrial(now_ns);
}

void Reconciler::Send(uint32_t index, uint64_t now_ns) {
  Shard& s = ledger_.shard(index);
  Batch& batch = *s.batch;
  if (now_ns > batch.first_ns + kGiveUpNs) {
    ++stats_.given_up;
    for (const BatchItem& item : batch.items) ledger_.bucket(item.bucket).in_flight = false;
    s.batch.reset();
    return;
  }
  const uint32_t primary = transport_->PrimaryOf(index);
  if (primary == kNoPrimary || !PrimaryAt(primary).breaker.Allow(now_ns)) {
    s.retry_ns = now_ns + kResendMinNs;
    return;
  }
  // Nothing is left to send again: then whatever it knows will do.
  const std::string args = ArgsOf(batch, s.journal.empty() ? -1 : s.known_seq, now_ns);
  if (batch.sends++ > 0) ++stats_.resends;
  batch.waiting = true;
  batch.sent_ns = now_ns;
  PrimaryAt(primary).asked_ns = now_ns;
  transport_->Call(index, args, batch.arg_count, batch.seq);
}

void Reconciler::Probe(uint64_t now_ns) {
  for (uint32_t i = 0; i < transport_->primary_count(); ++i) {
    Primary& p = PrimaryAt(i);
    p.breaker.set_longest_ns(LongestBackoffNs(HostsSeen()));
    const bool known = transport_->IsKnown(i);
    if (known && !p.known) p.breaker.OnReached(now_ns);
    p.known = known;
    if (p.pinging || now_ns < p.asked_ns + kProbeNs) continue;
    if (ShardsOf(i) == 0) continue;
    if (!p.breaker.Allow(now_ns)) continue;
    p.pinging = true;
    p.asked_ns = now_ns;
    transport_->Ping(i, now_ns);
  }
}

void Reconciler::OnPong(uint32_t primary, bool well, bool hard, uint64_t now_ns) {
  Primary& p = PrimaryAt(primary);
  p.pinging = false;
  if (well) {
    p.breaker.OnSuccess(now_ns, now_ns - std::min(p.asked_ns, now_ns), SlowNs(primary));
  } else {
    p.breaker.OnFailure(now_ns, hard, random_());
  }
}

void Reconciler::OnFailure(uint32_t shard, uint64_t token, CallOutcome outcome, uint32_t primary,
                           uint64_t now_ns) {
  now_ns_ = now_ns;
  if (primary != kNoPrimary) {
    PrimaryAt(primary).breaker.OnFailure(now_ns, outcome == CallOutcome::kHard, random_());
  }
  if ((token & kLoanTokens) != 0) return;  // it is sent again in its time
  Shard& s = ledger_.shard(shard);
  if (!s.batch || s.batch->seq != token) return;
  // Whether it was applied is unknown: the same again, later (B2).
  s.batch->waiting = false;
  s.backoff_ns = std::clamp(s.backoff_ns * 2, kResendMinNs, kResendMaxNs);
  if (outcome == CallOutcome::kHard) s.backoff_ns = kResendMaxNs;
  s.retry_ns = now_ns + Jittered(s.backoff_ns, random_());
}

void Reconciler::OnReply(uint32_t shard, uint64_t token, const redis::Reply& reply,
                         uint32_t primary, uint64_t now_ns) {
  now_ns_ = now_ns;
  if ((token & kLoanTokens) != 0) return OnLoanReply(shard, token, reply, primary, now_ns);
  Shard& s = ledger_.shard(shard);
  if (!s.batch || s.batch->seq != token) return;
  const absl::StatusOr<FoldReply> fold = ParseFoldReply(reply, s.batch->items);
  // A refusal that names no batch as missing would be repeated for ever.
  if (!fold.ok() || (fold->refused && fold->last_seq >= s.known_seq)) {
    ++stats_.bad_replies;
    OnFailure(shard, token, CallOutcome::kHard, primary, now_ns);
    return;
  }
  if (primary != kNoPrimary) {
    PrimaryAt(primary).breaker.OnSuccess(now_ns, now_ns - std::min(s.batch->sent_ns, now_ns),
                                         SlowNs(primary));
  }
  s.backoff_ns = s.retry_ns = 0;
  if (fold->refused) return OnRefusal(shard, fold->last_seq, now_ns);
  Batch batch = *std::exchange(s.batch, std::nullopt);
  if (fold->applied && fold->last_seq < s.known_seq) RestoreQuotas(shard, now_ns);
  for (size_t i = 0; i < batch.items.size(); ++i) {
    const BatchItem& item = batch.items[i];
    // First the books, then the slot, whose place they tell.
    if (i + 2 * kAhead < batch.items.size()) {
      ledger_.PrefetchAll(batch.items[i + 2 * kAhead].bucket);
    }
    if (i + kAhead < batch.items.size()) {
      const uint32_t slot = ledger_.bucket(batch.items[i + kAhead].bucket).place.slot;
      __builtin_prefetch(&buckets_->slots()[slot], 1);
    }
    Bucket& b = ledger_.bucket(item.bucket);
    const BucketState& told = fold->buckets[i];
    BucketState state =
        item.is_window && b.is_dated() ? DatedState(b, told, fold->now_us, now_ns) : told;
    b.in_flight = false;
    ++b.journal_pins;
    if (item.restore != 0 && b.restore == item.restore) b.restore = 0;
    if (b.restore != 0) RaiseToRestored(b, now_ns, &state);
    if (item.is_window && b.is_dated()) KeepQuota(b, told, fold->now_us);
    // A duplicate's reply does not tell in which generation our demand was counted.
    b.said_milli = item.said_milli;
    b.said_gen = fold->applied ? fold->gen : -1;
    b.hosts = state.hosts;
    hosts_next_ = std::max(hosts_next_, state.hosts);
    b.others =
        static_cast<double>(std::max<int64_t>(state.demand_milli - item.said_milli, 0)) / kMilli;
    if (shard < options_.shard_count && std::max(hosts_, b.hosts) > 1) {
      farewells_.OnTold(item.bucket, b, stats_.interval_ns);
    }
    if (item.is_window) {
      b.debt_ns = WindowDebtNs(b, state);
      FoldBackWindow(b, item, state, now_ns);
    } else {
      b.debt_ns = state.debt_us * 1000;
      if (item.is_penal) FollowBan(item.bucket, b, item, state);
      FoldBack(b, now_ns);
    }
  }
  ledger_.Acknowledge(shard, std::move(batch), now_ns);
  if (!s.again.empty()) SendAgain(shard, now_ns);
}

// Redis knows less than it acknowledged: a failover or a flush lost batches (B3).
void Reconciler::OnRefusal(uint32_t index, int64_t last_seq, uint64_t now_ns) {
  Shard& s = ledger_.shard(index);
  Batch batch = *std::exchange(s.batch, std::nullopt);
  stats_.requeues += ledger_.Rewind(index, last_seq, std::move(batch));
  RestoreQuotas(index, now_ns);
  SendAgain(index, now_ns);
}

void Reconciler::SendAgain(uint32_t index, uint64_t now_ns) {
  Shard& s = ledger_.shard(index);
  s.batch = FreezeAgain(ledger_, ledger_.TakeAgain(index), options_.instance, /*time_us=*/0, now_ns,
                        IntervalOf(index));
  Send(index, now_ns);
}

// Global state into the word: what Redis holds, and what this host used and has not reported.
void Reconciler::FoldBack(Bucket& b, uint64_t now_ns) {
  if (!RenewShare(b, now_ns) || b.kind != shm::Kind::kTokenBucket) return;
  if (b.is_banned(now_ns)) return KeepBan(b);
  const uint64_t unit =
      b.limit.interval_ns * uint64_t{b.inv_share != 0 ? b.inv_share : shm::aux::kShareOne};
  // Without debt there the bucket has been full at least once since: what waits here is then added
  // where it happened, as the script will do, else an outage's use would block the bucket until it
  // is reported.
  const bool ages = b.debt_ns == 0 && b.pending > 0 && b.pending_since_ns != 0;
  const uint64_t base_ns = ages ? std::min(b.pending_since_ns, now_ns) : now_ns + b.debt_ns;
  shm::FoldWord(
      buckets_->slots()[b.place.slot], b.place.key, now_ns, base_ns, b.pending + b.again,
      b.limit.tau_ns + b.limit.debt_max_ns, [unit](uint64_t n) {
        const unsigned __int128 cost = static_cast<unsigned __int128>(n) * unit;
        return static_cast<uint64_t>(std::min<unsigned __int128>(cost >> 16, shm::kMaxSpanNs));
      });
}

void Reconciler::FoldBackWindow(Bucket& b, const BatchItem& item, const BucketState& state,
                                uint64_t now_ns) {
  const int64_t on_the_way = NoteTold(b, item, state, stats_.interval_ns, now_ns);
  if (!RenewShare(b, now_ns)) return;
  if (shm::IsWindow(b.kind)) {
    FoldWindow(b, state, on_the_way, *buckets_, EndsOf(*b.rule), now_ns);
  } else if (b.kind == shm::Kind::kSlidingLog) {
    FoldLog(b, state, on_the_way, *buckets_, now_ns);
  }
}

// One word per shard, for every client of this host: healthy, stale or emergency.
void Reconciler::Judge(uint32_t index, uint64_t now_ns) {
  Shard& s = ledger_.shard(index);
  const uint64_t use_ns = ledger_.OldestUseNs(s);
  const uint64_t age_ns = use_ns != 0 && now_ns > use_ns ? now_ns - use_ns : 0;
  const uint32_t primary = transport_->PrimaryOf(index);
  const Breaker* breaker = primary == kNoPrimary ? nullptr : &PrimaryAt(primary).breaker;
  const bool cut = breaker == nullptr || breaker->state() != Breaker::State::kClosed;
  const bool starting = now_ns < started_ns_ + kStartGraceNs;
  const uint64_t interval_ns = IntervalOf(index);
  const bool old = age_ns > std::max(kEmergencyMinNs, kEmergencyIntervals * interval_ns);
  const bool stale = age_ns > kStaleIntervals * interval_ns || cut || !breaker->HasSucceeded();
  if (old || (cut && !starting) || IsForced(index)) {
    SetMode(index, shm::ShardMode::kEmergency, now_ns);
  } else if (s.mode == shm::ShardMode::kEmergency) {
    if (!stale && breaker->IsCalm(now_ns)) SetMode(index, shm::ShardMode::kHealthy, now_ns);
  } else {
    SetMode(index, stale ? shm::ShardMode::kStale : shm::ShardMode::kHealthy, now_ns);
  }
}

void Reconciler::SetMode(uint32_t index, shm::ShardMode mode, uint64_t now_ns) {
  Shard& s = ledger_.shard(index);
  if (s.mode == mode && s.mode_since_ns != 0) return;
  if (s.mode == shm::ShardMode::kEmergency) --emergencies_;
  if (mode == shm::ShardMode::kEmergency) ++emergencies_;
  s.mode = mode;
  s.mode_since_ns = now_ns;
  control_->SetShard(index, mode, now_ns);
}

void Reconciler::FlushAll(uint64_t now_ns) {
  now_ns_ = now_ns;
  Harvest(now_ns);
  for (uint32_t i = 0; options_.has_redis && i < shards(); ++i) {
    FlushDue(i, now_ns, /*at_once=*/true);
  }
}

}  // namespace sluice::reconcile
