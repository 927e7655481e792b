#include "client/bound_rule.h"

#include <cstring>
#include <new>

#include "client/candidate.h"
#include "client/lease.h"
#include "client/lent.h"
#include "client/windowed.h"

namespace sluice::client {
namespace {

// The longest key whose bucket's name needs no folding, where keys are taken as they stand.
size_t PlainKeyBytes(const RuleKey& key) {
  if (key.value_count != 1 || key.part.form != shm::KeyForm::kRaw) return 0;
  return MaxPlainValueBytes(key.label_bytes);
}

// Where only numbers changed since `old`. False where more did.
bool FollowNumbers(const Attachment& a, const RuleBlock& old, RuleBlock* block) {
  const NumbersReader reader(a, old.key.structure);
  block->rule = reader.Read(old.rule);
  block->key = old.key;
  block->key.policy = reader.policy();
  return reader.IsWhole();
}

RuleBlock* RebuildRule(sluice_rule& r, const Attachment& a) {
  return r.blocks.Rebuild(Clock::CoarseNs(), [&](const RuleBlock* old, RuleBlock* block) {
    if (!(old != nullptr && old->attachment == &a && FollowNumbers(a, *old, block)) &&
        FindRule(a, {r.label, r.label_bytes}, &block->rule, &block->key) != 0) {
      return false;
    }
    block->Set(a, r.client->coarse_step_ns);
    return true;
  });
}

}  // namespace

// Relaxed: Blocks hands the block on, so here it orders nothing.
void RuleBlock::Set(const Attachment& a, uint64_t coarse_step_ns) {
  attachment = &a;
  policy_word = &a.control->policy;
  usual_until_ns.store(0, std::memory_order_relaxed);
  other_until_ns.store(0, std::memory_order_relaxed);
  plain_bytes = PlainKeyBytes(key);
  coarse_serves = shm::CoarseServes(rule, coarse_step_ns);
  lag_ns = coarse_serves ? shm::kCoarseLagSteps * coarse_step_ns : 0;
}

// The policy word's acquire load pairs with the daemon's release store: what is read of the buffer
// after it belongs to it.
RuleBlock* BlockOf(sluice_rule& r, const Attachment& a, RuleBlock* own) {
  RuleBlock* block = r.blocks.current();
  if (block != nullptr && block->attachment == &a &&
      block->key.policy == a.control->policy.load(std::memory_order_acquire)) {
    return block;
  }
  block = RebuildRule(r, a);
  if (block != nullptr) return block;
  if (FindRule(a, {r.label, r.label_bytes}, &own->rule, &own->key) != 0) return nullptr;
  own->Set(a, r.client->coarse_step_ns);
  return own;
}

[[gnu::noinline]] int CheckKey(Context& ctx, const RuleBlock& block, const Item& item,
                               uint64_t cost, sluice_decision_t* decision) {
  if (item.candidate != shm::kNoRule) {
    return CheckTrying(ctx, &item, 1, block.key.policy, cost, decision);
  }
  Attempt attempt;
  Locate(ctx, item, block.key.policy, shm::kNoSlot, &attempt);
  return CheckItem(ctx, item, block.key.policy, cost, &attempt, decision);
}

[[gnu::noinline]] int CheckRuleLong(sluice_rule& r, Text key, uint64_t cost,
                                    sluice_decision_t* decision) {
  if (cost > SLUICE_MAX_COST || !IsKey(key.data, key.size)) {
    return AnswerDefault(r.client, SLUICE_E_ARGUMENT, decision);
  }
  const Attachment* const a = AttachmentOf(r.client);
  if (a == nullptr) return AnswerDefault(r.client, 0, decision);
  RuleBlock own;
  RuleBlock* const block = BlockOf(r, *a, &own);
  if (block == nullptr) return AnswerDefault(r.client, SLUICE_E_NO_RULE, decision);
  KeyItem item;
  item.Set(*a, *block, key);
  if (cost == 0) {
    Absent absent;
    Context looking(r.client, a, block->coarse_serves, &absent);
    return CheckKey(looking, *block, item.item, cost, decision);
  }
  Context ctx(r.client, a, block->coarse_serves);
  // Orders nothing: no other field of the block changes with it.
  const bool is_bucket = block->rule.kind == shm::Kind::kTokenBucket;
  if (!block->tries()) {
    (is_bucket ? block->usual_until_ns : block->other_until_ns)
        .store(UsualUntil(*a, ctx.time.now_ns()), std::memory_order_relaxed);
  }
  return CheckKey(ctx, *block, item.item, cost, decision);
}

[[gnu::noinline]] int FinishKey(const sluice_rule& r, const RuleBlock& block, Text key,
                                shm::Slot& slot) {
  const Attachment& a = *block.attachment;
  if (Tidy(*r.client, a, slot)) {
    KeyItem item;
    item.Set(a, block, key);
    WriteText(a, item.item, block.key.policy, IndexOf(a, slot));
  }
  return 1;
}

[[gnu::noinline]] int DenyKey(const sluice_rule& r, const RuleBlock& block, shm::Slot& slot,
                              uint16_t gen, uint64_t now_ns, uint64_t hash) {
  if (block.rule.penal) {
    NoteAtOnce(*block.attachment, slot, gen);
  } else if (block.rule.classed) {
    NoteDeniedOfClass(*block.attachment, *r.client, slot, gen, block.rule, block.key.policy,
                      now_ns);
  } else {
    BeginTally(*block.attachment, *r.client, slot, gen, now_ns);
    RememberDenial(*block.attachment, slot, shm::FingerprintOf(hash), hash, block.rule, now_ns,
                   block.lag_ns);
  }
  return block.rule.shadow ? 1 : 0;
}

namespace {

// The slot of `hash` where it stands and its shard is healthy; else null.
[[gnu::always_inline]] inline shm::Slot* HealthySlot(const RuleBlock& block, uint64_t hash) {
  shm::Slot* const slot = TableOf(*block.attachment).FindSlot(hash);
  return slot != nullptr && IsShardHealthy(*block.attachment, *slot) ? slot : nullptr;
}

Leasable LeasableOf(const sluice_rule& r, const RuleBlock& block, shm::Slot& slot, uint64_t hash) {
  return {*r.client, *block.attachment,       block.rule, {&block.rule, hash},
          slot,      shm::FingerprintOf(hash)};
}

}  // namespace

[[gnu::noinline]] int ContendedKey(sluice_rule& r, const RuleBlock& block, Text key,
                                   uint64_t now_ns) {
  const uint64_t hash = HashPlain(block, key);
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) return CheckRuleLong(r, key, 1, nullptr);
  const Leased leased = LeaseIfContended(LeasableOf(r, block, *slot, hash), now_ns);
  if (leased == Leased::kNo) return CheckRuleLong(r, key, 1, nullptr);
  return leased == Leased::kYes ? 1 : FinishKey(r, block, key, *slot);
}

