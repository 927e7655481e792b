#include "daemon/reconcile/farewells.h"

#include <algorithm>

#include "daemon/reconcile/batch.h"
#include "daemon/reconcile/share.h"

namespace sluice::reconcile {
namespace {

constexpr double kWorthSaying = 0.02;   // of the limit: less is missed by nobody
constexpr double kSilentIntervals = 2;  // a host in use reports more often
constexpr double kMissedAttempts = 4;   // of those expected: at a steady rate one pause in fifty
constexpr double kTooLateNs = 1000.0 * kGenerationUs;  // Redis is about to forget it anyway

}  // namespace

void Farewells::OnTold(BucketId id, const Bucket& bucket, uint64_t interval_ns) {
  const double said = static_cast<double>(bucket.said_milli) / kMilli;
  if (said <= 0 || said < kWorthSaying * RateOf(bucket.limit)) return;
  const double silent_ns =
      std::max(kSilentIntervals * static_cast<double>(interval_ns), kMissedAttempts / said * 1e9);
  if (silent_ns > kTooLateNs) return;
  told_.push({bucket.reported_ns + static_cast<uint64_t>(silent_ns), bucket.reported_ns, id});
}

// The id may be another bucket's by now: what counts is when that was reported.
void Farewells::Queue(uint64_t now_ns, Ledger* ledger) {
  for (; !told_.empty() && now_ns >= told_.top().due_ns; told_.pop()) {
    const Told& told = told_.top();
    const Bucket& b = ledger->bucket(told.id);
    if (b.text.empty() || b.queued || b.in_flight || b.reported_ns != told.reported_ns) continue;
    ledger->AddUse(told.id, /*tokens=*/0, /*denied=*/0, now_ns, now_ns);
  }
}

}  // namespace sluice::reconcile
