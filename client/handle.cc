// Handles and bound rules: what can be computed once is. Both hold two blocks of computed state, so
// that a change of the rules can be followed while other threads still read the old block; a block
// is written again only kPolicyRestNs after it was superseded. Until then a third change is
// answered by the slower path of an unbound check.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "client/check.h"

namespace sluice::client {
namespace {

constexpr size_t kBlocks = 2;
constexpr size_t kHandleItems = 4;  // more matching rules: checked unbound
constexpr size_t kHandleValues = 8;
constexpr size_t kHandleIps = 4;
constexpr uint64_t kRefindNs = 100'000'000;  // a duplicate's loser is left behind this soon

// Which of two blocks is in force; rebuilding is one thread's at a time.
template <class Block>
class Blocks {
 public:
  Block* current() const { return current_.load(std::memory_order_acquire); }

  // Runs build(block) on the block that rests, then puts it in force. Null where another thread is
  // at it, the other block was in use too recently, or build said no.
  template <class Build>
  Block* Rebuild(uint64_t now_ns, Build build) {
    if (busy_.exchange(true, std::memory_order_acquire)) return nullptr;
    Block* next = nullptr;
    const size_t other = current() == &blocks_[0] ? 1 : 0;
    const uint64_t rested_ns = superseded_ns_[other];
    if (rested_ns == 0 || now_ns > rested_ns + shm::kPolicyRestNs) {
      if (build(&blocks_[other])) {
        next = &blocks_[other];
        superseded_ns_[1 - other] = now_ns;
        current_.store(next, std::memory_order_release);
      }
    }
    busy_.store(false, std::memory_order_release);
    return next;
  }

 private:
  Block blocks_[kBlocks];
  uint64_t superseded_ns_[kBlocks] = {};  // 0: never in force
  std::atomic<Block*> current_{nullptr};
  std::atomic<bool> busy_{false};
};

struct HandleBlock {
  const Attachment* attachment;
  uint64_t policy;
  size_t count;
  bool coarse_serves;
  // Hints that all threads share; a wrong one costs a search.
  std::atomic<uint32_t> slot;
  std::atomic<uint64_t> found_ns;
  Item items[kHandleItems];
  Rule rules[kHandleItems];
  Text values[kHandleValues];
  char ips[kHandleIps * kIpBytes];
};

struct RuleBlock {
  const Attachment* attachment;
  bool coarse_serves;
  Rule rule;
  RuleKey key;
};

// Copies a plan into a block, re-pointing what pointed into the plan.
bool CopyPlan(const Plan& plan, HandleBlock* block) {
  if (plan.count > kHandleItems || plan.value_count > kHandleValues ||
      plan.arena_used > sizeof block->ips) {
    return false;
  }
  std::memcpy(block->ips, plan.arena, plan.arena_used);
  for (size_t i = 0; i < plan.value_count; ++i) {
    Text value = plan.values[i];
    if (value.data >= plan.arena && value.data < plan.arena + kArenaBytes) {
      value.data = block->ips + (value.data - plan.arena);
    }
    block->values[i] = value;
  }
  for (size_t i = 0; i < plan.count; ++i) {
    block->rules[i] = plan.rules[i];
    block->items[i] = plan.items[i];
    block->items[i].rule = &block->rules[i];
    block->items[i].values = block->values + (plan.items[i].values - plan.values);
  }
  block->policy = plan.policy;
  block->count = plan.count;
  block->coarse_serves = plan.coarse_serves;
  block->slot.store(shm::kNoSlot, std::memory_order_relaxed);
  block->found_ns.store(0, std::memory_order_relaxed);
  return true;
}

}  // namespace
}  // namespace sluice::client

using sluice::client::AnswerDefault;
using sluice::client::Attachment;
using sluice::client::Attempt;
using sluice::client::Context;
using sluice::client::Item;
using sluice::client::Plan;
using sluice::client::Text;
namespace shm = sluice::shm;

struct sluice_handle {
  sluice_t* client = nullptr;
  size_t count = 0;
  std::unique_ptr<sluice_descriptor_t[]> descriptors;
  std::unique_ptr<char[]> bytes;  // names and values
  sluice::client::Blocks<sluice::client::HandleBlock> blocks;
};

struct sluice_rule {
  sluice_t* client = nullptr;
  size_t label_bytes = 0;
  char label[shm::kMaxLabelBytes];
  sluice::client::Blocks<sluice::client::RuleBlock> blocks;
};

