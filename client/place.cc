// Places of requests in flight: entering and leaving.
//
// A place is an entry in shared memory that names this client, so that the daemon can give it back
// when the process dies; see shm/places.h. What is handed out is a copy of where it stands.
#include <algorithm>
#include <cstring>

#include "client/candidate.h"
#include "client/check.h"
#include "client/refund.h"
#include "shm/place_queue.h"

namespace sluice::client {

using shm::DegradedMode;
using shm::Outcome;

namespace {

// What this host may use of the limit where it holds over all hosts: what it was lent, and in an
// emergency what `when_degraded` adds. aux is for the shard only: its load orders nothing.
shm::places::Lent<std::atomic<uint64_t>> LentNow(Context& ctx, const Rule& rule, Attempt* attempt) {
  if (rule.strict == 0) return {};
  const Attachment& a = *ctx.attachment;
  shm::places::Lent<std::atomic<uint64_t>> lent = {&a.second[attempt->index], 0};
  const uint64_t now_ns = ctx.time.now_ns();
  const Degraded degraded =
      DegradedNow(a, attempt->slot->aux.load(std::memory_order_relaxed), now_ns);
  attempt->emergency = degraded.is;
  if (!degraded.is) [[likely]] {
    return lent;
  }
  const bool late = IsLate(rule, degraded, now_ns);
  const auto limit = static_cast<uint32_t>(rule.limit.limit);
  switch (late ? rule.then_mode : rule.mode) {
    case DegradedMode::kOpen:
      lent.alone = limit;
      break;
    case DegradedMode::kDegrade: {
      const uint64_t factor_q16 = late ? rule.then_factor_q16 : rule.factor_q16;
      const uint64_t hosts = std::max<uint64_t>(HostsOf(a), 1);
      lent.alone = static_cast<uint32_t>((uint64_t{limit} << 16) /
                                         std::max<uint64_t>(factor_q16, 1) / hosts);
      break;
    }
    case DegradedMode::kClosed:
    case DegradedMode::kNormal:
      break;
  }
  return lent;
}

// Of those who wait it is the one who came first who enters, as far as hints go. `stands_back`:
// another did.
void StandInLine(Context& ctx, const Rule& rule, bool stands_back, Attempt* attempt) {
  const uint64_t k = shm::key::Make(attempt->fp, rule.kind, attempt->seen.gen);
  const uint64_t now_ns = ctx.time.now_ns();
  if (attempt->outcome == Outcome::kAllowed && !stands_back) {
    const bool has_entered = attempt->charge.commit && ctx.has_found_full;
    if (has_entered) shm::places::ShowEntered(*attempt->slot, k, rule.id, now_ns);
  } else if (attempt->outcome == Outcome::kAllowed) {
    attempt->outcome = Outcome::kDenied;
    attempt->seen.verdict.allowed = false;
    attempt->seen.retry_after_ns = shm::places::kRetryNs;
  } else if (attempt->outcome == Outcome::kDenied && attempt->seen.retry_after_ns != shm::kNever) {
    ctx.has_found_full = true;
    ctx.is_first = shm::places::ShowWaiting(*attempt->slot, k, rule.id, ctx.came_ns, now_ns);
  }
}

int Enter(sluice_t* client, const Attachment& a, const Plan& plan, uint64_t cost,
          sluice_place_t* place) {
  Context ctx(client, &a, plan.coarse_serves);
  if (!NameEntry(ctx)) return AnswerDefault(client, 0, &place->decision);
  const int answer = CheckPlan(ctx, plan, cost, &place->decision);
  if (answer > 0) place->name = ctx.place_name;
  return answer;
}

}  // namespace

// After the step that the context takes: a forked child may have its own number by now.
bool NameEntry(Context& ctx) {
  Attacher& attacher = ctx.client->attacher;
  const uint32_t holder = attacher.holder(ctx.attachment->generation);
  if (holder == 0) return false;
  // Who only looks uses no name up.
  ctx.place_name = shm::places::NameOf(holder, ctx.is_looking() ? 0 : attacher.NextNonce());
  return true;
}

// A key for which no row is free is denied: nobody could say who holds its places.
void RunPlaces(Context& ctx, const Item& item, uint64_t policy, uint64_t cost, bool commit,
               Attempt* attempt) {
  const Rule& rule = *item.rule;
  const bool enters = ctx.place_name != 0;
  const bool waits = enters && ctx.patience_ns != 0 && rule.shadow == 0;
  attempt->emergency = false;
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    // A hint: orders nothing.
    const bool stands_back =
        waits && shm::places::IsBehind(attempt->slot->aux.load(std::memory_order_relaxed),
                                       ctx.came_ns, ctx.time.now_ns());
    // Who does not enter asks for one: its cost is of other rules.
    attempt->charge = ChargeOf(rule, enters ? cost : 1, /*cost_ns=*/0,
                               commit && enters && !ctx.is_looking() && !stands_back);
    if (attempt->overflow) {
      const uint64_t limit = rule.limit.limit;
      const bool fits = attempt->absent && attempt->charge.tokens <= limit;
      attempt->seen = {};
      attempt->seen.verdict = {fits, ctx.time.now_ns(), ctx.time.now_ns()};
      attempt->seen.remaining = attempt->absent ? limit : 0;
      attempt->seen.retry_after_ns = attempt->charge.tokens > limit ? shm::kNever
                                     : fits                         ? 0
                                                                    : shm::places::kRetryNs;
      attempt->outcome = fits ? Outcome::kAllowed : Outcome::kDenied;
      return;
    }
    attempt->outcome = shm::places::Enter(
        PlacesTableOf(*ctx.attachment, rule), attempt->index, attempt->hash, attempt->charge,
        LentNow(ctx, rule, attempt), ctx.place_name, ctx.time, &attempt->seen);
    if (waits) StandInLine(ctx, rule, stands_back, attempt);
    if (attempt->outcome == Outcome::kAllowed || attempt->outcome == Outcome::kDenied) return;
    if (attempt->outcome == Outcome::kGaveUp) break;
    Locate(ctx, item, policy, shm::kNoSlot, attempt);
  }
  attempt->outcome = Outcome::kGaveUp;
}

}  // namespace sluice::client

