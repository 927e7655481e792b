// What follows denials: what each costs, and bans.
//
// A ban is debt in the bucket's own word, so that a check denies by itself, tells how long, and
// needs nobody: not this daemon, not Redis. What decides on one is the count of denials. Where
// Redis answers it counts those of all hosts (lua/fold.lua), and each host follows what it hears;
// without Redis, and while a bucket's shard is in emergency, each host counts its own. A host that
// has begun a ban by itself tells Redis once it can.
#include <algorithm>
#include <charconv>
#include <memory>

#include "daemon/config/private_keys.h"
#include "daemon/reconcile/reconciler.h"
#include "shm/bucket_name.h"
#include "shm/take.h"

namespace sluice::reconcile {
namespace {

constexpr uint64_t kRoundingNs = 1'000'000;  // Redis counts in microseconds
// Near its end a ban only rises. Clients go by the time that it is, this by the one at which it
// began to look: what they are admitted just after the end would else be taken back by a ban that
// is put into the word once more. Longer than a daemon waits for a CPU, shorter than any ban.
constexpr uint64_t kOnlyRisesNs = 250'000'000;

uint64_t CostNs(const config::CompiledRule& rule, uint64_t tokens) {
  return std::min(shm::CostNs(tokens, rule.limit.period_ns, rule.limit.limit), shm::kMaxSpanNs);
}

// At its end one request's cost has come back, as this host counts it.
uint64_t WordOfBan(const config::CompiledRule& rule, uint32_t inv_share, uint64_t until_ns) {
  const uint64_t tau_ns = rule.limit.tau_ns;
  const uint64_t unit_ns = shm::SharedCostNs(CostNs(rule, rule.cost), inv_share, tau_ns);
  return until_ns + tau_ns - std::min(tau_ns, unit_ns);
}

// Raises the word of the tenant `k` to what `target_of` makes of it; never lowers it. Word before
// key, in acquire: pairs with the claimer's step 4.
template <class TargetOf>
void Raise(shm::Slot& slot, uint64_t k, const TargetOf& target_of) {
  for (int attempt = 0; attempt < shm::kMaxRestarts; ++attempt) {
    uint64_t w = slot.word.load(std::memory_order_acquire);
    const bool is_its = slot.key.load(std::memory_order_acquire) == k;
    const uint64_t target = target_of(w);
    if (shm::word::IsDead(w) || !is_its || target <= w) return;
    if (slot.word.compare_exchange_strong(w, target, std::memory_order_acq_rel)) return;
  }  // contended: that denial costs nothing, and a ban is put back at the next look
}

// Adds to the debt of the tenant `k`, up to now + ceiling.
void AddDebt(shm::Slot& slot, uint64_t k, uint64_t now_ns, uint64_t cost_ns, uint64_t ceiling_ns) {
  Raise(slot, k,
        [=](uint64_t w) { return std::min(std::max(w, now_ns) + cost_ns, now_ns + ceiling_ns); });
}

}  // namespace

NameOfText::NameOfText(const std::string& text, uint32_t values) {
  size_t at = text.find(':');
  label_ = text.substr(0, at);
  while (at != std::string::npos && values_.size() < values) {
    const bool is_last = values_.size() + 1 == values;
    const size_t end = is_last ? std::string::npos : text.find(':', at + 1);
    std::string value;
    for (size_t i = at + 1; i < std::min(end, text.size()); ++i) {
      unsigned byte = 0;
      const char* const hex = text.data() + i + 1;
      const bool is_escaped = text[i] == '%' && i + 2 < text.size() &&
                              std::from_chars(hex, hex + 2, byte, 16).ptr == hex + 2;
      value += is_escaped ? static_cast<char>(byte) : text[i];
      if (is_escaped) i += 2;
    }
    values_.push_back(std::move(value));
    at = end;
  }
}

// Whether nobody but this host knows of the bucket's denials now.
bool Reconciler::DecidesAlone(const Bucket& b) const {
  return !options_.has_redis || ledger_.shard(b.shard).mode == shm::ShardMode::kEmergency;
}

// A daemon before this one may have left a ban, which only the word tells of. The flag orders
// nothing.
Penal& Reconciler::PenalOf(BucketId id, Bucket& b) {
  if (b.penal != nullptr) return *b.penal;
  b.penal = std::make_unique<Penal>();
  const uint64_t w = WordNow(b);
  // A hint: orders nothing.
  const uint64_t aux = buckets_->slots()[b.place.slot].aux.load(std::memory_order_relaxed);
  if (w == 0 || (aux & shm::aux::kBanned) == 0) return *b.penal;
  const uint64_t ahead_ns = WordOfBan(*b.rule, shm::aux::InvShare(aux), 0);
  if (w <= now_ns_ + ahead_ns) {  // it ended while nobody looked
    ShowBan(b, false);
    return *b.penal;
  }
  b.penal->until_ns = std::min(w - ahead_ns, now_ns_ + b.rule->penalty.for_ns);
  b.penal->own_ns = w;
  b.penal->is_shown = true;
  banned_.push_back(id);
  return *b.penal;
}

// Where it stands; 0 where it does not. The key after the word: pairs with step 4's CAS.
uint64_t Reconciler::WordNow(const Bucket& b) const {
  if (b.place.key == 0) return 0;
  const shm::Slot& slot = buckets_->slots()[b.place.slot];
  const uint64_t w = slot.word.load(std::memory_order_acquire);
  const bool is_its = slot.key.load(std::memory_order_acquire) == b.place.key;
  return is_its && !shm::word::IsDead(w) ? w : 0;
}

uint64_t Reconciler::BannedWordOf(const Bucket& b) const {
  return std::max(WordOfBan(*b.rule, b.inv_share, b.penal->until_ns), b.penal->own_ns);
}

// Puts the ban into the word, whatever was used or given back since.
void Reconciler::AssertBan(Bucket& b) {
  if (b.rule == nullptr || b.place.key == 0) return;
  shm::FoldWord(buckets_->slots()[b.place.slot], b.place.key, now_ns_, BannedWordOf(b),
                /*unreported=*/0, b.limit.tau_ns + b.limit.debt_max_ns,
                [](uint64_t) { return uint64_t{0}; });
}

// The same of a ban that stands as it did.
void Reconciler::KeepBan(Bucket& b) {
  if (b.penal->until_ns - now_ns_ > kOnlyRisesNs) return AssertBan(b);
  if (b.rule == nullptr || b.place.key == 0) return;
  const uint64_t target = std::min(BannedWordOf(b), now_ns_ + b.limit.tau_ns + b.limit.debt_max_ns);
  Raise(buckets_->slots()[b.place.slot], b.place.key, [target](uint64_t) { return target; });
}

// The flag is for answers, and orders nothing; the key's load pairs with step 3.
void Reconciler::ShowBan(Bucket& b, bool is_banned) {
  b.penal->is_shown = is_banned;
  if (b.place.key == 0) return;
  shm::Slot& slot = buckets_->slots()[b.place.slot];
  if (slot.key.load(std::memory_order_acquire) != b.place.key) return;
  if (is_banned) {
    slot.aux.fetch_or(shm::aux::kBanned, std::memory_order_relaxed);
  } else {
    slot.aux.fetch_and(~shm::aux::kBanned, std::memory_order_relaxed);
  }
}

void Reconciler::NoteBan(const Bucket& b, uint64_t for_ns) {
  if (ban_events_.size() < kMaxBanEvents) ban_events_.push_back({b.outer_name(), for_ns});
}

void Reconciler::OnClassDenied(const config::CompiledClass& c, uint64_t denied) {
  class_totals_[{c.rule, c.value}] += denied;
}

void Reconciler::Penalise(BucketId id, Bucket& b, uint64_t denied) {
  if (denied == 0 && b.penal == nullptr) return;
  const config::PenaltyConfig& penalty = b.rule->penalty;
  Penal& p = PenalOf(id, b);
  // Denials of a bucket that is banned are the ban's, and lengthen nothing; a refund shortens
  // nothing.
  if (b.is_banned(now_ns_)) return KeepBan(b);
  if (denied == 0) return;
  if (p.denied == 0 || now_ns_ > p.since_ns + penalty.within_ns) {
    p.denied = 0;
    p.since_ns = now_ns_;
  }
  p.denied += denied;
  if (!DecidesAlone(b)) {
    p.fresh += denied;
    return;
  }
  p.fresh = 0;
  if (penalty.after != 0 && p.denied >= penalty.after) {
    p.until_ns = now_ns_ + penalty.for_ns;
    p.own_ns = WordNow(b);
    p.denied = 0;
    p.is_own = options_.has_redis;
    ++totals_by_id_[b.rule->id]->bans;
    NoteBan(b, penalty.for_ns);
    AssertBan(b);
    ShowBan(b, true);
    banned_.push_back(id);
  } else if (penalty.deny_costs != 0 && b.place.key != 0) {
    const uint64_t most = (b.limit.tau_ns + shm::kMinDebtNs) /
                              std::max<uint64_t>(CostNs(*b.rule, penalty.deny_costs), 1) +
                          1;
    const uint64_t cost_ns = CostNs(*b.rule, std::min(denied, most) * penalty.deny_costs);
    AddDebt(buckets_->slots()[b.place.slot], b.place.key, now_ns_, cost_ns,
            b.limit.tau_ns + std::max(b.limit.tau_ns, shm::kMinDebtNs));
  }
}

// Redis has said whether the bucket is banned. What it cannot know yet stands: a ban that this host
// has begun, or one that an operator has ended here.
void Reconciler::FollowBan(BucketId id, Bucket& b, const BatchItem& item,
                           const BucketState& state) {
  if (state.banned_us == 0 && b.penal == nullptr) return;
  Penal& p = PenalOf(id, b);
  if (p.is_own && item.ban_until_ns == p.until_ns) p.is_own = false;
  if (p.is_own) return;
  const bool was_banned = p.is_shown;
  p.until_ns = state.banned_us == 0 || p.is_lifted ? 0 : now_ns_ + state.banned_us * 1000;
  const uint64_t told_ns = now_ns_ + b.debt_ns;
  const bool is_longer =
      b.rule != nullptr && told_ns > WordOfBan(*b.rule, /*inv_share=*/0, p.until_ns) + kRoundingNs;
  p.own_ns = is_longer ? told_ns : 0;
  if (state.began && b.rule != nullptr) {
    ++totals_by_id_[b.rule->id]->bans;
    NoteBan(b, state.banned_us * 1000);
  }
  if (p.until_ns != 0) p.denied = 0;
  ShowBan(b, p.until_ns != 0);
  if (p.is_shown && !was_banned) banned_.push_back(id);
}

// Takes the end of each ban from what clients are shown.
void Reconciler::ExpireBans() {
  std::erase_if(banned_, [&](BucketId id) {
    Bucket& b = ledger_.bucket(id);
    if (b.is_banned(now_ns_)) return false;
    if (b.penal != nullptr) {
      b.penal->until_ns = 0;
      ShowBan(b, false);
    }
    return true;
  });
}

// As of a bucket that was full all the time.
void Reconciler::Free(Bucket& b) {
  b.debt_ns = 0;
  if (b.place.key == 0) return;
  shm::FoldWord(buckets_->slots()[b.place.slot], b.place.key, now_ns_, now_ns_, /*unreported=*/0,
                /*ceiling_ns=*/0, [](uint64_t) { return uint64_t{0}; });
}

// The rules have changed: bans that stand are of their new numbers, and none outlasts what its rule
// says now. A rule without a penalty bans nobody.
void Reconciler::RebindBans() {
  for (BucketId id = 0; id < ledger_.bucket_slots(); ++id) {
    Bucket& b = ledger_.bucket(id);
    if (b.penal == nullptr) continue;
    if (b.is_banned(now_ns_) && b.is_penal()) {
      b.penal->until_ns = std::min(b.penal->until_ns, now_ns_ + b.rule->penalty.for_ns);
      AssertBan(b);
      continue;
    }
    if (b.is_banned(now_ns_)) Free(b);
    if (b.is_penal()) continue;
    ShowBan(b, false);
    std::erase(banned_, id);
    b.penal = nullptr;
  }
}

// Where a bucket stands that no harvest has named yet. Memory orders as of any look for a key.
harvest::Place Reconciler::PlaceOf(const config::CompiledRule& rule, const NameOfText& name) const {
  using Table = shm::SlotTable<std::atomic<uint64_t>>;
  const Table table(buckets_->slots(), buckets_->capacity(), buckets_->counters());
  shm::ParsedName folded = name.parsed();
  folded.is_folded = folded.count == 1;
  for (const shm::ParsedName& tried : {name.parsed(), folded}) {
    const uint64_t hash = rule.HashOf(tried, control_->info().hash_key);
    const uint32_t slot = table.Find(hash);
    if (slot == shm::kNoSlot) continue;
    const uint64_t key = buckets_->slots()[slot].key.load(std::memory_order_acquire);
    if (shm::key::Fp(key) == shm::FingerprintOf(hash)) return {slot, key};
  }
  return {};
}

bool Reconciler::Unban(const std::string& text, uint64_t now_ns) {
  now_ns_ = now_ns;
  const config::CompiledRule* const rule =
      rules_ == nullptr ? nullptr : rules_->Find(shm::LabelOf(text));
  if (rule == nullptr || !rule->penalty.is_any()) return false;
  BucketId id = 0;
  if (!ledger_.Find(text, &id)) {
    // Of a daemon before this one, or never seen here: then only Redis can know of it.
    const NameOfText name(text, rule->key_count);
    const harvest::Place place = PlaceOf(*rule, name);
    if (place.key == 0 && !options_.has_redis) return true;
    harvest::Named named;
    named.text = text;
    named.shard = shm::ShardOf(text, options_.shard_count);
    named.rule = rule;
    if (rule->privacy != nullptr) named.wire = config::WireName(name.parsed(), *rule->privacy);
    id = ledger_.Intern(place, std::move(named), now_ns);
  }
  Bucket& b = ledger_.bucket(id);
  Penal& p = PenalOf(id, b);
  p.until_ns = p.denied = p.fresh = 0;
  p.is_own = false;
  p.is_lifted = options_.has_redis;
  NoteBan(b, 0);
  Free(b);
  ShowBan(b, false);
  std::erase(banned_, id);
  if (options_.has_redis) ledger_.AddUse(id, 0, 0, now_ns, now_ns);
  return true;
}

}  // namespace sluice::reconcile