namespace sluice::client {
namespace {

HandleBlock* RebuildHandle(sluice_handle& h, const Attachment& a) {
  return h.blocks.Rebuild(Clock::CoarseNs(), [&](HandleBlock* block) {
    Plan plan;
    if (BuildPlan(a, h.client->coarse_step_ns, h.descriptors.get(), h.count, &plan) != 0) {
      return false;
    }
    block->attachment = &a;
    return CopyPlan(plan, block);
  });
}

// One matching rule: the shortest path there is.
int CheckSingle(HandleBlock& block, Context& ctx, uint32_t cost, sluice_decision_t* decision) {
  const Item& item = block.items[0];
  const uint32_t hint = block.slot.load(std::memory_order_relaxed);
  Attempt attempt;
  if (hint != shm::kNoSlot &&
      ctx.time.now_ns() - block.found_ns.load(std::memory_order_relaxed) < kRefindNs) [[likely]] {
    attempt.index = hint;
    attempt.slot = &ctx.attachment->slots[hint];
    attempt.fp = shm::FingerprintOf(item.hash);
    attempt.overflow = false;
  } else {
    Locate(ctx, item, block.policy, shm::kNoSlot, &attempt);
    block.found_ns.store(ctx.time.now_ns(), std::memory_order_relaxed);
    block.slot.store(attempt.overflow ? shm::kNoSlot : attempt.index, std::memory_order_relaxed);
  }
  const int allowed = CheckItem(ctx, item, block.policy, cost, &attempt, decision);
  if (attempt.index != hint && !attempt.overflow) [[unlikely]] {
    block.slot.store(attempt.index, std::memory_order_relaxed);
  }
  return allowed;
}

RuleBlock* RebuildRule(sluice_rule& r, const Attachment& a) {
  return r.blocks.Rebuild(Clock::CoarseNs(), [&](RuleBlock* block) {
    if (FindRule(a, {r.label, r.label_bytes}, &block->rule, &block->key) != 0) return false;
    block->attachment = &a;
    block->coarse_serves = shm::CoarseServes(block->rule.tau_ns, r.client->coarse_step_ns);
    return true;
  });
}

// The block in force for the present rules; null where the rule is gone. `own` receives the facts
// where no block can be used now.
const RuleBlock* BlockOf(sluice_rule& r, const Attachment& a, RuleBlock* own) {
  const RuleBlock* block = r.blocks.current();
  if (block != nullptr && block->attachment == &a &&
      block->key.policy == a.control->policy.load(std::memory_order_acquire)) [[likely]] {
    return block;
  }
  block = RebuildRule(r, a);
  if (block != nullptr) return block;
  if (FindRule(a, {r.label, r.label_bytes}, &own->rule, &own->key) != 0) return nullptr;
  own->attachment = &a;
  own->coarse_serves = shm::CoarseServes(own->rule.tau_ns, r.client->coarse_step_ns);
  return own;
}

// A key on its way: its value in canonical form and the item that names its bucket.
struct KeyItem {
  Text value;
  Item item;
  char ip[kIpBytes];

  void Set(const Attachment& a, const RuleBlock& block, const char* key, size_t key_len) {
    value = KeyValue(block.key.part, {key, key_len}, ip);
    item.rule = &block.rule;
    item.values = &value;
    item.value_count = block.key.value_count;
    HashItem(a, block.key.hash_seed, block.key.label_bytes, &item);
  }
};

bool IsKey(const char* key, size_t key_len) {
  return key_len <= SLUICE_MAX_VALUE_BYTES && (key != nullptr || key_len == 0);
}

}  // namespace
}  // namespace sluice::client

using sluice::client::KeyItem;
using sluice::client::RuleBlock;

extern "C" {

int sluice_handle_bind(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                       sluice_handle_t** handle) {
  if (client == nullptr || handle == nullptr || (descriptors == nullptr && count != 0)) {
    return SLUICE_E_ARGUMENT;
  }
  *handle = nullptr;
  if (count > SLUICE_MAX_DESCRIPTORS) return SLUICE_E_DESCRIPTORS;
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const sluice_descriptor_t& d = descriptors[i];
    if (d.name == nullptr || d.name_len == 0 || d.name_len > SLUICE_MAX_NAME_BYTES ||
        d.value_len > SLUICE_MAX_VALUE_BYTES || (d.value == nullptr && d.value_len != 0)) {
      return SLUICE_E_DESCRIPTORS;
    }
    bytes += d.name_len + d.value_len;
  }
  std::unique_ptr<sluice_handle> h(new (std::nothrow) sluice_handle);
  if (h == nullptr) return SLUICE_E_MEMORY;
  h->descriptors.reset(new (std::nothrow) sluice_descriptor_t[count + 1]);
  h->bytes.reset(new (std::nothrow) char[bytes + 1]);
  if (h->descriptors == nullptr || h->bytes == nullptr) return SLUICE_E_MEMORY;
  h->client = client;
  h->count = count;
  char* at = h->bytes.get();
  const auto keep = [&at](const char* data, size_t n) {
    char* const kept = at;
    if (n != 0) std::memcpy(kept, data, n);
    at += n;
    return kept;
  };
  for (size_t i = 0; i < count; ++i) {
    const sluice_descriptor_t& d = descriptors[i];
    h->descriptors[i] = {keep(d.name, d.name_len), d.name_len, keep(d.value, d.value_len),
                         d.value_len};
  }
  *handle = h.release();
  return 0;
}