using sluice::client::AnswerDefault;
using sluice::client::Attachment;
namespace shm = sluice::shm;

extern "C" {

int sluice_enter(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                 uint64_t cost, sluice_place_t* place) {
  if (client == nullptr || place == nullptr) return SLUICE_E_ARGUMENT;
  std::memset(place, 0, offsetof(sluice_place_t, decision) + offsetof(sluice_decision_t, spends));
  if (cost - 1 >= SLUICE_MAX_COST || (descriptors == nullptr && count != 0)) {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, &place->decision);
  }
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a == nullptr) return AnswerDefault(client, 0, &place->decision);
  sluice::client::Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, descriptors, count, &client->shapes, &plan);
  if (built != 0) return AnswerDefault(client, built, &place->decision);
  if (plan.count == 0) return sluice::client::AnswerNoMatch(&place->decision);
  return sluice::client::Enter(client, *a, plan, cost, place);
}

int sluice_leave(sluice_t* client, sluice_place_t* place) {
  if (client == nullptr || place == nullptr) return SLUICE_E_ARGUMENT;
  const sluice_decision_t& decision = place->decision;
  if (place->name == 0 || decision.spend_count > SLUICE_MAX_RULES_PER_REQUEST) return 0;
  const Attachment* const a = client->attacher.current();
  if (a == nullptr || a->generation != decision.generation) return SLUICE_E_STALE;
  // In a forked child a copy of its parent's place is nobody's.
  const auto holder = static_cast<uint32_t>(place->name >> shm::places::kNonceBits);
  if (holder != client->attacher.holder(a->generation)) return 0;
  bool has_left = false;
  for (uint16_t i = 0; i < decision.spend_count; ++i) {
    const sluice_spend_t& spend = decision.spends[i];
    if (sluice::client::KindOfFlags(spend.flags) != shm::Kind::kInFlight ||
        (spend.flags & sluice::client::kSpent) == 0 ||
        (spend.new_ns & shm::places::kNameMask) != place->name) {
      continue;
    }
    has_left |= sluice::client::LeavePlaces(*a, spend.slot, /*overflow=*/false, spend.new_ns,
                                            spend.floor_q16, spend.tokens);
  }
  place->name = 0;
  return has_left ? 1 : 0;
}

}  // extern "C"
