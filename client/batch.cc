// Many keys under one rule, their memory latencies overlapped.
#include <algorithm>
#include <bit>

#include "client/bound_rule.h"

namespace sluice::client {
namespace {

constexpr size_t kChunk = 16;  // lines on their way at once: what a core can keep in flight

uint64_t HashOfKey(const RuleBlock& block, Text key) {
  if (key.size <= block.plain_bytes) [[likely]] {
    return HashPlain(block, key);
  }
  KeyItem item;
  item.Set(*block.attachment, block, key);
  return item.item.hash;
}

// What a chunk's keys have in common.
struct Chunk {
  Context& ctx;
  sluice_rule& rule;
  const RuleBlock& block;
  uint64_t now_ns;
  bool is_usual;
  uint64_t cost;

  // One key, whose slot is known, or kNoSlot.
  int Check(Text key, uint64_t hash, uint32_t slot, sluice_decision_t* decision) const {
    const Attachment& a = *ctx.attachment;
    if (!IsKey(key.data, key.size)) [[unlikely]] {
      return AnswerDefault(ctx.client, SLUICE_E_ARGUMENT, decision);
    }
    if (is_usual && slot != shm::kNoSlot && IsShardHealthy(a, a.slots[slot])) [[likely]] {
      return CheckUsual<false, false>(KeyPath{rule, block, key, hash}, a.slots[slot],
                                      shm::FingerprintOf(hash), now_ns, cost, decision);
    }
    KeyItem item;
    item.Set(a, block, key);
    return CheckKey(ctx, block, item.item, cost, decision);
  }
};

// One chunk of keys, in rounds, so that their memory latencies overlap: all first groups are asked
// for, then the second groups that are needed; what stands in a first group is checked while those
// come. A look never stands behind a check of its round, since a check's locked operations hold up
// the loads that follow.
int CheckChunk(const Chunk& chunk, const sluice_key_t* keys, size_t count, int* results,
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
                             decisions == nullptr ? nullptr : &decisions[i]);
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

int CheckKeys(sluice_rule& r, const sluice_key_t* keys, size_t count, uint64_t cost, int* results,
              sluice_decision_t* decisions) {
  const Attachment* const a = AttachmentOf(r.client);
  RuleBlock own;
  RuleBlock* const block = a == nullptr ? nullptr : BlockOf(r, *a, &own);
  int allowed = 0;
  if (block == nullptr) {
    for (size_t i = 0; i < count; ++i) {
      results[i] = AnswerDefault(r.client, a == nullptr ? 0 : SLUICE_E_NO_RULE,
                                 decisions != nullptr ? &decisions[i] : nullptr);
      allowed += results[i] > 0 ? 1 : 0;
    }
    return allowed;
  }
  if (cost == 0) {  // only a look
    for (size_t i = 0; i < count; ++i) {
      results[i] = CheckRuleLong(r, {keys[i].key, keys[i].len}, 0,
                                 decisions != nullptr ? &decisions[i] : nullptr);
      allowed += results[i] > 0 ? 1 : 0;
    }
    return allowed;
  }
  Context ctx(r.client, a, block->coarse_serves);
  const uint64_t now_ns = ctx.time.now_ns();
  const uint64_t until_ns = UsualUntil(*a, now_ns);
  const bool is_usual = now_ns < until_ns && !block->tries();
  if (block->rule.kind == shm::Kind::kTokenBucket && !block->tries()) {
    block->usual_until_ns.store(until_ns, std::memory_order_relaxed);  // orders nothing
  }
  const Chunk chunk = {ctx, r, *block, now_ns, is_usual, cost};
  for (size_t at = 0; at < count; at += kChunk) {
    const size_t n = std::min(kChunk, count - at);
    allowed += CheckChunk(chunk, keys + at, n, results + at,
                          decisions != nullptr ? decisions + at : nullptr);
  }
  return allowed;
}

// A chunk of a usual batch: cost 1, no decisions, a thread that watches nothing, no shard degraded.
// In rounds as CheckChunk. False, and nothing is done, where a key does not name its bucket as it
// stands.
bool CheckPlainChunk(sluice_rule& r, const RuleBlock& block, const sluice_key_t* keys, size_t count,
                     uint64_t now_ns, int* results, int* allowed) {
  const Attachment& a = *block.attachment;
  const Table table = TableOf(a);
  uint64_t hashes[kChunk];
  uint32_t slots[kChunk];
  uint32_t in_second = 0;  // a bit per key
  for (size_t i = 0; i < count; ++i) {
    if (keys[i].key == nullptr || keys[i].len > block.plain_bytes) [[unlikely]] {
      return false;
    }
    hashes[i] = HashPlain(block, {keys[i].key, keys[i].len});
    table.PrefetchFirst(hashes[i]);
  }
  for (size_t i = 0; i < count; ++i) {
    slots[i] = table.FindFirst(hashes[i]);
    if (slots[i] != shm::kNoSlot) continue;
    table.PrefetchSecond(hashes[i]);
    in_second |= 1u << i;
  }
  int sum = 0;
  const auto check = [&](size_t i) __attribute__((always_inline)) {
    const KeyPath path = {r, block, {keys[i].key, keys[i].len}, hashes[i]};
    results[i] = slots[i] == shm::kNoSlot
                     ? path.Long(1, nullptr)
                     : CheckUsual<true, true>(path, a.slots[slots[i]],
                                              shm::FingerprintOf(hashes[i]), now_ns, 1, nullptr);
    sum += results[i] > 0 ? 1 : 0;
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
  *allowed += sum;
  return true;
}

// How many keys were checked: up to the first chunk that is not plain.
size_t CheckPlainChunks(sluice_rule& r, const RuleBlock& block, const sluice_key_t* keys,
                        size_t count, uint64_t now_ns, int* results, int* allowed) {
  size_t at = 0;
  while (at < count) {
    const size_t n = std::min(kChunk, count - at);
    if (!CheckPlainChunk(r, block, keys + at, n, now_ns, results + at, allowed)) break;
    at += n;
  }
  return at;
}

}  // namespace
}  // namespace sluice::client

extern "C" {

int sluice_rule_check_many(sluice_rule_t* rule, const sluice_key_t* keys, size_t count,
                           uint64_t cost, int* results, sluice_decision_t* decisions) {
  if (rule == nullptr || (count != 0 && (keys == nullptr || results == nullptr)) ||
      cost > SLUICE_MAX_COST || count > INT32_MAX) {
    return SLUICE_E_ARGUMENT;
  }
  int allowed = 0;
  size_t done = 0;
  const sluice::client::RuleBlock* const block = rule->blocks.current();
  if (cost == 1 && decisions == nullptr && block != nullptr && !sluice::client::IsWatching()) {
    const uint64_t now_ns = sluice::client::Clock::Now(block->coarse_serves);
    if (sluice::client::IsUsual(*block, now_ns) &&
        !sluice::client::IsAnyShardDegraded(*block->attachment)) {
      done =
          sluice::client::CheckPlainChunks(*rule, *block, keys, count, now_ns, results, &allowed);
    }
  }
  if (done == count) return allowed;
  return allowed + sluice::client::CheckKeys(*rule, keys + done, count - done, cost, results + done,
                                             decisions != nullptr ? decisions + done : nullptr);
}

}  // extern "C"
