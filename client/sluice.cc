// The rest of the C ABI: opening, checking lists of descriptors, refunds, state.
#include <algorithm>
#include <cstring>
#include <new>

#include "client/candidate.h"
#include "client/check.h"
#include "client/direct.h"
#include "client/refund.h"

namespace sluice::client {

const Attachment* AttachmentOf(sluice_t* client) {
  const Attachment* a = client->attacher.current();
  if (a == nullptr) [[unlikely]] {
    client->attacher.Step(Clock::CoarseNs());
    a = client->attacher.current();
  }
  return a;
}

int AnswerDefault(const sluice_t* client, int code, sluice_decision_t* decision) {
  if (decision != nullptr) {
    std::memset(decision, 0, offsetof(sluice_decision_t, spends));
    decision->allowed = client->default_allowed;
    decision->source = SLUICE_SOURCE_DEFAULT;
    decision->level = client->default_allowed != 0 ? SLUICE_LEVEL_OK : SLUICE_LEVEL_HARD;
    decision->rule = shm::kNoRule;
  }
  return code != 0 ? code : client->default_allowed;
}

int AnswerNoMatch(sluice_decision_t* decision) {
  if (decision != nullptr) {
    std::memset(decision, 0, offsetof(sluice_decision_t, spends));
    decision->allowed = 1;
    decision->source = SLUICE_SOURCE_NO_MATCH;
    decision->rule = shm::kNoRule;
    decision->remaining = UINT64_MAX;
  }
  return 1;
}

namespace {

// A plan of at least one item, looked at: nothing is spent or counted, and no slot is claimed.
int LookAt(sluice_t* client, const Attachment& a, const Plan& plan, uint64_t cost,
           sluice_decision_t* decision) {
  Absent absent;
  Context ctx(client, &a, plan.coarse_serves, &absent);
  return CheckPlan(ctx, plan, cost, decision);
}

// True where a direct shape admitted the request. The policy word pairs with the daemon's store.
bool AdmitShaped(sluice_t& client, const Attachment& a, const sluice_descriptor_t* descriptors,
                 size_t count) {
  if (count - 1 >= kShapeNames) return false;
  const Shape* const shape = client.shapes.PlaceOf(descriptors, count).current();
  return shape != nullptr && shape->is_direct && shape->candidate_count != 0 &&
         shape->IsOf(a, a.control->policy.load(std::memory_order_acquire), descriptors, count) &&
         AdmitDirect(client, a, *shape, descriptors);
}

std::atomic<uint64_t> next_client_id{1};

}  // namespace
}  // namespace sluice::client

using sluice::client::AnswerDefault;
using sluice::client::Attachment;
using sluice::client::Clock;
using sluice::client::Context;
using sluice::client::Plan;
namespace shm = sluice::shm;

