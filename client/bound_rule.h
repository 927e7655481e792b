// Bound rules: checks of changing keys under one rule, without matching. What the check of one key
// (bound_rule.cc) and of many (batch.cc) share.
#pragma once

#include <atomic>
#include <cstdint>

#include "client/blocks.h"
#include "client/check.h"
#include "client/priority.h"

namespace sluice::client {

inline constexpr size_t kMaxBoundBytes = shm::kMaxLabelBytes + 1 + kMaxClassBytes;

struct RuleBlock {
  // What the usual check reads.
  const Attachment* attachment;
  const std::atomic<uint64_t>* policy_word;
  std::atomic<uint64_t> usual_until_ns;
  size_t plain_bytes;  // keys up to this name a bucket just as they stand; 0: none does
  bool coarse_serves;
  uint64_t lag_ns;
  std::atomic<uint64_t> other_until_ns;  // as usual_until_ns, of words that are no token bucket's
  RuleKey key;
  Rule rule;

  // A limit beside the rule's: no check is usual.
  bool tries() const { return key.candidate != shm::kNoRule; }
  // Completes a block whose rule and key are found.
  void Set(const Attachment& a, uint64_t coarse_step_ns);
};

}  // namespace sluice::client

struct sluice_rule {
  sluice_t* client = nullptr;
  size_t label_bytes = 0;
  char label[sluice::client::kMaxBoundBytes];  // with a class, if any
  sluice::client::Blocks<sluice::client::RuleBlock> blocks;
};

namespace sluice::client {

// The block in force for the present rules; null where the rule is gone. `own` receives the facts
// where no block can be used now.
RuleBlock* BlockOf(sluice_rule& r, const Attachment& a, RuleBlock* own);

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
    item.candidate = block.key.candidate;
    HashItem(a, block.key.hash_seed, block.key.label_bytes, &item);
  }
};

inline bool IsKey(const char* key, size_t key_len) {
  return key_len <= SLUICE_MAX_VALUE_BYTES && (key != nullptr || key_len == 0);
}

// The long ways: a key whose slot is to be found or claimed, wherever that leads; a key of whatever
// form under whatever rules are in force.
int CheckKey(Context& ctx, const RuleBlock& block, const Item& item, uint64_t cost,
             sluice_decision_t* decision);
int CheckRuleLong(sluice_rule& r, Text key, uint64_t cost, sluice_decision_t* decision);

// What is rare on the usual check of a key; all calls pass registers only. See CheckUsual.
int FinishKey(const sluice_rule& r, const RuleBlock& block, Text key, shm::Slot& slot);
int DenyKey(const sluice_rule& r, const RuleBlock& block, shm::Slot& slot, uint16_t gen,
            uint64_t now_ns, uint64_t hash);
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
  int Long(uint64_t cost, sluice_decision_t* decision) const {
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
inline bool IsUsual(const RuleBlock& block, uint64_t now_ns) {
  return now_ns < block.usual_until_ns.load(std::memory_order_relaxed) &&
         block.policy_word->load(std::memory_order_acquire) == block.key.policy;
}
// The same for words that are no token bucket's.
inline bool IsOther(const RuleBlock& block, uint64_t now_ns) {
  return now_ns < block.other_until_ns.load(std::memory_order_relaxed) &&
         block.policy_word->load(std::memory_order_acquire) == block.key.policy;
}

}  // namespace sluice::client
