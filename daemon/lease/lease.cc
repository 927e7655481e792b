#include "daemon/lease/lease.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::lease {
namespace {

constexpr double kManyHosts = 0.95;  // of the burst: a whole token each is no longer there
constexpr double kSecond = 1e9;
constexpr uint64_t kColdTarget = 8;  // at most, for demand that is not known yet
constexpr double kWaitRate = 10;     // tokens/s; slower hosts hold nothing where callers wait

double Seconds(double ns) { return ns / kSecond; }

}  // namespace

void RoundTrip::Add(uint64_t seen_ns) {
  const double seen = static_cast<double>(seen_ns);
  deviation_ns += (std::abs(seen - mean_ns) - deviation_ns) / 4;
  mean_ns += (seen - mean_ns) / 8;
  least_ns = std::min(seen, 1.05 * least_ns);
}

double RoundTrip::lead_ns() const { return std::max(1.5 * mean_ns, mean_ns + 4 * deviation_ns); }

void Lease::Expire(uint64_t now_ns) {
  if (now_ns < expiry_ns_) return;
  pending_ += credits_;
  credits_ = 0;
}

Verdict Lease::Check(uint64_t cost, uint64_t now_ns, uint64_t ticket) {
  if (cost > terms_.burst) return Verdict::kDeny;  // never, whoever waits
  Expire(now_ns);
  attempts_ += cost;
  last_check_ns_ = now_ns;
  checked_ = true;
  const bool blocked = Blocked(now_ns);
  if (parked_.empty() && credits_ >= cost) {
    credits_ -= cost;
    if (credits_ <= low_water_ && !blocked) early_ = true;
    return Verdict::kAllow;
  }
  if (!blocked) early_ = true;
  const uint64_t deadline_ns = now_ns + terms_.wait_ns;
  if (terms_.wait_ns > 0 && parked_.size() < kMaxParked && (!blocked || retry_ns_ < deadline_ns)) {
    parked_.push_back({ticket, cost, deadline_ns});
    return Verdict::kWait;
  }
  denied_ += cost;
  need_ = std::max(need_, cost);
  return Verdict::kDeny;
}

void Lease::Observe(uint64_t spent, uint64_t denied, uint64_t need, uint64_t now_ns) {
  if (spent == 0 && denied == 0) return;
  credits_ -= std::min(spent, credits_);
  attempts_ += spent + denied;
  last_check_ns_ = now_ns;
  checked_ = true;
  if ((denied > 0 || credits_ <= low_water_) && !Blocked(now_ns)) early_ = true;
  if (denied == 0) return;
  denied_ += denied;
  need_ = std::max(need_, std::min(need, terms_.burst));
}

bool Lease::IsIdle(uint64_t now_ns) const {
  return held_ == 0 && credits_ == 0 && pending_ == 0 && !in_flight_ && parked_.empty() &&
         (!checked_ || now_ns >= last_check_ns_ + kRecentNs);
}

uint64_t Lease::Waiting() const {
  uint64_t tokens = 0;
  for (const Parked& p : parked_) tokens += p.cost;
  return tokens;
}

bool Lease::Tick(uint64_t now_ns, const RoundTrip& rtt, double random) {
  Expire(now_ns);
  EndWaits(now_ns);
  if (in_flight_) return false;
  if (now_ns >= sent_ns_ + kEarlyGapNs && (early_ || (!parked_.empty() && !Blocked(now_ns)))) {
    return true;
  }
  if (now_ns < tick_ns_) return false;
  // Jitter breaks the phase locks between hosts.
  tick_ns_ = now_ns + static_cast<uint64_t>(static_cast<double>(sync_ns_) * (0.8 + 0.4 * random));
  demand_.Update(attempts_, now_ns, sync_ns_);
  attempts_ = 0;
  return DueInTurn(now_ns, Target(now_ns, rtt));
}

bool Lease::DueInTurn(uint64_t now_ns, uint64_t target) const {
  const double demand = demand_.rate();
  const bool recent = checked_ && now_ns < last_check_ns_ + kRecentNs;
  const bool blocked = Blocked(now_ns);
  if (pending_ > 0 || (!parked_.empty() && !blocked)) return true;
  if (recent && credits_ <= low_water_ && credits_ < target && !blocked) return true;
  if (HasExcess(target)) return true;
  if (held_ > 0 && expiry_ns_ < now_ns + kGenerationNs * 2 / 5) return true;
  const double spent = static_cast<double>(Unreported());
  const double worth = std::max(1.0, 0.1 * static_cast<double>(terms_.burst) * share_);
  if (spent >= (short_ ? 1.0 : worth) && now_ns >= sent_ns_ + sync_ns_ / 10 * 9) return true;
  const double said = static_cast<double>(said_milli_) / 1000;
  return held_ > 0 && std::abs(demand - said) > 0.5 * said + 3;
}

uint64_t Lease::NextTickNs() const {
  if (in_flight_) return UINT64_MAX;
  uint64_t next = tick_ns_;
  if (early_) next = std::min(next, sent_ns_ + kEarlyGapNs);
  if (!parked_.empty()) {
    next = std::min(next, std::max(short_ ? retry_ns_ : 0, sent_ns_ + kEarlyGapNs));
  }
  return next;
}

