// Bound rules: checks of changing keys under one rule, without matching.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>

#include "client/blocks.h"
#include "client/check.h"
#include "client/lease.h"

namespace sluice::client {
namespace {

constexpr size_t kChunk = 16;  // lines on their way at once: what a core can keep in flight

struct RuleBlock {
  // What the usual check reads.
  const Attachment* attachment;
  const std::atomic<uint64_t>* policy_word;
  std::atomic<uint64_t> usual_until_ns;
  size_t plain_bytes;  // keys up to this name a bucket just as they stand; 0: none does
  bool coarse_serves;
  uint64_t lag_ns;
  RuleKey key;
  Rule rule;

  // Completes a block whose rule and key are found.
  void Set(const Attachment& a, uint64_t coarse_step_ns);
};

// The longest key whose bucket's name needs no folding, where keys are taken as they stand.
size_t PlainKeyBytes(const RuleKey& key) {
  if (key.value_count != 1 || key.part.form != shm::KeyForm::kRaw) return 0;
  return MaxPlainValueBytes(key.label_bytes);
}

// Relaxed: Blocks hands the block on, so here it orders nothing.
void RuleBlock::Set(const Attachment& a, uint64_t coarse_step_ns) {
  attachment = &a;
  policy_word = &a.control->policy;
  usual_until_ns.store(0, std::memory_order_relaxed);
  plain_bytes = PlainKeyBytes(key);
  coarse_serves = shm::CoarseServes(rule.limit.tau_ns, coarse_step_ns);
  lag_ns = coarse_serves ? shm::kCoarseLagSteps * coarse_step_ns : 0;
}

}  // namespace
}  // namespace sluice::client

namespace shm = sluice::shm;

struct sluice_rule {
  sluice_t* client = nullptr;
  size_t label_bytes = 0;
  char label[shm::kMaxLabelBytes];
  sluice::client::Blocks<sluice::client::RuleBlock> blocks;
};

namespace sluice::client {
namespace {

RuleBlock* RebuildRule(sluice_rule& r, const Attachment& a) {
  return r.blocks.Rebuild(Clock::CoarseNs(), [&](RuleBlock* block) {
    if (FindRule(a, {r.label, r.label_bytes}, &block->rule, &block->key) != 0) return false;
    block->Set(a, r.client->coarse_step_ns);
    return true;
  });
}

// The policy word's acquire load pairs with the daemon's release store: what is read of the buffer
// after it belongs to it.
// The block in force for the present rules; null where the rule is gone. `own` receives the facts
// where no block can be used now.
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

// A key on its way to its bucket: its value in canonical form and the item that names it.
struct KeyItem {
  Text value;
  Item item;
  char ip[kIpBytes];

  void Set(const Attachment& a, const RuleBlock& block, Text key) {
    value = KeyValue(block.key.part, key, ip);
    item.rule = &block.rule;
    item.values = &value;
    item.value_count = block.key.value_count;
    HashItem(a, block.key.hash_seed, block.key.label_bytes, &item);
  }
};

bool IsKey(const char* key, size_t key_len) {
  return key_len <= SLUICE_MAX_VALUE_BYTES && (key != nullptr || key_len == 0);
}

// The long way: a key whose slot is to be found or claimed, wherever that leads.
[[gnu::noinline]] int CheckKey(Context& ctx, const RuleBlock& block, const Item& item,
                               uint32_t cost, sluice_decision_t* decision) {
  Attempt attempt;
  Locate(ctx, item, block.key.policy, shm::kNoSlot, &attempt);
  return CheckItem(ctx, item, block.key.policy, cost, &attempt, decision);
}

[[gnu::noinline]] int CheckRuleLong(sluice_rule& r, Text key, uint32_t cost,
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
  Context ctx(r.client, a, block->coarse_serves);
  // Orders nothing: no other field of the block changes with it.
  block->usual_until_ns.store(UsualUntil(*a, ctx.time.now_ns()), std::memory_order_relaxed);
  return CheckKey(ctx, *block, item.item, cost, decision);
}

// What is rare on the usual check of a key; all calls pass registers only.
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
  BeginTally(*block.attachment, *r.client, slot, gen, now_ns);
  RememberDenial(*block.attachment, slot, shm::FingerprintOf(hash), hash, block.rule, now_ns,
                 block.lag_ns);
  return block.rule.shadow ? 1 : 0;
}

int ContendedKey(sluice_rule& r, const RuleBlock& block, Text key, uint64_t now_ns);

// See CheckUsual.
struct KeyPath {
  sluice_rule& handle;
  const RuleBlock& block;
  Text key;
  uint64_t hash;

