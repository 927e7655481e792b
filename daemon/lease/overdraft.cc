// What a host may spend beyond its lease, where its terms allow that, and where it holds nothing.
#include <algorithm>
#include <cmath>

#include "daemon/lease/lease.h"

namespace sluice::lease {
namespace {

// What may be spent beyond the lease: a part of what nobody holds, and of one second's limit.
constexpr double kOfLevel = 0.5;
constexpr double kOfLimit = 0.01;
constexpr uint64_t kViewNs = 1'000'000'000;  // so long Redis' word on a bucket tells of it
constexpr uint64_t kSilentSyncs = 2;         // what an outage lasts at least: as in lua/lease.lua
constexpr uint64_t kOverdueSyncs = 3;        // without a reply: this host is alone
constexpr double kLastingNs = 1e9;           // over so long a share is a lasting one
constexpr double kWaitRate = 10;  // tokens/s; slower hosts hold nothing where callers wait
// Who holds nothing and allows by chance: hosts, as a part of the burst; tokens/s of the limit for
// each of them; and what it is asked for itself.
constexpr double kSparseHosts = 0.3;
constexpr double kSparseRate = 2;
constexpr double kOwnRate = 2;
constexpr double kFullPace = 4;                  // of the limit, where the bucket is full
constexpr double kWatchPart = 0.1;               // of a burst: what comes between two looks
constexpr uint64_t kWatchedNs = 60'000'000'000;  // after a check
constexpr uint64_t kSeldomNs = 10'000'000'000;   // between two looks, at most
constexpr double kMayRunShort = 0.2;             // of the limit, by all demand
constexpr double kLarger = 2;          // the next cost may be, than the largest that was denied,
constexpr double kLargeSeconds = 60;   // and for so long
constexpr double kOfLevelInAll = 16;   // for large costs: not all hosts are asked one at a time
constexpr double kUnknownPart = 0.01;  // of the burst, where nobody knows of other hosts

double Seconds(double ns) { return ns / 1e9; }

}  // namespace

Lease::Lease(const Options& options)
    : terms_(options.terms), sync_ns_(options.sync_ns), factor_(options.factor) {
  if (!terms_.may_overdraw()) return;
  share_ = options.hosts != 0 ? 1 / static_cast<double>(options.hosts) : kUnknownPart;
  lasting_share_ = share_;
}

// What is spent beyond the credits.
void Lease::Overdraw(uint64_t tokens) {
  allowance_ -= std::min(tokens, allowance_);
  (alone_ ? alone_spent_ : over_) += tokens;
}

// Whole tokens, and one more with the chance of the rest.
void Lease::Allow(double tokens) {
  allowance_ = static_cast<uint64_t>(tokens);
  if (dice_ < tokens - static_cast<double>(allowance_)) ++allowance_;
}

double Lease::AloneMost() const {
  return std::max(1.0, lasting_share_ * static_cast<double>(terms_.burst));
}

// Replies are overdue: from what was allowed on, a bucket of its share of burst and rate.
void Lease::BeginAlone(uint64_t now_ns) {
  alone_ = true;
  alone_tokens_ = 0;
  alone_spent_ = 0;
  alone_ns_ = alone_begin_ns_ = now_ns;
}

// Whether Redis was away for all or this host alone was not heard, the script tells.
void Lease::EndAlone() {
  if (!alone_) return;
  if (alone_since_ns_ == 0) {
    alone_since_ns_ = alone_begin_ns_;
    alone_share_ = lasting_share_;
  }
  alone_over_ += alone_spent_;
  alone_ = false;
}

void Lease::SpendAlone(uint64_t tokens, uint64_t now_ns) {
  if (!terms_.may_overdraw()) return;
  if (!alone_) BeginAlone(now_ns);
  (void)Allowance(now_ns);
  allowance_ -= std::min(tokens, allowance_);
  alone_spent_ += tokens;
  NoteAttempts(tokens, now_ns - std::min(now_ns, kEarlyGapNs), now_ns);
}

uint64_t Lease::Allowance(uint64_t now_ns) {
  if (!terms_.may_overdraw()) return 0;
  if (in_flight_ && !alone_ && now_ns >= sent_ns_ + kOverdueSyncs * sync_ns_) BeginAlone(now_ns);
  if (alone_) {
    const double passed = static_cast<double>(now_ns - std::min(now_ns, alone_ns_));
    alone_ns_ = now_ns;
    alone_tokens_ =
        std::min(alone_tokens_ + factor_ * lasting_share_ * terms_.rate() * Seconds(passed),
                 std::max(0.0, AloneMost() - static_cast<double>(allowance_)));
    const auto whole = static_cast<uint64_t>(alone_tokens_);
    alone_tokens_ -= static_cast<double>(whole);
    allowance_ += whole;
    return allowance_;
  }
  if (!in_flight_ && now_ns >= renew_ns_ && CanWait()) {
    allowance_ = 0;
    renew_ns_ = UINT64_MAX;
  } else if (!in_flight_ && now_ns >= renew_ns_) {
    const bool old = viewed_ns_ == 0 || now_ns >= viewed_ns_ + kViewNs;
    const double burst = static_cast<double>(terms_.burst);
    // Of a bucket that was short, the little that lets a host that is not heard go on. A host's
    // part of a low limit is less than a token: a whole one each would be far over.
    const double part = share_ * burst;
    Allow(old ? (viewed_ns_ == 0 ? std::max(1.0, part) : part)
              : kOfLimit * terms_.rate() / static_cast<double>(hosts_));
    renew_ns_ = old ? UINT64_MAX : viewed_ns_ + kViewNs;
  }
  return allowance_;
}

// Nothing is held where a caller can wait for the call that fetches its token, and a token that is
// held is missed elsewhere: the burst has none to spare for each host, or few come in an interval.
bool Lease::PassesThrough(const RoundTrip& rtt) const {
  if (static_cast<double>(terms_.wait_ns) < 2 * rtt.mean_ns) return false;
  const bool scarce =
      hosts_ == 0 || static_cast<double>(hosts_) > 0.3 * static_cast<double>(terms_.burst);
  const bool slow = terms_.rate() * Seconds(static_cast<double>(sync_ns_)) < 1;
  return slow || (scarce && demand_.rate() < kWaitRate);
}

// A host's even part of the limit comes more seldom than a lease lasts, and the burst has no token
// for each host: what one holds lies idle.
bool Lease::IsSparse() const {
  if (!terms_.may_overdraw() || terms_.wait_ns > 0 || viewed_ns_ == 0) return false;
  const double hosts = static_cast<double>(hosts_);
  return hosts > kSparseHosts * static_cast<double>(terms_.burst) &&
         terms_.rate() < kSparseRate * hosts && slow_.rate() < kOwnRate;
}

// How old a view of such a bucket may be: in that time its level changes by a part of the burst.
uint64_t Lease::WatchNs() const {
  const double ns = kWatchPart * static_cast<double>(terms_.burst) / terms_.rate() * 1e9;
  return std::clamp(static_cast<uint64_t>(ns), sync_ns_, kSeldomNs);
}

// It is looked at while it may be asked for again, and may run short.
bool Lease::IsWatched(uint64_t now_ns) const {
  return IsSparse() && checked_ && now_ns < last_check_ns_ + kWatchedNs &&
         all_demand_ > kMayRunShort * terms_.rate();
}

bool Lease::Watches(uint64_t now_ns) const {
  return IsWatched(now_ns) && now_ns >= sent_ns_ + WatchNs();
}

// Then all hosts allow the same part of what they are asked for, so that the bucket is drained the
// faster the fuller it is: at the limit's pace where a quarter is there. By chance, anew with each
// reply.
void Lease::AllowByChance(const Grant& grant) {
  const double full = static_cast<double>(grant.level) / static_cast<double>(terms_.burst);
  const double pace = kFullPace * full * terms_.rate();
  allowance_ = dice_ * std::max(grant.demand, 1e-3) < pace
                   ? std::max<uint64_t>(asked_need_, static_cast<uint64_t>(large_))
                   : 0;
  renew_ns_ = UINT64_MAX;
}

// Who asks that much may do so again. Redis is not told: it would lend whole or not at all.
void Lease::NoteLargest(uint64_t now_ns) {
  if (!terms_.may_overdraw() || terms_.wait_ns > 0) return;
  const double idle_s = Seconds(static_cast<double>(now_ns - std::min(now_ns, sent_ns_)));
  large_ *= std::exp(-idle_s / kLargeSeconds);
  if (large_ < kLarger) large_ = 1;
  if (need_ > 1) large_ = std::max(large_, kLarger * static_cast<double>(need_));
  large_ = std::min(large_, static_cast<double>(terms_.burst));
}

void Lease::Restore(uint64_t tokens) {
  const uint64_t beyond = std::min(tokens, over_);
  over_ -= beyond;
  allowance_ += beyond;
  credits_ += tokens - beyond;
}

// By what Redis has told just now.
void Lease::View(uint64_t now_ns) {
  if (!terms_.may_overdraw()) return;
  double part = kOfLevel * share_ * static_cast<double>(level_) +
                kOfLimit * terms_.rate() / static_cast<double>(hosts_);
  // After an outage, and in it where a call gets through, Redis knows of few hosts: that raises no
  // share.
  const uint64_t old_ns = now_ns - std::min(viewed_ns_, now_ns);
  if (viewed_ns_ > 0 && old_ns >= kSilentSyncs * sync_ns_ && alone_since_ns_ == 0) {
    silent_since_ns_ = viewed_ns_;
    alone_share_ = lasting_share_;
  }
  const bool is_part = old_ns > kViewNs && hosts_ < viewed_hosts_;
  if (!is_part) viewed_hosts_ = hosts_;
  if (!is_part || share_ < lasting_share_) {
    const double weight = static_cast<double>(std::min(old_ns, 2 * sync_ns_)) / kLastingNs;
    lasting_share_ += (share_ - lasting_share_) * (1 - std::exp(-weight));
  }
  viewed_ns_ = now_ns;
  // One of that size, out of what most hosts will not need at the same moment.
  if (large_ > 1 && dice_ < kOfLevelInAll * static_cast<double>(level_) /
                                (static_cast<double>(hosts_) * large_)) {
    part = std::max(part, large_);
  }
  Allow(short_ || CanWait() ? 0 : part);
  renew_ns_ = short_ ? std::min(retry_ns_ + sync_ns_, now_ns + kViewNs) : now_ns + kViewNs;
}

}  // namespace sluice::lease