// How much to hold: what is asked for until the next request but one is answered.
uint64_t Lease::Target(uint64_t now_ns, const RoundTrip& rtt) const {
  const double rate = demand_.rate();
  const double horizon_ns = 2 * static_cast<double>(sync_ns_) + 1.5 * rtt.mean_ns;
  const double burst = static_cast<double>(terms_.burst);
  const double hosts = static_cast<double>(hosts_);
  uint64_t target = static_cast<uint64_t>(std::llround(rate * Seconds(horizon_ns)));
  if (denied_ > 0) target = std::max({target, std::min(2 * denied_ + 1, kColdTarget), need_});
  const bool waits = static_cast<double>(terms_.wait_ns) >= 2 * rtt.mean_ns;
  // Nothing may be stranded at hosts where the burst has no token for each.
  if (waits && hosts > 0.3 * burst) return rate >= kWaitRate ? target : 0;
  const uint64_t idle_ns = now_ns - last_check_ns_;
  if (!checked_ || idle_ns >= kRecentNs) return target;
  if (hosts > kManyHosts * burst && all_demand_ > 0) {
    const double hold_ns =
        -std::log(1 - 0.99 * std::min(1.0, burst / hosts)) / (all_demand_ / hosts) * kSecond;
    return static_cast<double>(idle_ns) <= hold_ns ? target + 1 : target;
  }
  return hosts > 0.6 * burst ? target : target + 1;
}

bool Lease::HasExcess(uint64_t target) const {
  if (target == 0) return credits_ > 0;
  return static_cast<double>(credits_) > 1.25 * static_cast<double>(target) + 1;
}

Ask Lease::Freeze(uint64_t now_ns, const RoundTrip& rtt, double random) {
  Expire(now_ns);
  EndWaits(now_ns);
  demand_.Update(attempts_, now_ns, sync_ns_);
  attempts_ = 0;
  for (const Parked& p : parked_) need_ = std::max(need_, p.cost);
  target_ = Target(now_ns, rtt);
  uint64_t back = HasExcess(target_) ? credits_ - target_ : 0;
  // Tokens that do not make up the cost asked for would lie here, and at others the rest of it.
  if (starved_ && credits_ < need_) back = credits_;
  credits_ -= back;  // L3

  Ask ask;
  ask.fence_us = fence_us_;
  ask.gen = gen_;
  ask.held = held_;
  ask.rem = credits_;
  ask.ret = back + pending_;
  ask.said_milli = said_milli_;
  ask.demand_milli = static_cast<uint64_t>(std::llround(demand_.rate() * 1000));
  ask.target = target_;
  ask.waiting = Waiting();
  ask.need = need_;
  held_ -= ask.ret;
  pending_ = 0;
  asked_milli_ = ask.demand_milli;
  frozen_rem_ = ask.rem;
  denied_ = 0;
  need_ = 1;
  early_ = false;
  in_flight_ = true;
  sent_ns_ = now_ns;
  tick_ns_ = now_ns + static_cast<uint64_t>(static_cast<double>(sync_ns_) * (0.8 + 0.4 * random));
  return ask;
}

void Lease::Settle(Ask* ask, uint64_t back, uint64_t taken, uint64_t left) {
  const uint64_t missing = back - std::min(taken, back);
  const uint64_t before = ask->rem + missing;
  attempts_ += before - std::min(left, before);
  ask->ret -= missing;
  ask->rem = left;
  held_ += missing;
  credits_ = frozen_rem_ = left;
}

void Lease::OnGrant(const Grant& grant, uint64_t first_sent_ns, uint64_t now_ns,
                    const RoundTrip& rtt) {
  in_flight_ = false;
  if (!grant.live) {
    credits_ = pending_ = 0;
    frozen_rem_ = 0;
  }
  held_ = frozen_rem_ + grant.tokens;
  fence_us_ = grant.fence_us;
  gen_ = grant.gen;
  said_milli_ = asked_milli_;
  Expire(now_ns);
  const uint64_t expiry_ns = first_sent_ns + kLifetimeNs;  // L2
  if (now_ns < expiry_ns) {
    expiry_ns_ = std::max(expiry_ns_, expiry_ns);
    credits_ += grant.tokens;
  } else {
    pending_ += grant.tokens + credits_;
    credits_ = 0;
  }
  short_ = grant.shortage;
  retry_ns_ = now_ns + grant.retry_us * 1000;
  share_ = grant.share;
  all_demand_ = grant.demand;
  hosts_ = std::max<uint64_t>(1, grant.hosts);
  const double lead = demand_.rate() * Seconds(rtt.lead_ns());
  low_water_ = static_cast<uint64_t>(
      std::min(lead + 1.5 * std::sqrt(lead) + 0.5, static_cast<double>(target_) / 2));
  starved_ = short_ && grant.tokens == 0 && frozen_rem_ > 0;
  const size_t waited = parked_.size();
  EndWaits(now_ns);
  ServeParked();
  // A low limit whose tokens are all out: say at once that these are spent.
  const double burst = static_cast<double>(terms_.burst);
  if (parked_.size() < waited && burst * share_ < 10 &&
      static_cast<double>(grant.level + grant.out) >= 0.9 * burst) {
    early_ = true;
  }
}

void Lease::ServeParked() {
  while (!parked_.empty() && parked_.front().cost <= credits_) {
    credits_ -= parked_.front().cost;
    answers_.push_back({parked_.front().ticket, true});
    parked_.pop_front();
  }
}

// Deadlines rise from front to back.
void Lease::EndWaits(uint64_t now_ns) {
  while (!parked_.empty() && parked_.front().deadline_ns < now_ns) {
    denied_ += parked_.front().cost;
    need_ = std::max(need_, parked_.front().cost);
    answers_.push_back({parked_.front().ticket, false});
    parked_.pop_front();
  }
}

std::vector<Lease::Answer> Lease::Answered(uint64_t now_ns) {
  EndWaits(now_ns);
  return std::exchange(answers_, {});
}

uint64_t Lease::NextDeadlineNs() const {
  return parked_.empty() ? UINT64_MAX : parked_.front().deadline_ns;
}

}  // namespace sluice::lease
