// Places of requests in flight: entering and leaving.
//
// A place is an entry in shared memory that names this client, so that the daemon can give it back
// when the process dies; see shm/places.h. What is handed out is a copy of where it stands.
#include <algorithm>
#include <cstring>

#include "client/candidate.h"
#include "client/check.h"
#include "client/refund.h"

namespace sluice::client {
namespace {

int Enter(sluice_t* client, const Attachment& a, const Plan& plan, uint64_t cost,
          sluice_place_t* place) {
  Context ctx(client, &a, plan.coarse_serves);
  // After the step that the context takes: a forked child may have its own number by now.
  const uint32_t holder = client->attacher.holder(a.generation);
  if (holder == 0) return AnswerDefault(client, 0, &place->decision);
  ctx.place_name = shm::places::NameOf(holder, client->attacher.NextNonce());
  const int answer = CheckPlan(ctx, plan, cost, &place->decision);
  if (answer > 0) place->name = ctx.place_name;
  return answer;
}

}  // namespace
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
