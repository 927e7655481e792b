// What answers tell beside yes and no: a status, a body for denials, a rule's texts.
//
// The body is RFC 9457's; its types and `violated-policies` are of
// draft-ietf-httpapi-ratelimit-headers-10.
#include <algorithm>
#include <cstring>

#include "client/check.h"
#include "client/fields.h"

namespace sluice::client {
namespace {

constexpr int kOk = 200;
constexpr int kTooManyRequests = 429;
constexpr int kServiceUnavailable = 503;

// Whether the limit is not used up, but what would say so is away.
bool IsForWantOfCapacity(const sluice_decision_t& d) {
  return d.source == SLUICE_SOURCE_EMERGENCY || d.source == SLUICE_SOURCE_DEFAULT;
}

size_t CopyMetadata(const Attachment& a, const sluice_decision_t& d, std::string_view name,
                    char* out, size_t size, bool* is_found) {
  const shm::PolicyView view = ViewOf(a, d.policy);
  const shm::GroupView& group = view.group(view.rule(d.rule).numbers.group);
  size_t n = 0;
  *is_found = false;
  for (uint32_t i = 0; i < std::min<uint32_t>(group.metadata_count, shm::kMaxMetadata); ++i) {
    if (view.metadata(group, 2 * i) != name) continue;
    const std::string_view value = view.metadata(group, 2 * i + 1);
    n = value.size();
    if (n < size) std::memcpy(out, value.data(), n);
    *is_found = true;
    break;
  }
  if (!IsInForce(a, d.policy)) *is_found = false;
  return n;
}

// The labels of rules that denied, as the items of a JSON list; they hold nothing to be escaped.
void WriteViolated(const Attachment& a, const sluice_decision_t& d, Fields* fields) {
  bool is_first = true;
  for (uint16_t i = 0; i < std::min<uint16_t>(d.spend_count, kMaxItems); ++i) {
    if ((d.spends[i].flags & kDeniedBy) == 0) continue;
    char label[shm::kMaxLabelBytes];
    const size_t n = CopyLabel(a, d.policy, d.spends[i].rule, label);
    if (n == 0) continue;
    fields->Text(is_first ? "\"" : ",\"").Bytes(label, n).Text("\"");
    is_first = false;
  }
}

}  // namespace
}  // namespace sluice::client

extern "C" {

int sluice_decision_metadata(sluice_t* client, const sluice_decision_t* decision, const char* name,
                             char* buffer, size_t size) {
  if (client == nullptr || decision == nullptr || name == nullptr || buffer == nullptr ||
      size == 0) {
    return SLUICE_E_ARGUMENT;
  }
  buffer[0] = '\0';
  const sluice::client::Attachment* const a = client->attacher.current();
  if (a == nullptr || a->generation != decision->generation ||
      decision->rule == sluice::shm::kNoRule || decision->policy == 0) {
    return 0;
  }
  bool is_found;
  const size_t n = sluice::client::CopyMetadata(*a, *decision, name, buffer, size, &is_found);
  if (!is_found || n >= size) {
    buffer[0] = '\0';
    return is_found ? SLUICE_E_BUFFER : 0;
  }
  buffer[n] = '\0';
  return static_cast<int>(n);
}

int sluice_http_status(const sluice_decision_t* decision) {
  if (decision == nullptr) return 0;
  if (decision->allowed != 0) return sluice::client::kOk;
  return sluice::client::IsForWantOfCapacity(*decision) ? sluice::client::kServiceUnavailable
                                                        : sluice::client::kTooManyRequests;
}

int sluice_problem_json(sluice_t* client, const sluice_decision_t* decision, char* buffer,
                        size_t size) {
  if (client == nullptr || decision == nullptr || buffer == nullptr || size == 0) {
    return SLUICE_E_ARGUMENT;
  }
  buffer[0] = '\0';
  if (decision->allowed != 0) return 0;
  const bool is_reduced = sluice::client::IsForWantOfCapacity(*decision);
  sluice::client::Fields fields(buffer, size);
  fields.Text("{\"type\":\"https://iana.org/assignments/http-problem-types#");
  fields.Text(is_reduced ? "temporary-reduced-capacity\",\"title\":\"Capacity is reduced for now\""
                         : "quota-exceeded\",\"title\":\"The quota is used up\"");
  fields.Text(",\"status\":").Number(static_cast<uint64_t>(sluice_http_status(decision)));
  fields.Text(",\"violated-policies\":[");
  const sluice::client::Attachment* const a = client->attacher.current();
  if (a != nullptr && a->generation == decision->generation) {
    sluice::client::WriteViolated(*a, *decision, &fields);
  }
  return fields.Text(decision->banned != 0 ? "],\"banned\":true}" : "]}").Finish();
}

}  // extern "C"
