// Handles: a list of descriptors, matched once. The shortest way to a check.
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "client/blocks.h"
#include "client/candidate.h"
#include "client/check.h"
#include "client/lease.h"
#include "client/lent.h"
#include "client/windowed.h"

struct sluice_handle;

namespace sluice::client {
namespace {

constexpr size_t kHandleItems = 4;  // more matching rules: checked unbound
constexpr size_t kHandleValues = 8;
constexpr size_t kHandleIps = 4;

struct HandleBlock {
  // What the usual check reads. The atomics are hints that all threads share: a wrong slot costs a
  // search.
  const std::atomic<uint64_t>* policy_word;
  uint64_t policy;
  bool coarse_serves;
  std::atomic<uint64_t> usual_until_ns;  // 0: several rules, no token bucket, or no slot
  std::atomic<shm::Slot*> slot;
  uint64_t fp;
  uint64_t lag_ns;

  // The same where the one rule's word is no token bucket's.
  std::atomic<uint64_t> other_until_ns;
  uint64_t other_fp;

  const Attachment* attachment;
  sluice_handle* handle;
  uint64_t structure;  // of the policy
  bool tries;          // as the plan's: no check is usual
  size_t count;
  size_t value_count;
  size_t ip_bytes;
  Item items[kHandleItems];
  Rule rules[kHandleItems];
  Text values[kHandleValues];
  char ips[kHandleIps * kIpBytes];
};

// Memory orders: usual_until_ns, and other_until_ns likewise, is stored with release after the
// slot, which pairs with the usual check's acquire load of it: the slot that it then uses is the
// one found. The policy word's acquire load pairs with the daemon's release store.

// Copies items and their values, re-pointing what pointed into where they stood: values into `ips`,
// items into `values`, and to the block's rules, which are set.
void CopyItems(const Item* items, const Text* values, const char* ips, HandleBlock* block) {
  std::memcpy(block->ips, ips, block->ip_bytes);
  for (size_t i = 0; i < block->value_count; ++i) {
    Text value = values[i];
    if (value.data >= ips && value.data < ips + block->ip_bytes) {
      value.data = block->ips + (value.data - ips);
    }
    block->values[i] = value;
  }
  for (size_t i = 0; i < block->count; ++i) {
    block->items[i] = items[i];
    block->items[i].rule = &block->rules[i];
    block->items[i].values = block->values + (items[i].values - values);
  }
  block->fp = shm::FingerprintOf(items[0].hash);
  block->other_fp = shm::FingerprintOf(shm::HashOfKind(items[0].hash, block->rules[0].kind));
}

bool CopyPlan(const Plan& plan, HandleBlock* block) {
  if (plan.count > kHandleItems || plan.value_count > kHandleValues ||
      plan.arena_used > sizeof block->ips) {
    return false;
  }
  block->policy = plan.policy;
  block->structure = plan.structure;
  block->count = plan.count;
  block->value_count = plan.value_count;
  block->ip_bytes = plan.arena_used;
  block->coarse_serves = plan.coarse_serves;
  block->tries = plan.tries;
  for (size_t i = 0; i < plan.count; ++i) block->rules[i] = *plan.items[i].rule;
  CopyItems(plan.items, plan.values, plan.arena, block);
  // Orders nothing: the block is not in force yet.
  block->slot.store(nullptr, std::memory_order_relaxed);
  block->usual_until_ns.store(0, std::memory_order_relaxed);
  block->other_until_ns.store(0, std::memory_order_relaxed);
  return true;
}

// Where only numbers changed since `old`: what was matched holds, and only they are read. False
// where more did. Relaxed stores: Blocks hands the block on.
bool FollowNumbers(const Attachment& a, uint64_t coarse_step_ns, const HandleBlock& old,
                   HandleBlock* block) {
  NumbersReader reader(a, old.structure);
  block->coarse_serves = true;
  for (size_t i = 0; i < old.count; ++i) {
    block->rules[i] = reader.Read(old.rules[i]);
    block->coarse_serves =
        block->coarse_serves && shm::CoarseServes(block->rules[i], coarse_step_ns);
  }
  if (!reader.IsWhole()) return false;
  block->policy = reader.policy();
  block->structure = old.structure;
  block->tries = old.tries;
  block->count = old.count;
  block->value_count = old.value_count;
  block->ip_bytes = old.ip_bytes;
  CopyItems(old.items, old.values, old.ips, block);
  // Orders nothing, see above.
  block->slot.store(old.slot.load(std::memory_order_relaxed), std::memory_order_relaxed);
  block->usual_until_ns.store(0, std::memory_order_relaxed);
  block->other_until_ns.store(0, std::memory_order_relaxed);
  return true;
}

}  // namespace
}  // namespace sluice::client