int sluice_handle_check(sluice_handle_t* handle, uint32_t cost, sluice_decision_t* decision) {
  if (handle == nullptr) [[unlikely]] {
    return SLUICE_E_ARGUMENT;
  }
  sluice_t* const client = handle->client;
  if (cost > SLUICE_MAX_COST) [[unlikely]] {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, decision);
  }
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a == nullptr) [[unlikely]] {
    return AnswerDefault(client, 0, decision);
  }
  auto* block = handle->blocks.current();
  if (block == nullptr || block->attachment != a ||
      block->policy != a->control->policy.load(std::memory_order_acquire)) [[unlikely]] {
    block = sluice::client::RebuildHandle(*handle, *a);
    if (block == nullptr) {
      return sluice_check(client, handle->descriptors.get(), handle->count, cost, decision);
    }
  }
  if (block->count == 0) [[unlikely]] {
    return sluice_check(client, handle->descriptors.get(), handle->count, cost, decision);
  }
  Context ctx(client, a, block->coarse_serves);
  if (block->count == 1) [[likely]] {
    return CheckSingle(*block, ctx, cost, decision);
  }
  return CheckItems(ctx, block->items, block->count, block->policy, cost, decision);
}

void sluice_handle_free(sluice_handle_t* handle) { delete handle; }

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
  if (cost > SLUICE_MAX_COST || !sluice::client::IsKey(key, key_len)) [[unlikely]] {
    return AnswerDefault(rule->client, SLUICE_E_ARGUMENT, decision);
  }
  const Attachment* const a = sluice::client::AttachmentOf(rule->client);
  if (a == nullptr) [[unlikely]] {
    return AnswerDefault(rule->client, 0, decision);
  }
  RuleBlock own;
  const RuleBlock* const block = sluice::client::BlockOf(*rule, *a, &own);
  if (block == nullptr) [[unlikely]] {
    return AnswerDefault(rule->client, SLUICE_E_NO_RULE, decision);
  }
  KeyItem item;
  item.Set(*a, *block, key, key_len);
  Context ctx(rule->client, a, block->coarse_serves);
  Attempt attempt;
  Locate(ctx, item.item, block->key.policy, shm::kNoSlot, &attempt);
  return CheckItem(ctx, item.item, block->key.policy, cost, &attempt, decision);
}

int sluice_rule_check_many(sluice_rule_t* rule, const sluice_key_t* keys, size_t count,
                           uint32_t cost, int* results, sluice_decision_t* decisions) {
  if (rule == nullptr || (count != 0 && (keys == nullptr || results == nullptr)) ||
      cost > SLUICE_MAX_COST || count > INT32_MAX) {
    return SLUICE_E_ARGUMENT;
  }
  constexpr size_t kChunk = 16;  // lines on their way at once: what a core can keep in flight
  const Attachment* const a = sluice::client::AttachmentOf(rule->client);
  RuleBlock own;
  const RuleBlock* const block = a == nullptr ? nullptr : sluice::client::BlockOf(*rule, *a, &own);
  int allowed = 0;
  if (block == nullptr) {
    for (size_t i = 0; i < count; ++i) {
      results[i] = AnswerDefault(rule->client, a == nullptr ? 0 : SLUICE_E_NO_RULE,
                                 decisions ? &decisions[i] : nullptr);
      allowed += results[i] > 0 ? 1 : 0;
    }
    return allowed;
  }
  Context ctx(rule->client, a, block->coarse_serves);
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t n = std::min(kChunk, count - begin);
    KeyItem items[kChunk];
    for (size_t i = 0; i < n; ++i) {
      const sluice_key_t& key = keys[begin + i];
      if (!sluice::client::IsKey(key.key, key.len)) continue;
      items[i].Set(*a, *block, key.key, key.len);
      ctx.table.Prefetch(items[i].item.hash);
    }
    for (size_t i = 0; i < n; ++i) {
      const sluice_key_t& key = keys[begin + i];
      sluice_decision_t* const decision = decisions ? &decisions[begin + i] : nullptr;
      if (!sluice::client::IsKey(key.key, key.len)) {
        results[begin + i] = AnswerDefault(rule->client, SLUICE_E_ARGUMENT, decision);
        continue;
      }
      Attempt attempt;
      Locate(ctx, items[i].item, block->key.policy, shm::kNoSlot, &attempt);
      results[begin + i] =
          CheckItem(ctx, items[i].item, block->key.policy, cost, &attempt, decision);
      allowed += results[begin + i];
    }
  }
  return allowed;
}

void sluice_rule_free(sluice_rule_t* rule) { delete rule; }

}  // extern "C"