namespace {

// What is not a token bucket's usual check.
[[gnu::noinline]] int CheckKeyUnusual(sluice_rule& r, const RuleBlock& block, Text key,
                                      uint64_t now_ns, uint64_t cost, sluice_decision_t* decision) {
  const shm::Kind kind = block.rule.kind;
  if (shm::HasRow(kind) || !IsOther(block, now_ns)) {
    return CheckRuleLong(r, key, cost, decision);
  }
  const uint64_t hash = shm::HashOfKind(HashPlain(block, key), kind);
  shm::Slot* const slot = IsAnyShardDegraded(*block.attachment)
                              ? HealthySlot(block, hash)
                              : TableOf(*block.attachment).FindSlot(hash);
  if (slot == nullptr) return CheckRuleLong(r, key, cost, decision);
  const KeyPath path = {r, block, key, hash};
  const uint64_t fp = shm::FingerprintOf(hash);
  return shm::IsWindow(kind) ? CheckWindowed(path, *slot, fp, now_ns, cost, decision)
                             : CheckLent(path, *slot, fp, now_ns, cost, decision);
}

// The check of a key at a known time, and why it is a function of its own: see CheckUsual. Four of
// them: the plain one, the same for a thread that tallies denials or while a shard is degraded, for
// one that leases, and with a decision or a cost.
[[gnu::noinline]] int CheckKeyLeasing(sluice_rule& r, const RuleBlock& block, Text key,
                                      uint64_t now_ns) {
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckKeyUnusual(r, block, key, now_ns, 1, nullptr);
  }
  const uint64_t hash = HashPlain(block, key);
  if (SpendLeased(*r.client, {&block.rule, hash}, now_ns)) [[likely]] {
    return 1;
  }
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) return CheckRuleLong(r, key, 1, nullptr);
  const Leased leased = RenewLease(LeasableOf(r, block, *slot, hash), now_ns);
  if (leased != Leased::kNo) return leased == Leased::kYes ? 1 : FinishKey(r, block, key, *slot);
  return CheckUsual<true, false>(KeyPath{r, block, key, hash}, *slot, shm::FingerprintOf(hash),
                                 now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckKeyWatching(sluice_rule& r, const RuleBlock& block, Text key,
                                       uint64_t now_ns) {
  if (IsLeasing()) [[unlikely]] {
    return CheckKeyLeasing(r, block, key, now_ns);
  }
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckKeyUnusual(r, block, key, now_ns, 1, nullptr);
  }
  const uint64_t hash = HashPlain(block, key);
  if (TallyDeniedAgain(*block.attachment, hash, block.rule, now_ns)) [[likely]] {
    return block.rule.shadow ? 1 : 0;
  }
  const KeyPath path = {r, block, key, hash};
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) [[unlikely]] {
    return path.Long(1, nullptr);
  }
  return CheckUsual<true, false>(path, *slot, shm::FingerprintOf(hash), now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckKeyPlain(sluice_rule& r, const RuleBlock& block, Text key,
                                    uint64_t now_ns) {
  if (IsWatching() || IsAnyShardDegraded(*block.attachment)) [[unlikely]] {
    return CheckKeyWatching(r, block, key, now_ns);
  }
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckKeyUnusual(r, block, key, now_ns, 1, nullptr);
  }
  const uint64_t hash = HashPlain(block, key);
  const KeyPath path = {r, block, key, hash};
  shm::Slot* const slot = TableOf(*block.attachment).FindSlot(hash);
  if (slot == nullptr) [[unlikely]] {
    return path.Long(1, nullptr);
  }
  return CheckUsual<true, true>(path, *slot, shm::FingerprintOf(hash), now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckKeyFull(sluice_rule& r, const RuleBlock& block, Text key, uint64_t cost,
                                   sluice_decision_t* decision) {
  const uint64_t now_ns = Clock::Now(block.coarse_serves);
  if (cost - 1 >= SLUICE_MAX_COST) return CheckRuleLong(r, key, cost, decision);
  if (!IsUsual(block, now_ns)) return CheckKeyUnusual(r, block, key, now_ns, cost, decision);
  const uint64_t hash = HashPlain(block, key);
  const KeyPath path = {r, block, key, hash};
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) return path.Long(cost, decision);
  return CheckUsual<false, false>(path, *slot, shm::FingerprintOf(hash), now_ns, cost, decision);
}

}  // namespace
}  // namespace sluice::client