struct sluice_handle {
  sluice_t* client = nullptr;
  size_t count = 0;
  std::unique_ptr<sluice_descriptor_t[]> descriptors;
  std::unique_ptr<char[]> bytes;  // names and values
  sluice::client::Blocks<sluice::client::HandleBlock> blocks;
};

namespace sluice::client {
namespace {

HandleBlock* RebuildHandle(sluice_handle& h, const Attachment& a) {
  const uint64_t coarse_step_ns = h.client->coarse_step_ns;
  return h.blocks.Rebuild(Clock::CoarseNs(), [&](const HandleBlock* old, HandleBlock* block) {
    block->attachment = &a;
    block->handle = &h;
    block->policy_word = &a.control->policy;
    if (old == nullptr || old->attachment != &a || old->count == 0 ||
        !FollowNumbers(a, coarse_step_ns, *old, block)) {
      Plan plan;
      if (BuildPlan(a, coarse_step_ns, h.descriptors.get(), h.count, /*shapes=*/nullptr, &plan) !=
              0 ||
          !CopyPlan(plan, block)) {
        return false;
      }
    }
    block->lag_ns = block->coarse_serves ? shm::kCoarseLagSteps * coarse_step_ns : 0;
    return true;
  });
}

// Memory orders: usual_until_ns pairs with CheckHandleAt's load, see above CopyPlan.
// All that is not usual. [[gnu::noinline]], here and below, keeps its state off the usual way.
[[gnu::noinline]] int CheckHandleLong(sluice_handle& h, uint64_t cost,
                                      sluice_decision_t* decision) {
  if (cost > SLUICE_MAX_COST) return AnswerDefault(h.client, SLUICE_E_ARGUMENT, decision);
  if (cost == 0) return sluice_peek(h.client, h.descriptors.get(), h.count, 0, decision);
  const Attachment* const a = AttachmentOf(h.client);
  if (a == nullptr) return AnswerDefault(h.client, 0, decision);
  HandleBlock* block = h.blocks.current();
  if (block == nullptr || block->attachment != a ||
      block->policy != a->control->policy.load(std::memory_order_acquire)) {
    block = RebuildHandle(h, *a);
  }
  if (block == nullptr || block->count == 0) {
    return sluice_check(h.client, h.descriptors.get(), h.count, cost, decision);
  }
  Context ctx(h.client, a, block->coarse_serves);
  if (block->tries) {
    return CheckTrying(ctx, block->items, block->count, block->policy, cost, decision);
  }
  if (block->count > 1) {
    return CheckItems(ctx, block->items, block->count, block->policy, cost, decision);
  }
  Attempt attempt;
  Locate(ctx, block->items[0], block->policy, shm::kNoSlot, &attempt);
  const int answer = CheckItem(ctx, block->items[0], block->policy, cost, &attempt, decision);
  if (attempt.overflow || !IsShardHealthy(*a, *attempt.slot)) {
    block->usual_until_ns.store(0, std::memory_order_relaxed);
    block->other_until_ns.store(0, std::memory_order_relaxed);
  } else {
    block->slot.store(attempt.slot, std::memory_order_relaxed);
    const bool is_bucket = block->rules[0].kind == shm::Kind::kTokenBucket;
    (is_bucket ? block->usual_until_ns : block->other_until_ns)
        .store(UsualUntil(*a, ctx.time.now_ns()), std::memory_order_release);
  }
  return answer;
}

// What is rare on a handle's usual check; all calls pass registers only.
[[gnu::noinline]] int FinishHandle(const HandleBlock& block, shm::Slot& slot) {
  FinishItem(*block.handle->client, *block.attachment, block.items[0], block.policy, slot);
  return 1;
}

[[gnu::noinline]] int DenyHandle(const HandleBlock& block, shm::Slot& slot, uint16_t gen,
                                 uint64_t now_ns) {
  if (block.rules[0].penal) {
    NoteAtOnce(*block.attachment, slot, gen);
  } else if (block.rules[0].classed) {
    NoteDeniedOfClass(*block.attachment, *block.handle->client, slot, gen, block.rules[0],
                      block.policy, now_ns);
  } else {
    BeginTally(*block.attachment, *block.handle->client, slot, gen, now_ns);
    RememberDenial(*block.attachment, slot, block.fp, /*hash=*/0, block.rules[0], now_ns,
                   block.lag_ns);
  }
  return block.rules[0].shadow ? 1 : 0;
}

// Loaded behind usual_until_ns, whose acquire load hands it on: by itself it orders nothing.
shm::Slot& SlotOf(const HandleBlock& block) { return *block.slot.load(std::memory_order_relaxed); }

LeaseName NameOf(const HandleBlock& block) { return {&block.rules[0], 0}; }

Leasable LeasableOf(const HandleBlock& block, shm::Slot& slot) {
  return {*block.handle->client, *block.attachment, block.rules[0], NameOf(block), slot, block.fp};
}

[[gnu::noinline]] int ContendedHandle(const HandleBlock& block, uint64_t now_ns) {
  shm::Slot& slot = SlotOf(block);
  const Leased leased = LeaseIfContended(LeasableOf(block, slot), now_ns);
  if (leased == Leased::kNo) return CheckHandleLong(*block.handle, 1, nullptr);
  return leased == Leased::kYes ? 1 : FinishHandle(block, slot);
}

// See CheckUsual.
struct HandlePath {
  const HandleBlock& block;

