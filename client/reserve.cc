// Reservations: an estimate is charged first, and settled when the cost is known.
//
// What makes a reservation settled once, whoever settles it from whatever process, is a slot of the
// table under a random name, whose word is the time at which the reservation ends. Who moves that
// word to the past by CAS has settled it. Left alone it expires like any bucket, and the estimate
// stands: that is also what a process leaves behind that was killed. There is no other store.
#include <algorithm>
#include <cstring>

#include "client/candidate.h"
#include "client/check.h"
#include "client/correct.h"

namespace sluice::client {
namespace {

constexpr uint64_t kMinHoldNs = 1'000'000;
constexpr int kNames = 4;  // random names to try: one that is taken already is a chance of 2^-45
static_assert(SLUICE_MAX_HOLD_NS == shm::kMaxHoldNs);

// Threads and processes draw from sequences of their own; should two draw the same, the table shows
// that the second did not claim it.
uint64_t RandomName() {
  static thread_local uint64_t state = 0;
  if (state == 0) state = reinterpret_cast<uintptr_t>(&state) ^ Clock::PreciseNs();
  return shm::SplitMix64(state) ^ Clock::PreciseNs() * 0x9e3779b97f4a7c15;
}

// The most units of a request's cost that every bucket of the plan can hold.
uint64_t SmallestCapacity(const Plan& plan) {
  uint64_t most = SLUICE_MAX_COST;
  for (size_t i = 0; i < plan.count; ++i) {
    const Rule& rule = *plan.items[i].rule;
    // A reservation takes no place.
    if (rule.shadow || rule.kind == shm::Kind::kInFlight) continue;
    const uint64_t tokens =
        rule.kind == shm::Kind::kTokenBucket ? shm::Remaining(rule.limit, 0, 0, /*dearer_q16=*/0)
        : rule.kind == shm::Kind::kLease
            ? shm::PartAbove(rule.limit.burst, static_cast<uint16_t>(rule.floor_q16))
            : rule.limit.burst;
    most = std::min(most, tokens / std::max(rule.cost, 1u));
  }
  return std::max<uint64_t>(most, 1);
}

// Claims a slot that says until when the reservation is held. False where none is free.
// Memory orders: the CAS pairs with the loads of who looks for a free slot, as every word's (I1).
bool Hold(Context& ctx, uint64_t hold_ns, sluice_reservation_t* r) {
  const Attachment& a = *ctx.attachment;
  ctx.time.ReadPrecise();
  const Table::Env env = EnvOf(ctx);
  for (int attempt = 0; attempt < kNames; ++attempt) {
    const uint64_t name = RandomName();
    bool claimed = false;
    const uint32_t index = ctx.table.FindOrClaim(name, shm::Kind::kTokenBucket,
                                                 shm::aux::Make(0, 0, 0), env, &claimed);
    if (index == shm::kNoSlot || !claimed) continue;
    shm::Slot& slot = a.slots[index];
    uint64_t w = slot.word.load(std::memory_order_acquire);
    const uint64_t key = slot.key.load(std::memory_order_acquire);
    if (shm::word::IsDead(w) || shm::key::Fp(key) != shm::FingerprintOf(name)) continue;
    const uint64_t expires_ns = std::max(w, ctx.time.now_ns()) + hold_ns;
    if (!slot.word.compare_exchange_strong(w, expires_ns, std::memory_order_acq_rel)) continue;
    r->expires_ns = expires_ns;
    r->key = key;
    r->slot = index;
    return true;
  }
  return false;
}

// True for the one who ends the reservation, in time. The slot is free at once, without the grace
// that others have: no thread charges it that may have stood still. The CAS pairs with the loads
// here; the grace is a number that orders nothing.
bool TakeHold(const Attachment& a, const sluice_reservation_t& r, uint64_t now_ns) {
  if (now_ns >= r.expires_ns || r.slot >= a.capacity) return false;
  shm::Slot& slot = a.slots[r.slot];
  uint64_t w = slot.word.load(std::memory_order_acquire);
  if (w != r.expires_ns || slot.key.load(std::memory_order_acquire) != r.key) return false;
  const uint64_t grace_ns = a.control->grace_ns.load(std::memory_order_relaxed);
  const uint64_t over_ns = now_ns - std::min(now_ns - 1, grace_ns);
  return slot.word.compare_exchange_strong(w, over_ns, std::memory_order_acq_rel);
}

int Reserve(sluice_t* client, const Attachment& a, const Plan& plan, uint64_t estimate,
            uint64_t hold_ns, sluice_reservation_t* r) {
  r->estimate = std::min(estimate, SmallestCapacity(plan));
  Context ctx(client, &a, plan.coarse_serves);
  const int answer = CheckPlan(ctx, plan, r->estimate, &r->decision);
  if (answer <= 0 || Hold(ctx, hold_ns, r)) return answer;
  sluice_refund(client, &r->decision);
  return AnswerDefault(client, SLUICE_E_FULL, &r->decision);
}

}  // namespace
}  // namespace sluice::client

using sluice::client::AnswerDefault;
using sluice::client::Attachment;
using sluice::client::Clock;

extern "C" {

int sluice_reserve(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                   uint64_t estimate, uint64_t hold_ns, sluice_reservation_t* reservation) {
  if (client == nullptr || reservation == nullptr) return SLUICE_E_ARGUMENT;
  std::memset(reservation, 0, sizeof *reservation);
  sluice_decision_t* const decision = &reservation->decision;
  if (estimate - 1 >= SLUICE_MAX_COST || (descriptors == nullptr && count != 0) ||
      hold_ns < sluice::client::kMinHoldNs || hold_ns > SLUICE_MAX_HOLD_NS) {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, decision);
  }
  reservation->estimate = estimate;
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a == nullptr) return AnswerDefault(client, 0, decision);
  sluice::client::Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, descriptors, count, &client->shapes, &plan);
  if (built != 0) return AnswerDefault(client, built, decision);
  if (plan.count == 0) return sluice::client::AnswerNoMatch(decision);  // nothing to hold
  return sluice::client::Reserve(client, *a, plan, estimate, hold_ns, reservation);
}

int sluice_settle(sluice_t* client, const sluice_reservation_t* reservation, uint64_t actual) {
  if (client == nullptr || reservation == nullptr || actual > SLUICE_MAX_COST) {
    return SLUICE_E_ARGUMENT;
  }
  const sluice_reservation_t& r = *reservation;
  if (r.expires_ns == 0 || r.estimate == 0) return 0;
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a == nullptr || a->generation != r.decision.generation) return SLUICE_E_STALE;
  const uint64_t now_ns = Clock::PreciseNs();
  if (!sluice::client::TakeHold(*a, r, now_ns)) return 0;
  sluice::client::Context ctx(client, a, /*coarse_serves=*/false);
  const size_t count = size_t{r.decision.spend_count} + r.decision.candidate_count;
  for (size_t i = 0; i < std::min(count, sluice::client::kMaxItems); ++i) {
    const sluice_spend_t& spend = r.decision.spends[i];
    if ((spend.flags & sluice::client::kSpent) == 0) continue;
    sluice::client::Correct(ctx, r.decision.policy, spend, actual, r.estimate, now_ns);
  }
  return 1;
}

}  // extern "C"
