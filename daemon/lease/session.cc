#include "daemon/lease/session.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::lease {
namespace {

constexpr uint64_t kExact = 1ull << 53;   // beyond it Lua's numbers have gaps
constexpr uint64_t kFenceUs = 1'000'000;  // of refill that a fence takes back
constexpr size_t kHead = 2;               // outcome, now_us
constexpr size_t kPerBucket = 11;
constexpr int64_t kDone = 1;
constexpr int64_t kTooOld = 0;
constexpr double kPpm = 1e6;

void Append(const Asked& asked, size_t rule, std::vector<std::string>* args) {
  const Ask& a = asked.ask;
  args->insert(args->end(),
               {asked.field, absl::StrCat(rule), absl::StrCat(a.fence_us), absl::StrCat(a.gen),
                absl::StrCat(a.held), absl::StrCat(a.rem), absl::StrCat(a.ret),
                absl::StrCat(a.said_milli), absl::StrCat(a.demand_milli), absl::StrCat(a.target),
                absl::StrCat(a.waiting), absl::StrCat(a.need), absl::StrCat(a.over),
                absl::StrCat(a.alone), absl::StrCat(a.alone_us), absl::StrCat(a.part_ppm)});
}

absl::StatusOr<Grant> ParseGrant(std::span<const redis::Reply> words) {
  for (const redis::Reply& word : words) {
    if (!word.is_integer() || word.integer < 0) {
      return absl::InternalError("a lease's reply holds what is no count");
    }
  }
  Grant g;
  if (words[0].integer > 2 * static_cast<int64_t>(Away::kAnotherMap)) {
    return absl::InternalError("a lease's reply says what nobody asked");
  }
  g.live = (words[0].integer & 1) != 0;
  g.away = static_cast<Away>(words[0].integer / 2);
  g.tokens = static_cast<uint64_t>(words[1].integer);
  g.fence_us = static_cast<uint64_t>(words[2].integer);
  g.gen = words[3].integer;
  g.shortage = words[4].integer != 0;
  g.retry_us = static_cast<uint64_t>(words[5].integer);
  g.share = std::clamp(static_cast<double>(words[6].integer) / kPpm, 1 / kPpm, 1.0);
  g.demand = static_cast<double>(words[7].integer) / 1000;
  g.hosts = static_cast<uint64_t>(words[8].integer);
  g.level = static_cast<uint64_t>(words[9].integer);
  g.out = static_cast<uint64_t>(words[10].integer);
  if (g.tokens > kTokensMax) return absl::InternalError("a lease of more than any burst");
  return g;
}

}  // namespace

absl::StatusOr<Terms> MakeTerms(uint64_t limit, uint64_t period_us, uint64_t burst,
                                uint64_t wait_ns, uint64_t spare_us) {
  if (limit == 0 || period_us == 0 || burst == 0) {
    return absl::InvalidArgumentError("a lease needs a limit, a period and a burst above 0");
  }
  const uint64_t common = std::gcd(limit, period_us);
  const Terms terms{limit / common, period_us / common, burst, wait_ns, spare_us};
  if (burst > kTokensMax || terms.unit_us > kExact / burst || terms.limit > kExact / kFenceUs) {
    return absl::InvalidArgumentError(
        absl::StrFormat("burst %d times period %d us (in lowest terms) is beyond exact counting; "
                        "lower the burst or take a rounder limit",
                        burst, terms.unit_us));
  }
  return terms;
}

const Call& Session::Start(std::span<const Asked> asked, uint64_t time_us, uint64_t now_ns) {
  Call& call = call_.emplace();
  call.seq = ++seq_;
  call.first_sent_ns = call.sent_ns = now_ns;
  paced_ns_ = std::max(paced_ns_, now_ns) + kCallGapNs;
  call.timeout_ns =
      std::clamp(static_cast<uint64_t>(2 * rtt_.least_ns), kResendMinNs, kResendMaxNs);
  call.buckets = asked.size();
  std::vector<std::string>& args = call.args;
  args.reserve(6 + 20 * asked.size());
  args = {absl::StrFormat("%016x%016x", instance_[0], instance_[1]),
          absl::StrCat(call.seq),
          absl::StrCat(time_us),
          "",
          absl::StrCat(sync_us_),
          absl::StrCat(asked.size())};
  for (const Asked& a : asked) {
    args.insert(args.end(), {absl::StrCat(a.terms.limit), absl::StrCat(a.terms.unit_us),
                             absl::StrCat(a.terms.burst), absl::StrCat(a.terms.spare_us), a.home});
  }
  for (size_t i = 0; i < asked.size(); ++i) Append(asked[i], i + 1, &args);
  return call;
}

bool Session::Resend(uint64_t now_ns) {
  if (!call_ || now_ns < NextResendNs()) return false;
  call_->sent_ns = now_ns;
  call_->timeout_ns = std::min(2 * call_->timeout_ns, kResendMaxNs);
  return true;
}

absl::StatusOr<std::optional<std::vector<Grant>>> Session::OnReply(uint64_t seq,
                                                                   const redis::Reply& reply,
                                                                   uint64_t now_ns) {
  if (!call_ || seq != call_->seq) return std::nullopt;
  if (reply.is_error()) return absl::UnavailableError(reply.text);
  const std::span<const redis::Reply> words = reply.elements;
  if (!reply.is_array() || words.size() < kHead || !words[0].is_integer()) {
    return absl::InternalError("a lease's reply has another form");
  }
  if (words[0].integer == kTooOld) return std::nullopt;
  if (words[0].integer != kDone || words.size() != kHead + kPerBucket * call_->buckets) {
    return absl::InternalError("a lease's reply is not to what was asked");
  }
  std::vector<Grant> grants;
  grants.reserve(call_->buckets);
  for (size_t i = 0; i < call_->buckets; ++i) {
    absl::StatusOr<Grant> grant = ParseGrant(words.subspan(kHead + kPerBucket * i, kPerBucket));
    if (!grant.ok()) return grant.status();
    grants.push_back(*grant);
  }
  // From the first copy on: what a caller waits for, lost messages included, is the lead it needs.
  rtt_.Add(now_ns - call_->first_sent_ns);
  call_.reset();
  return grants;
}

}  // namespace sluice::lease