  const Rule& rule() const { return block.rule; }
  uint64_t lag_ns() const { return block.lag_ns; }
  const Attachment& attachment() const { return *block.attachment; }
  int Long(uint32_t cost, sluice_decision_t* decision) const {
    return CheckRuleLong(handle, key, cost, decision);
  }
  int Contended(uint64_t now_ns) const { return ContendedKey(handle, block, key, now_ns); }
  int Finish(shm::Slot& slot) const { return FinishKey(handle, block, key, slot); }
  int Deny(shm::Slot& slot, uint16_t gen, uint64_t now_ns) const {
    return DenyKey(handle, block, slot, gen, now_ns, hash);
  }
  int Tell(const Attempt& attempt, uint64_t now_ns, sluice_decision_t* decision) const {
    return AnswerOne(*block.attachment, Time::Of(now_ns, block.lag_ns), block.rule,
                     block.key.policy, attempt, decision);
  }
};

// The hash of a key that names its bucket just as it stands.
[[gnu::always_inline]] inline uint64_t HashPlain(const RuleBlock& block, Text key) {
  return shm::HashValue(block.attachment->hash_key, key.view(), block.key.hash_seed);
}

// False where the long way is due. The policy word pairs with the daemon's store of it; the time
// until when the check is usual is a hint and orders nothing, since no field of the block changes
// with it.
bool IsUsual(const RuleBlock& block, uint64_t now_ns) {
  return now_ns < block.usual_until_ns.load(std::memory_order_relaxed) &&
         block.policy_word->load(std::memory_order_acquire) == block.key.policy;
}

// The slot of `hash` where it stands and its shard is healthy; else null.
[[gnu::always_inline]] inline shm::Slot* HealthySlot(const RuleBlock& block, uint64_t hash) {
  shm::Slot* const slot = TableOf(*block.attachment).FindSlot(hash);
  return slot != nullptr && IsShardHealthy(*block.attachment, *slot) ? slot : nullptr;
}

Leasable LeasableOf(const sluice_rule& r, const RuleBlock& block, shm::Slot& slot, uint64_t hash) {
  return {*r.client, *block.attachment, block.rule, hash, slot, shm::FingerprintOf(hash)};
}

[[gnu::noinline]] int ContendedKey(sluice_rule& r, const RuleBlock& block, Text key,
                                   uint64_t now_ns) {
  const uint64_t hash = HashPlain(block, key);
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) return CheckRuleLong(r, key, 1, nullptr);
  const Leased leased = LeaseIfContended(LeasableOf(r, block, *slot, hash), now_ns);
  if (leased == Leased::kNo) return CheckRuleLong(r, key, 1, nullptr);
  return leased == Leased::kYes ? 1 : FinishKey(r, block, key, *slot);
}