using sluice::client::Attachment;
using sluice::client::CheckRuleLong;
using sluice::client::RuleBlock;

extern "C" {

int sluice_rule_bind(sluice_t* client, const char* label, sluice_rule_t** rule) {
  if (client == nullptr || label == nullptr || rule == nullptr) return SLUICE_E_ARGUMENT;
  *rule = nullptr;
  const size_t n = strnlen(label, sluice::client::kMaxBoundBytes + 1);
  if (n == 0 || n > sluice::client::kMaxBoundBytes) return SLUICE_E_NO_RULE;
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a != nullptr) {  // a wrong label is told at once where it can be
    sluice::client::Rule facts;
    sluice::client::RuleKey key;
    const int found = FindRule(*a, {label, n}, &facts, &key);
    if (found != 0) return found;
  }
  auto* const r = new (std::nothrow) sluice_rule;
  if (r == nullptr) return SLUICE_E_MEMORY;
  r->client = client;
  r->label_bytes = n;
  std::memcpy(r->label, label, n);
  *rule = r;
  return 0;
}

int sluice_rule_check(sluice_rule_t* rule, const char* key, size_t key_len, uint64_t cost,
                      sluice_decision_t* decision) {
  if (rule == nullptr) [[unlikely]] {
    return SLUICE_E_ARGUMENT;
  }
  const RuleBlock* const block = rule->blocks.current();
  if (block == nullptr || key == nullptr || key_len > block->plain_bytes) [[unlikely]] {
    return CheckRuleLong(*rule, {key, key_len}, cost, decision);
  }
  if (cost != 1 || decision != nullptr) {
    return sluice::client::CheckKeyFull(*rule, *block, {key, key_len}, cost, decision);
  }
  return sluice::client::CheckKeyPlain(*rule, *block, {key, key_len},
                                       sluice::client::Clock::Now(block->coarse_serves));
}

void sluice_rule_free(sluice_rule_t* rule) { delete rule; }

}  // extern "C"