  const Rule& rule() const { return block.rules[0]; }
  uint64_t lag_ns() const { return block.lag_ns; }
  const Attachment& attachment() const { return *block.attachment; }
  int Long(uint64_t cost, sluice_decision_t* decision) const {
    return CheckHandleLong(*block.handle, cost, decision);
  }
  int Contended(uint64_t now_ns) const { return ContendedHandle(block, now_ns); }
  int Finish(shm::Slot& slot) const { return FinishHandle(block, slot); }
  int Deny(shm::Slot& slot, uint16_t gen, uint64_t now_ns) const {
    return DenyHandle(block, slot, gen, now_ns);
  }
  int Tell(const Attempt& attempt, uint64_t now_ns, sluice_decision_t* decision) const {
    return AnswerOne(*block.attachment, Time::Of(now_ns, block.lag_ns), block.rules[0],
                     block.policy, attempt, decision);
  }
};

// False where the long way is due. usual_until_ns pairs with CheckHandleLong's store; the slot,
// which callers load behind it, needs no order. The policy word pairs with the daemon's store.
bool IsUsual(const HandleBlock& block, uint64_t now_ns) {
  return now_ns < block.usual_until_ns.load(std::memory_order_acquire) &&
         block.policy_word->load(std::memory_order_acquire) == block.policy;
}

// The same for words that are no token bucket's.
bool IsOther(const HandleBlock& block, uint64_t now_ns) {
  return now_ns < block.other_until_ns.load(std::memory_order_acquire) &&
         block.policy_word->load(std::memory_order_acquire) == block.policy;
}

// What is not a token bucket's usual check.
[[gnu::noinline]] int CheckHandleUnusual(const HandleBlock& block, uint64_t now_ns, uint64_t cost,
                                         sluice_decision_t* decision) {
  if (shm::HasRow(block.rules[0].kind) || !IsOther(block, now_ns)) {
    return CheckHandleLong(*block.handle, cost, decision);
  }
  const HandlePath path{block};
  return shm::IsWindow(block.rules[0].kind)
             ? CheckWindowed(path, SlotOf(block), block.other_fp, now_ns, cost, decision)
             : CheckLent(path, SlotOf(block), block.other_fp, now_ns, cost, decision);
}

// The check at a known time, and why it is a function of its own: see CheckUsual. Three of them:
// the plain one, the same for a thread that tallies denials of this handle or of another, and for
// one that leases.
[[gnu::noinline]] int CheckHandleLeasing(const HandleBlock& block, uint64_t now_ns) {
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckHandleUnusual(block, now_ns, 1, nullptr);
  }
  if (SpendLeased(*block.handle->client, NameOf(block), now_ns)) [[likely]] {
    return 1;
  }
  shm::Slot& slot = SlotOf(block);
  const Leased leased = RenewLease(LeasableOf(block, slot), now_ns);
  if (leased != Leased::kNo) return leased == Leased::kYes ? 1 : FinishHandle(block, slot);
  return CheckUsual<true, false>(HandlePath{block}, slot, block.fp, now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckHandleTallying(const HandleBlock& block, uint64_t now_ns) {
  if (IsLeasing()) [[unlikely]] {
    return CheckHandleLeasing(block, now_ns);
  }
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckHandleUnusual(block, now_ns, 1, nullptr);
  }
  shm::Slot& slot = SlotOf(block);
  if (TallyDeniedAgain(slot, block.rules[0], now_ns)) [[likely]] {
    return block.rules[0].shadow ? 1 : 0;
  }
  return CheckUsual<true, false>(HandlePath{block}, slot, block.fp, now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckHandlePlain(const HandleBlock& block, uint64_t now_ns) {
  if (IsWatching()) [[unlikely]] {
    return CheckHandleTallying(block, now_ns);
  }
  if (!IsUsual(block, now_ns)) [[unlikely]] {
    return CheckHandleUnusual(block, now_ns, 1, nullptr);
  }
  shm::Slot& slot = SlotOf(block);
  return CheckUsual<true, true>(HandlePath{block}, slot, block.fp, now_ns, 1, nullptr);
}

[[gnu::noinline]] int CheckHandleFull(sluice_handle& h, uint64_t cost,
                                      sluice_decision_t* decision) {
  const HandleBlock* const block = h.blocks.current();
  if (block == nullptr || cost - 1 >= SLUICE_MAX_COST) return CheckHandleLong(h, cost, decision);
  const uint64_t now_ns = Clock::Now(block->coarse_serves);
  if (!IsUsual(*block, now_ns)) return CheckHandleUnusual(*block, now_ns, cost, decision);
  shm::Slot& slot = SlotOf(*block);
  return CheckUsual<false, false>(HandlePath{*block}, slot, block->fp, now_ns, cost, decision);
}

}  // namespace
}  // namespace sluice::client

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

int sluice_handle_check(sluice_handle_t* handle, uint64_t cost, sluice_decision_t* decision) {
  if (handle == nullptr) [[unlikely]] {
    return SLUICE_E_ARGUMENT;
  }
  if (cost != 1) return sluice::client::CheckHandleFull(*handle, cost, decision);
  if (decision != nullptr) return sluice::client::CheckHandleFull(*handle, cost, decision);
  const auto* const block = handle->blocks.current();
  if (block == nullptr) [[unlikely]] {
    return sluice::client::CheckHandleFull(*handle, cost, decision);
  }
  return sluice::client::CheckHandlePlain(*block, sluice::client::Clock::Now(block->coarse_serves));
}

void sluice_handle_free(sluice_handle_t* handle) { delete handle; }

}  // extern "C"
