#include "daemon/reconcile/farewells.h"

#include "daemon/reconcile/share.h"

namespace sluice::reconcile {
namespace {

constexpr double kWorthSaying = 0.02;     // of the limit: less is missed by nobody
constexpr uint64_t kSilentIntervals = 2;  // who is in use reports more often

}  // namespace

void Farewells::OnTold(BucketId id, const Bucket& bucket) {
  const double said = static_cast<double>(bucket.said_milli) / kMilli;
  if (said >= kWorthSaying * RateOf(bucket.limit)) told_.push_back({id, bucket.reported_ns});
}

// The id may be another bucket's by now: what counts is when that was reported.
void Farewells::Queue(uint64_t now_ns, uint64_t interval_ns, Ledger* ledger) {
  while (!told_.empty() && now_ns >= told_.front().reported_ns + kSilentIntervals * interval_ns) {
    const Told told = told_.front();
    told_.pop_front();
    const Bucket& b = ledger->bucket(told.id);
    if (b.text.empty() || b.queued || b.in_flight || b.reported_ns != told.reported_ns) continue;
    ledger->AddUse(told.id, /*tokens=*/0, /*denied=*/0, now_ns, now_ns);
  }
}

}  // namespace sluice::reconcile