extern "C" {

int sluice_open(const sluice_options_t* options, sluice_t** client) {
  if (client == nullptr) return SLUICE_E_ARGUMENT;
  *client = nullptr;
  sluice_options_t o = {sizeof(sluice_options_t), 1, nullptr, nullptr};
  if (options != nullptr) {
    // A caller built against a shorter or longer struct: what both know is taken.
    if (options->struct_size < 8 || options->struct_size > 4096) return SLUICE_E_ARGUMENT;
    std::memcpy(&o, options, std::min<size_t>(options->struct_size, sizeof o));
  }
  auto* const c = new (std::nothrow) sluice_t;
  if (c == nullptr) return SLUICE_E_MEMORY;
  // A counter: orders nothing.
  c->id = sluice::client::next_client_id.fetch_add(1, std::memory_order_relaxed);
  c->coarse_step_ns = Clock::CoarseStepNs();
  c->default_allowed = o.default_allowed != 0 ? 1 : 0;
  if (!c->attacher.Open(o.runtime_dir, o.label)) {
    delete c;
    return SLUICE_E_MEMORY;
  }
  c->attacher.Step(Clock::PreciseNs());
  *client = c;
  return 0;
}

void sluice_close(sluice_t* client) {
  if (client == nullptr) return;
  if (client->attacher.current() != nullptr) {
    sluice::client::FlushTally(*client);
  }
  delete client;
}

int sluice_wait_turn(const sluice_decision_t* decision) {
  if (decision == nullptr) return SLUICE_E_ARGUMENT;
  if (decision->allowed == 0 || decision->delay_ns == 0) return 1;
  const uint64_t turn_ns = decision->now_ns + decision->delay_ns;
  const timespec turn = {static_cast<time_t>(turn_ns / 1'000'000'000),
                         static_cast<long>(turn_ns % 1'000'000'000)};
  return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &turn, nullptr) == 0 ? 1 : 0;
}

int sluice_wait(sluice_t* client, uint32_t timeout_ms) {
  if (client == nullptr) return 0;
  const uint64_t until_ns = Clock::PreciseNs() + uint64_t{timeout_ms} * 1'000'000;
  for (;;) {
    const uint64_t now_ns = Clock::PreciseNs();
    client->attacher.Step(now_ns);
    const Attachment* const a = client->attacher.current();
    // A forked child goes on with what its parent mapped, but is to have a connection of its own.
    if (a != nullptr && client->attacher.fork_epoch() != 0 &&
        client->attacher.holder(a->generation) != 0) {
      return 1;
    }
    if (now_ns >= until_ns) return a != nullptr ? 1 : 0;
    const timespec pause = {0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
}

int sluice_check(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                 uint64_t cost, sluice_decision_t* decision) {
  if (client == nullptr) return SLUICE_E_ARGUMENT;
  if (cost > SLUICE_MAX_COST || (descriptors == nullptr && count != 0)) {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, decision);
  }
  if (cost == 0) return sluice_peek(client, descriptors, count, 0, decision);
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a != nullptr && cost == 1 && decision == nullptr &&
      sluice::client::AdmitShaped(*client, *a, descriptors, count)) [[likely]] {
    return 1;
  }
  if (a == nullptr) [[unlikely]] {
    return AnswerDefault(client, count > SLUICE_MAX_DESCRIPTORS ? SLUICE_E_DESCRIPTORS : 0,
                         decision);
  }
  Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, descriptors, count, &client->shapes, &plan);
  if (built != 0) [[unlikely]] {
    return AnswerDefault(client, built, decision);
  }
  if (plan.count == 0) {
    client->attacher.Step(Clock::CoarseNs());
    return sluice::client::AnswerNoMatch(decision);
  }
  Context ctx(client, a, plan.coarse_serves);
  return CheckPlan(ctx, plan, cost, decision);
}

int sluice_peek(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                uint64_t cost, sluice_decision_t* decision) {
  if (client == nullptr) return SLUICE_E_ARGUMENT;
  if (cost > SLUICE_MAX_COST || (descriptors == nullptr && count != 0)) {
    return AnswerDefault(client, SLUICE_E_ARGUMENT, decision);
  }
  const Attachment* const a = sluice::client::AttachmentOf(client);
  if (a == nullptr) return AnswerDefault(client, 0, decision);
  Plan plan;
  const int built =
      BuildPlan(*a, client->coarse_step_ns, descriptors, count, &client->shapes, &plan);
  if (built != 0) return AnswerDefault(client, built, decision);
  if (plan.count == 0) return sluice::client::AnswerNoMatch(decision);
  return sluice::client::LookAt(client, *a, plan, cost, decision);
}

int sluice_check_many(sluice_t* client, const sluice_request_t* requests, size_t count,
                      int* results, sluice_decision_t* decisions) {
  if (client == nullptr || (count != 0 && (requests == nullptr || results == nullptr)) ||
      count > INT32_MAX) {
    return SLUICE_E_ARGUMENT;
  }
  constexpr size_t kChunk = 8;  // plans are some KiB each: what fits the stack and the L1 cache
  const Attachment* const a = sluice::client::AttachmentOf(client);
  int allowed = 0;
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t n = std::min(kChunk, count - begin);
    Plan plans[kChunk];
    int built[kChunk];
    for (size_t i = 0; i < n && a != nullptr; ++i) {
      const sluice_request_t& r = requests[begin + i];
      built[i] = r.cost > SLUICE_MAX_COST || (r.descriptors == nullptr && r.count != 0)
                     ? SLUICE_E_ARGUMENT
                     : BuildPlan(*a, client->coarse_step_ns, r.descriptors, r.count,
                                 &client->shapes, &plans[i]);
    }
    for (size_t i = 0; i < n; ++i) {
      sluice_decision_t* const decision = decisions ? &decisions[begin + i] : nullptr;
      int& result = results[begin + i];
      if (a == nullptr || built[i] != 0) {
        result = AnswerDefault(client, a == nullptr ? 0 : built[i], decision);
      } else if (plans[i].count == 0) {
        result = sluice::client::AnswerNoMatch(decision);
      } else if (requests[begin + i].cost == 0) {
        result = sluice::client::LookAt(client, *a, plans[i], 0, decision);
      } else {
        Context ctx(client, a, plans[i].coarse_serves);
        result = CheckPlan(ctx, plans[i], requests[begin + i].cost, decision);
      }
      allowed += result > 0 ? 1 : 0;
    }
  }
  return allowed;
}

int sluice_refund(sluice_t* client, sluice_decision_t* decision) {
  if (client == nullptr || decision == nullptr) return SLUICE_E_ARGUMENT;
  const size_t count = size_t{decision->spend_count} + decision->candidate_count;
  if (count > SLUICE_MAX_RULES_PER_REQUEST) return SLUICE_E_ARGUMENT;
  const Attachment* const a = client->attacher.current();
  if (decision->spend_count == 0) return 0;
  if (a == nullptr || a->generation != decision->generation) return SLUICE_E_STALE;
  const uint64_t now_ns = Clock::PreciseNs();
  int refunded = 0;
  for (size_t i = 0; i < count; ++i) {
    sluice_spend_t& spend = decision->spends[i];
    if ((spend.flags & sluice::client::kSpent) == 0) continue;
    spend.flags = static_cast<uint16_t>(spend.flags & ~sluice::client::kSpent);
    const bool is_back =
        sluice::client::GiveBack(*a, decision->policy, spend, spend.cost_ns, spend.tokens, now_ns);
    refunded += is_back && i < decision->spend_count ? 1 : 0;
  }
  return refunded;
}

int sluice_decision_rule(sluice_t* client, const sluice_decision_t* decision, char* buffer,
                         size_t size) {
  if (client == nullptr || decision == nullptr || buffer == nullptr || size == 0) {
    return SLUICE_E_ARGUMENT;
  }
  buffer[0] = '\0';
  const Attachment* const a = client->attacher.current();
  if (a == nullptr || a->generation != decision->generation) return 0;
  char label[shm::kMaxLabelBytes];
  const size_t n = sluice::client::CopyLabel(*a, decision->policy, decision->rule, label);
  if (n >= size) return SLUICE_E_BUFFER;
  std::memcpy(buffer, label, n);
  buffer[n] = '\0';
  return static_cast<int>(n);
}

void sluice_get_info(sluice_t* client, sluice_info_t* info) {
  if (client == nullptr || info == nullptr) return;
  std::memset(info, 0, sizeof *info);
  const uint64_t now_ns = Clock::PreciseNs();
  client->attacher.Step(now_ns);
  client->attacher.Message(now_ns, info->message, sizeof info->message);
  info->attach_count = client->attacher.attach_count();
  const Attachment* const a = client->attacher.current();
  if (a == nullptr) return;
  info->attached = 1;
  info->daemon_alive = client->attacher.IsDaemonAlive(now_ns) ? 1 : 0;
  info->same_user = a->same_user_as_daemon ? 1 : 0;
  info->generation = a->generation;
  // For people, as the shards' states: orders nothing.
  info->policy_seq = shm::policy_word::Seq(a->control->policy.load(std::memory_order_acquire));
  // Other regions' shards stand behind the own ones, and below the one of what is forced.
  for (uint32_t i = 0; i < std::max(a->shard_count, shm::kForcedShard); ++i) {
    const uint64_t state = a->shard_states[i].load(std::memory_order_relaxed);
    if (shm::shard_state::Mode(state) == shm::ShardMode::kEmergency) ++info->shards_emergency;
  }
}

const char* sluice_strerror(int code) {
  switch (code) {
    case 0:
      return "no error";
    case SLUICE_E_ARGUMENT:
      return "an argument is NULL that must not be, or the cost is above SLUICE_MAX_COST";
    case SLUICE_E_DESCRIPTORS:
      return "more than SLUICE_MAX_DESCRIPTORS descriptors, or one without a name or longer than "
             "SLUICE_MAX_NAME_BYTES / SLUICE_MAX_VALUE_BYTES";
    case SLUICE_E_RULES:
      return "more rules match this request than SLUICE_MAX_RULES_PER_REQUEST";
    case SLUICE_E_NO_RULE:
      return "no rule of that label, or not of that class, or its key is not a single value";
    case SLUICE_E_MEMORY:
      return "out of memory";
    case SLUICE_E_BUFFER:
      return "the buffer is too small";
    case SLUICE_E_STALE:
      return "the decision belongs to an earlier generation of buckets";
    case SLUICE_E_FULL:
      return "no slot is free to hold a reservation; give the daemon more buckets";
    case SLUICE_E_CANCELLED:
      return "a signal or the caller ended the wait; the request is not admitted";
    default:
      return "unknown code";
  }
}

}  // extern "C"