// The check of a key at a known time, and why it is a function of its own: see CheckUsual. Four of
// them: the plain one, the same for a thread that tallies denials or while a shard is degraded, for
// one that leases, and with a decision or a cost.
[[gnu::noinline]] int CheckKeyLeasing(sluice_rule& r, const RuleBlock& block, Text key,
                                      uint64_t now_ns) {
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckRuleLong(r, key, 1, nullptr);
  }
  const uint64_t hash = HashPlain(block, key);
  if (SpendLeased(*r.client, block.rule, hash, now_ns)) [[likely]] {
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
    return CheckRuleLong(r, key, 1, nullptr);
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
    return CheckRuleLong(r, key, 1, nullptr);
  }
  const uint64_t hash = HashPlain(block, key);
  const KeyPath path = {r, block, key, hash};
  shm::Slot* const slot = TableOf(*block.attachment).FindSlot(hash);
  if (slot == nullptr) [[unlikely]] {
    return path.Long(1, nullptr);
  }
  return CheckUsual<true, true>(path, *slot, shm::FingerprintOf(hash), now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckKeyFull(sluice_rule& r, const RuleBlock& block, Text key, uint32_t cost,
                                   sluice_decision_t* decision) {
  const uint64_t now_ns = Clock::Now(block.coarse_serves);
  if (cost > SLUICE_MAX_COST || !IsUsual(block, now_ns)) {
    return CheckRuleLong(r, key, cost, decision);
  }
  const uint64_t hash = HashPlain(block, key);
  const KeyPath path = {r, block, key, hash};
  shm::Slot* const slot = HealthySlot(block, hash);
  if (slot == nullptr) return path.Long(cost, decision);
  return CheckUsual<false, false>(path, *slot, shm::FingerprintOf(hash), now_ns, cost, decision);
}

uint64_t HashOfKey(const RuleBlock& block, Text key) {
  if (key.size <= block.plain_bytes) [[likely]] {
    return HashPlain(block, key);
  }
  KeyItem item;
  item.Set(*block.attachment, block, key);
  return item.item.hash;
}

// What a chunk's keys have in common.
template <bool kPlain>
struct Chunk {
  Context& ctx;
  sluice_rule& rule;
  const RuleBlock& block;
  uint64_t now_ns;
  bool is_usual;
  uint32_t cost;

  // One key, whose slot is known, or kNoSlot. kPlain: see CheckUsual.
  int Check(Text key, uint64_t hash, uint32_t slot, sluice_decision_t* decision) const {
    const Attachment& a = *ctx.attachment;
    if (!IsKey(key.data, key.size)) [[unlikely]] {
      return AnswerDefault(ctx.client, SLUICE_E_ARGUMENT, decision);
    }
    if (is_usual && slot != shm::kNoSlot && IsShardHealthy(a, a.slots[slot])) [[likely]] {
      return CheckUsual<kPlain, false>(KeyPath{rule, block, key, hash}, a.slots[slot],
                                       shm::FingerprintOf(hash), now_ns, kPlain ? 1 : cost,
                                       kPlain ? nullptr : decision);
    }
    KeyItem item;
    item.Set(a, block, key);
    return CheckKey(ctx, block, item.item, cost, kPlain ? nullptr : decision);
  }
};

// One chunk of keys, in rounds, so that their memory latencies overlap: all first groups are asked
// for, then the second groups that are needed; what stands in a first group is checked while those
// come. A look never stands behind a check of its round, since a check's locked operations hold up
// the loads that follow.
template <bool kPlain>
int CheckChunk(const Chunk<kPlain>& chunk, const sluice_key_t* keys, size_t count, int* results,
               sluice_decision_t* decisions) {
  const Table table = chunk.ctx.table;
  uint64_t hashes[kChunk];
  uint32_t slots[kChunk];
  uint32_t in_second = 0;  // a bit per key
  for (size_t i = 0; i < count; ++i) {
    hashes[i] =
        IsKey(keys[i].key, keys[i].len) ? HashOfKey(chunk.block, {keys[i].key, keys[i].len}) : 0;
    table.PrefetchFirst(hashes[i]);
  }
  for (size_t i = 0; i < count; ++i) {
    slots[i] = table.FindFirst(hashes[i]);
    if (slots[i] != shm::kNoSlot) continue;
    table.PrefetchSecond(hashes[i]);
    in_second |= 1u << i;
  }
  int allowed = 0;
  const auto check = [&](size_t i) {
    results[i] = chunk.Check({keys[i].key, keys[i].len}, hashes[i], slots[i],
                             kPlain || decisions == nullptr ? nullptr : &decisions[i]);
    allowed += results[i] > 0 ? 1 : 0;
  };
  for (size_t i = 0; i < count; ++i) {
    if ((in_second >> i & 1) == 0) check(i);
  }
  for (uint32_t left = in_second; left != 0; left &= left - 1) {
    const auto i = static_cast<size_t>(std::countr_zero(left));
    slots[i] = table.FindSecond(hashes[i]);
  }
  for (uint32_t left = in_second; left != 0; left &= left - 1) {
    check(static_cast<size_t>(std::countr_zero(left)));
  }
  return allowed;
}

int CheckKeys(sluice_rule& r, const sluice_key_t* keys, size_t count, uint32_t cost, int* results,
              sluice_decision_t* decisions) {
  const Attachment* const a = AttachmentOf(r.client);
  RuleBlock own;
  const RuleBlock* const block = a == nullptr ? nullptr : BlockOf(r, *a, &own);
  int allowed = 0;
  if (block == nullptr) {
    for (size_t i = 0; i < count; ++i) {
      results[i] = AnswerDefault(r.client, a == nullptr ? 0 : SLUICE_E_NO_RULE,
                                 decisions != nullptr ? &decisions[i] : nullptr);
      allowed += results[i] > 0 ? 1 : 0;
    }
    return allowed;
  }
  Context ctx(r.client, a, block->coarse_serves);
  const uint64_t now_ns = ctx.time.now_ns();
  const bool is_usual = now_ns < UsualUntil(*a, now_ns);
  const Chunk<true> plain = {ctx, r, *block, now_ns, is_usual, 1};
  const Chunk<false> full = {ctx, r, *block, now_ns, is_usual, cost};
  for (size_t at = 0; at < count; at += kChunk) {
    const size_t n = std::min(kChunk, count - at);
    allowed += cost == 1 && decisions == nullptr
                   ? CheckChunk(plain, keys + at, n, results + at, nullptr)
                   : CheckChunk(full, keys + at, n, results + at,
                                decisions != nullptr ? decisions + at : nullptr);
  }
  return allowed;
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
  const size_t n = strnlen(label, shm::kMaxLabelBytes + 1);
  if (n == 0 || n > shm::kMaxLabelBytes) return SLUICE_E_NO_RULE;
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

int sluice_rule_check(sluice_rule_t* rule, const char* key, size_t key_len, uint32_t cost,
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

int sluice_rule_check_many(sluice_rule_t* rule, const sluice_key_t* keys, size_t count,
                           uint32_t cost, int* results, sluice_decision_t* decisions) {
  if (rule == nullptr || (count != 0 && (keys == nullptr || results == nullptr)) ||
      cost > SLUICE_MAX_COST || count > INT32_MAX) {
    return SLUICE_E_ARGUMENT;
  }
  return sluice::client::CheckKeys(*rule, keys, count, cost, results, decisions);
}

void sluice_rule_free(sluice_rule_t* rule) { delete rule; }

}  // extern "C"
