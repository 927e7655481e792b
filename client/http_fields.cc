// HTTP fields for a decision: Retry-After (RFC 9110) and RateLimit-Policy, RateLimit
// (draft-ietf-httpapi-ratelimit-headers-10), Lists of Strings with parameters after RFC 9651.
#include <algorithm>

#include "client/check.h"
#include "client/fields.h"

namespace sluice::client {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;

uint64_t CeilSeconds(uint64_t ns) { return ns / kSecondNs + (ns % kSecondNs != 0 ? 1 : 0); }

// What the two lists say of one matched rule.
struct Entry {
  char label[shm::kMaxLabelBytes];
  size_t label_bytes;
  uint64_t quota;
  uint64_t window_s;
  uint64_t remaining;
  uint64_t more_s;  // until there is more quota
  bool in_flight;   // the quota is of requests at once: no window, and nobody knows when
};

// A rule's quota as the draft speaks of it: q tokens in w seconds. A burst above the limit is what
// a client may use at once, so it is the quota, over the time in which it refills.
bool MakeEntry(const Attachment& a, const sluice_decision_t& decision, const sluice_spend_t& spend,
               Entry* entry) {
  const shm::PolicyView view = ViewOf(a, decision.policy);
  const Rule rule = NumbersOf(view, spend.rule, spend.given, /*floor_q16=*/0);
  const shm::Limit limit = rule.limit;
  const bool shadow = rule.shadow != 0;
  entry->label_bytes = CopyLabel(a, decision.policy, spend.rule, entry->label);
  if (entry->label_bytes == 0 || shadow || limit.interval_ns == 0) return false;
  // A leaky bucket takes what passes at once and what may wait.
  const uint64_t capacity = rule.max_delay_ns == 0 ? limit.burst : limit.tau_ns / limit.interval_ns;
  const bool bursty = capacity > limit.limit;
  entry->in_flight = rule.kind == shm::Kind::kInFlight;
  if (entry->in_flight) {
    entry->quota = limit.limit;
    entry->remaining = spend.cost_ns;
    return true;
  }
  if (rule.kind == shm::Kind::kLease) {
    entry->quota = bursty ? capacity : limit.limit;
    entry->window_s = std::max<uint64_t>(CeilSeconds(bursty ? limit.tau_ns : limit.period_ns), 1);
    entry->remaining = spend.cost_ns;
    // More is lent within a second, where there is more.
    entry->more_s = spend.cost_ns >= capacity ? 0 : 1;
    return true;
  }
  if (rule.kind != shm::Kind::kTokenBucket) {
    // A log tells when its request was made, or until when what it denied it by counts.
    const bool is_log = rule.kind == shm::Kind::kSlidingLog;
    const bool is_spent = (spend.flags & kSpent) != 0;
    const uint64_t end_ns = is_log ? spend.new_ns + (is_spent ? limit.period_ns : 0)
                                   : shm::payload::TimeNs(spend.new_ns);
    entry->quota = limit.limit;
    entry->window_s = std::max<uint64_t>(CeilSeconds(limit.period_ns), 1);
    entry->remaining = spend.cost_ns;
    entry->more_s = end_ns > decision.now_ns ? CeilSeconds(end_ns - decision.now_ns) : 0;
    return true;
  }
  entry->quota = bursty ? capacity : limit.limit;
  entry->window_s = std::max<uint64_t>(CeilSeconds(bursty ? limit.tau_ns : limit.period_ns), 1);
  const uint64_t per_token =
      spend.tokens == 0 || spend.cost_ns == 0
          ? limit.interval_ns
          : std::max<uint64_t>(spend.cost_ns / spend.tokens, limit.interval_ns);
  const uint64_t now_ns = decision.now_ns + std::min<uint64_t>(decision.lag_ns, per_token - 1);
  const uint64_t tau_ns = shm::Floored(rule, spend.floor_q16).limit.tau_ns;
  entry->remaining = shm::Remaining(spend.new_ns, now_ns, per_token, tau_ns);
  if (limit.limit > shm::kFineTokens) {
    // What a token costs this host, of one; what is torn costs more.
    const uint64_t own_ns = std::max<uint64_t>(
        shm::CostNs(spend.tokens, std::max<uint64_t>(limit.period_ns, 1), limit.limit), 1);
    const unsigned __int128 dearer = (static_cast<unsigned __int128>(spend.cost_ns) << 16) / own_ns;
    entry->remaining =
        shm::Remaining(shm::Floored(rule, spend.floor_q16).limit, spend.new_ns, now_ns,
                       static_cast<uint32_t>(std::min<unsigned __int128>(dearer, ~uint32_t{0})));
  }
  const uint64_t ahead = shm::ResetAfterNs(spend.new_ns, now_ns);
  const uint64_t over = ahead > tau_ns ? ahead - tau_ns : 0;
  // A full bucket gains nothing; else the next token comes when this one's time is up.
  entry->more_s =
      ahead == 0 ? 0 : CeilSeconds(over + (over != 0 ? per_token : (ahead - 1) % per_token + 1));
  return true;
}

}  // namespace
}  // namespace sluice::client

using sluice::client::Entry;
using sluice::client::Fields;

extern "C" int sluice_http_fields(sluice_t* client, const sluice_decision_t* decision, char* buffer,
                                  size_t size) {
  if (client == nullptr || decision == nullptr || buffer == nullptr) return SLUICE_E_ARGUMENT;
  Fields fields(buffer, size);
  uint64_t retry_s = 0;
  if (decision->allowed == 0 && decision->retry_after_ns != SLUICE_NEVER) {
    retry_s = std::max<uint64_t>(sluice::client::CeilSeconds(decision->retry_after_ns), 1);
    fields.Text("Retry-After: ").Number(retry_s).Text("\r\n");
  }
  const sluice::client::Attachment* const a = client->attacher.current();
  Entry entries[SLUICE_MAX_RULES_PER_REQUEST];
  size_t count = 0;
  if (a != nullptr && a->generation == decision->generation) {
    for (uint16_t i = 0; i < decision->spend_count && i < SLUICE_MAX_RULES_PER_REQUEST; ++i) {
      if (sluice::client::MakeEntry(*a, *decision, decision->spends[i], &entries[count])) ++count;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const Entry& e = entries[i];
    fields.Text(i == 0 ? "RateLimit-Policy: \"" : ", \"").Bytes(e.label, e.label_bytes);
    fields.Text("\";q=").Number(e.quota);
    if (e.in_flight) {
      fields.Text(";qu=\"concurrent-requests\"");
    } else {
      fields.Text(";w=").Number(e.window_s);
    }
  }
  if (count != 0) fields.Text("\r\n");
  for (size_t i = 0; i < count; ++i) {
    const Entry& e = entries[i];
    fields.Text(i == 0 ? "RateLimit: \"" : ", \"").Bytes(e.label, e.label_bytes);
    // Retry-After is not to be earlier than t; for the deciding rule they agree.
    const bool decides = decision->allowed == 0 && decision->spends[i].rule == decision->rule;
    fields.Text("\";r=").Number(e.remaining);
    if (!e.in_flight) fields.Text(";t=").Number(decides && retry_s != 0 ? retry_s : e.more_s);
  }
  if (count != 0) fields.Text("\r\n");
  return fields.Finish();
}
