#include "daemon/lease/keeper.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "shm/bucket_name.h"
#include "shm/take.h"

namespace sluice::lease {
namespace {

constexpr size_t kForgetPerTick = 64;
constexpr uint64_t kLongestSleepNs = 1'000'000'000;
constexpr double kShareOne = 65536;

Terms TermsOf(const config::CompiledRule& rule) {
  const absl::StatusOr<Terms> terms =
      MakeTerms(rule.limit.limit, rule.limit.period_ns / 1000, rule.limit.burst, rule.wait_ns,
                rule.strict ? 0 : kSpareUs);
  return terms.ok() ? *terms : Terms{};
}

bool IsSame(const Terms& a, const Terms& b) {
  return a.limit == b.limit && a.unit_us == b.unit_us && a.burst == b.burst &&
         a.wait_ns == b.wait_ns && a.spare_us == b.spare_us;
}

std::string HomeOf(const config::CompiledRule& rule) {
  return rule.home == nullptr ? std::string() : rule.home->mark();
}

}  // namespace

Keeper::Keeper(const Options& options, const shm::MappedBuckets* buckets, Link* link,
               std::function<double()> random)
    : options_(options),
      buckets_(buckets),
      link_(link),
      random_(std::move(random)),
      shards_(options.shard_count) {}

Session& Keeper::SessionOf(uint32_t shard) {
  std::unique_ptr<Session>& session = shards_[shard].session;
  if (session == nullptr) {
    session = std::make_unique<Session>(options_.instance, options_.sync_ns / 1000);
  }
  return *session;
}

void Keeper::Begin(Book& b, const config::CompiledRule& rule) {
  b.rule = &rule;
  b.terms = TermsOf(rule);
  b.home = HomeOf(rule);
  b.shard = link_->HomeShard(rule, b.text, b.shard);
  const double factor = rule.factor_q16 == 0 ? 1 : kShareOne / rule.factor_q16;
  b.lease.emplace(Lease::Options{b.terms, options_.sync_ns, link_->HostsSeen(), factor});
}

uint32_t Keeper::OnBucket(const harvest::Place& place, harvest::Named&& named, uint64_t now_ns) {
  const uint32_t id = books_.Open(named.text);
  Book& b = books_[id];
  b.wire = named.wire.empty() ? b.text : std::move(named.wire);
  b.touched_ns = now_ns;
  if (!b.lease.has_value()) {
    b.shard = named.shard;
    Begin(b, *named.rule);
    b.shown_shard = b.shard;
  }
  b.rule = named.rule;
  if (b.place.key != place.key || b.place.slot != place.slot || !b.purse.is_open()) {
    Stand(b, place, now_ns);
  }
  Publish(b, now_ns);
  return id;
}

// The key stands somewhere else now: what can be taken out of the former word goes along (K4).
void Keeper::Stand(Book& b, const harvest::Place& place, uint64_t now_ns) {
  Sync(b, now_ns);
  Note(b, b.purse.TakeOut(shm::credits::kMax), now_ns);
  b.place = place;
  uint64_t unsettled = 0;
  if (b.purse.Open(&buckets_->slots()[place.slot], place.key, &unsettled)) {
    if (b.terms.may_overdraw()) b.lease->Observe(unsettled, 0, 1, now_ns);
    Put(b, now_ns);
  } else {
    b.place.key = 0;
  }
}

void Keeper::OnUse(uint32_t bucket, uint64_t denied, uint64_t need, uint64_t alone,
                   uint64_t now_ns) {
  Book& b = books_[bucket];
  if (b.text.empty() || b.rule == nullptr) return;
  b.touched_ns = now_ns;
  Sync(b, now_ns);
  if (alone > 0) b.lease->SpendAlone(alone, now_ns);
  b.lease->Observe(0, denied, need, now_ns);
  Visit(bucket, now_ns);
}

void Keeper::SetRules(const config::CompiledRules& rules, uint64_t now_ns) {
  for (Book& b : books_) {
    if (b.text.empty()) continue;
    const config::CompiledRule* const rule = rules.Find(shm::LabelOf(b.text));
    if (rule != nullptr && rule->kind == shm::Kind::kLease && IsSame(TermsOf(*rule), b.terms) &&
        HomeOf(*rule) == b.home) {
      b.rule = rule;
      continue;
    }
    // Redis counts what is held as out until its end.
    Note(b, b.purse.TakeOut(shm::credits::kMax), now_ns);
    if (rule != nullptr && rule->kind == shm::Kind::kLease) {
      b.queued = false;  // where it stood may be no queue of its shard any more
      Begin(b, *rule);
    } else {
      b.rule = nullptr;
      b.lease.reset();
    }
    CountHeld(b);
  }
}

// K1 and K3: all that is asked of a lease comes behind this, at the same time.
void Keeper::Sync(Book& b, uint64_t now_ns) {
  Note(b, b.purse.Sync(b.terms.may_overdraw() ? 0 : now_ns), now_ns);
}

void Keeper::Note(Book& b, const shm::Purse::Change& change, uint64_t now_ns) {
  if (!b.lease.has_value()) return;
  b.lease->Observe(change.spent, 0, 1, now_ns);
  b.lease->Restore(change.back);
  b.lease->Lose(change.lost);
  stats_.lost_tokens += change.lost;
  if (change.lost != 0 && !b.purse.is_open()) b.place.key = 0;
}

void Keeper::Visit(uint32_t id, uint64_t now_ns) {
  Book& b = books_[id];
  if (b.rule == nullptr) return;
  if (b.lease->Tick(now_ns, SessionOf(b.shard).rtt(), random_())) Queue(id);
  if (b.terms.may_overdraw()) Put(b, now_ns);
  CountHeld(b);
  Schedule(id, now_ns);
}

void Keeper::Schedule(uint32_t id, uint64_t now_ns) {
  Book& b = books_[id];
  if (b.lease->in_flight() || b.lease->IsIdle(now_ns)) {
    b.wake_ns = 0;
    return;
  }
  const uint64_t wake_ns = std::max(b.lease->NextTickNs(), now_ns + 1);
  if (b.wake_ns > now_ns && b.wake_ns <= wake_ns) return;
  b.wake_ns = wake_ns;
  timers_.emplace(wake_ns, id);
}

void Keeper::Queue(uint32_t id) {
  Book& b = books_[id];
  if (b.queued || b.lease->in_flight()) return;
  b.queued = true;
  shards_[b.shard].queue.push_back(id);
}

uint64_t Keeper::Tick(uint64_t now_ns) {
  while (!timers_.empty() && timers_.top().first <= now_ns) {
    const auto [at_ns, id] = timers_.top();
    timers_.pop();
    Book& b = books_[id];
    if (b.wake_ns != at_ns || b.text.empty() || b.rule == nullptr) continue;
    b.wake_ns = 0;
    Sync(b, now_ns);
    Visit(id, now_ns);
  }
  uint64_t next_ns = timers_.empty() ? now_ns + kLongestSleepNs : timers_.top().first;
  for (uint32_t shard = 0; shard < shards_.size(); ++shard) {
    Flush(shard, now_ns);
    const Shard& s = shards_[shard];
    if (s.session == nullptr) continue;
    next_ns = std::min(next_ns, s.session->NextResendNs());
    const uint64_t start_ns = s.session->NextStartNs();
    if (!s.queue.empty() && start_ns > now_ns) next_ns = std::min(next_ns, start_ns);
  }
  Forget(now_ns);
  return std::max(next_ns, now_ns + 1);
}

void Keeper::Flush(uint32_t shard, uint64_t now_ns) {
  Shard& s = shards_[shard];
  if (s.session == nullptr) return;
  Session& session = *s.session;
  if (session.call() != nullptr) {
    if (now_ns < session.NextResendNs()) return;
    if (!link_->MayLend(shard, now_ns) || !session.Resend(now_ns)) return;
    ++stats_.resends;
    return Send(shard);
  }
  if (s.queue.empty() || now_ns < session.NextStartNs() || !link_->MayLend(shard, now_ns)) return;
  std::vector<Asked> asked;
  std::vector<uint32_t> later;
  s.asked.clear();
  size_t n = 0;
  for (; n < s.queue.size() && asked.size() < kMaxCallBuckets; ++n) {
    Book& b = books_[s.queue[n]];
    // So that a turn is over before its number comes again.
    if (now_ns < b.reported_ns + shm::credits::kReportGapNs) {
      later.push_back(s.queue[n]);
      continue;
    }
    b.queued = false;
    if (b.rule == nullptr || b.shard != shard || b.lease->in_flight()) continue;
    asked.push_back({b.wire, b.terms, AskOf(b, now_ns), b.home});
    s.asked.push_back(s.queue[n]);
  }
  s.queue.erase(s.queue.begin(), s.queue.begin() + static_cast<std::ptrdiff_t>(n));
  s.queue.insert(s.queue.end(), later.begin(), later.end());
  if (asked.empty()) return;
  session.Start(asked, /*time_us=*/0, now_ns);
  ++stats_.calls;
  stats_.asked_buckets += asked.size();
  Send(shard);
}

void Keeper::Send(uint32_t shard) {
  const Call& call = *shards_[shard].session->call();
  link_->Lend(shard, call.args, call.seq);
}

// K2. The new turn begins before the request is built: what is reported as spent cannot be given
// back any more.
Ask Keeper::AskOf(Book& b, uint64_t now_ns) {
  Sync(b, now_ns);
  b.reported_ns = now_ns;
  Lease& lease = *b.lease;
  Ask ask = lease.Freeze(now_ns, SessionOf(b.shard).rtt(), random_());
  // Some may be out of the word already, since it ends a little before the lease.
  const uint64_t extra = std::min(b.purse.credits(), lease.allowance());
  const uint64_t inside = b.purse.credits() - extra;
  const uint64_t outside = lease.credits() - std::min(lease.credits(), inside);
  const uint64_t back = inside - std::min(lease.credits(), inside);
  const shm::Purse::Change change = b.purse.TakeOut(back);
  stats_.lost_tokens += change.lost;
  if (!b.purse.is_open()) b.place.key = 0;
  const uint64_t kept = b.purse.credits();
  lease.Settle(&ask, back, change.taken, kept - std::min(kept, extra) + outside);
  if (kept < extra) lease.Observe(extra - kept, 0, 1, now_ns);
  stats_.returned_tokens += ask.ret;
  CountHeld(b);
  return ask;
}

absl::Status Keeper::OnReply(uint32_t shard, uint64_t seq, const redis::Reply& reply,
                             uint64_t now_ns) {
  Shard& s = shards_[shard];
  if (s.session == nullptr || s.session->call() == nullptr) return absl::OkStatus();
  const uint64_t first_sent_ns = s.session->call()->first_sent_ns;
  const auto grants = s.session->OnReply(seq, reply, now_ns);
  if (!grants.ok()) {
    ++stats_.bad_replies;
    return grants.status();
  }
  if (!grants->has_value()) return absl::OkStatus();
  const std::vector<uint32_t> asked = std::exchange(s.asked, {});
  for (size_t i = 0; i < asked.size() && i < (*grants)->size(); ++i) {
    Book& b = books_[asked[i]];
    // One that moved has asked elsewhere since.
    if (b.text.empty() || b.shard != shard || !b.lease.has_value() || !b.lease->in_flight()) {
      continue;
    }
    const Away away = (**grants)[i].away;
    if (away != Away::kNot && b.rule != nullptr) link_->OnAway(shard, *b.rule, away);
    TakeGrant(b, (**grants)[i], first_sent_ns, now_ns);
    Visit(asked[i], now_ns);
  }
  Flush(shard, now_ns);
  return absl::OkStatus();
}

void Keeper::TakeGrant(Book& b, const Grant& grant, uint64_t first_sent_ns, uint64_t now_ns) {
  Sync(b, now_ns);
  Lease& lease = *b.lease;
  // What is no longer counted for this host may not be spent (L1).
  if (!grant.live) Note(b, b.purse.TakeOut(shm::credits::kMax), now_ns);
  lease.OnGrant(grant, first_sent_ns, now_ns, SessionOf(b.shard).rtt());
  stats_.lent_tokens += grant.tokens;
  link_->OnHosts(grant.hosts);
  Put(b, now_ns);
  Publish(b, now_ns);
}

// All that the lease may spend, to the lease's end, or until somebody looks again.
void Keeper::Put(Book& b, uint64_t now_ns) {
  if (b.terms.may_overdraw()) {
    const uint64_t wanted = b.lease->credits() + b.lease->Allowance(now_ns);
    const uint64_t there = b.purse.credits();
    if (wanted < there) Note(b, b.purse.TakeOut(there - wanted), now_ns);
    const uint64_t until_ns = std::max(b.lease->expiry_ns(), now_ns + kGenerationNs);
    return Note(b, b.purse.Put(wanted - std::min(wanted, there), until_ns), now_ns);
  }
  if (b.lease->expiry_ns() == 0) return;
  const uint64_t more = b.lease->credits() - std::min(b.purse.credits(), b.lease->credits());
  Note(b, b.purse.Put(more, b.lease->expiry_ns()), now_ns);
}

// For answers, emergencies and classes only: when more is expected, this host's share of the limit,
// whose shard's state counts, how full the bucket is. The key's load pairs with step 3 of the slot
// protocol; the second word carries its gen and orders nothing.
void Keeper::Publish(Book& b, uint64_t now_ns) {
  if (!b.purse.is_open() || b.rule == nullptr) return;
  shm::Slot& slot = buckets_->slots()[b.place.slot];
  if (slot.key.load(std::memory_order_acquire) != b.place.key) return;
  b.shown_shard = link_->ShownShard(*b.rule, b.text, b.shard);
  const double share = b.terms.may_overdraw() ? b.lease->lasting_share() : b.lease->share();
  auto inverse = static_cast<uint32_t>(
      share >= 1 ? 0 : std::lround(std::min(kShareOne / share, kShareOne * (kShareOne - 1))));
  if (b.rule->classed) {
    inverse &= ~shm::credits::fill::kMask;
    if (b.lease->is_told()) inverse |= shm::credits::fill::Make(b.lease->left(), b.terms.burst);
  }
  shm::SetAux(slot, b.place.key, inverse, b.shown_shard, b.rule->id);
  std::atomic<uint64_t>& second = buckets_->second()[b.place.slot];
  const uint16_t gen = shm::key::Gen(b.place.key);
  const uint64_t told_ns = std::max(b.lease->retry_ns(), now_ns);
  // In an emergency, which outlasts the first replies, clients count in it: never earlier then. One
  // that comes in between has the later word.
  uint64_t before = second.load(std::memory_order_relaxed);
  const uint64_t counted_ns =
      std::min(shm::credits::second::TimeNs(before, gen), now_ns + b.rule->limit.tau_ns);
  second.compare_exchange_strong(before,
                                 shm::credits::second::Make(gen, std::max(told_ns, counted_ns)),
                                 std::memory_order_relaxed);
}

void Keeper::ShowShards(uint64_t now_ns) {
  for (Book& b : books_) {
    if (b.rule != nullptr) Publish(b, now_ns);
  }
}

// A sum over all books would take too long for whoever watches.
void Keeper::CountHeld(Book& b) {
  const uint64_t held = b.lease.has_value() ? b.lease->credits() : 0;
  held_tokens_ += held - std::exchange(b.counted, held);
}

// Looks at a bounded part of the books per call.
void Keeper::Forget(uint64_t now_ns) {
  for (size_t i = 0; i < kForgetPerTick && !books_.empty(); ++i) {
    if (forget_at_ >= books_.size()) forget_at_ = 0;
    const uint32_t id = forget_at_++;
    Book& b = books_[id];
    if (b.text.empty() || b.queued || now_ns < b.touched_ns + kForgetNs ||
        (b.lease.has_value() && !b.lease->IsIdle(now_ns))) {
      continue;
    }
    if (b.terms.may_overdraw()) (void)b.purse.Leave();
    link_->OnForgotten(b.place);
    b.lease.reset();
    CountHeld(b);
    books_.Close(id);
  }
}

}  // namespace sluice::lease
