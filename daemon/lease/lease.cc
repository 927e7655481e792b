#include "daemon/lease/lease.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::lease {
namespace {

constexpr double kMostHeld = 0.6;    // of the burst, by one token a host or few
constexpr double kManyHosts = 0.95;  // of the burst: a whole token each is no longer there
constexpr double kSecond = 1e9;
constexpr uint64_t kColdTarget = 8;    // at most, for demand that is not known yet
constexpr uint64_t kRisingTarget = 4;  // at least, where credits went sooner than expected
constexpr uint64_t kLeastLow = 2;  // credits left at which more is asked for, however slow it was
constexpr double kLevelLeft = 0.005;  // of the burst at Redis: who holds a token takes none away
constexpr double kNearlyFull = 0.9;   // of the burst in level and out: refill is being lost
// An overload begins above the one and ends below the other, of the limit.
constexpr double kOverload = 1.1;
constexpr double kNoOverload = 0.9;
constexpr double kGapRtts = 2;
constexpr double kLeadPart = 0.2;  // of an interval, at most: no lead helps against a stall
constexpr uint64_t kFewHosts = 8;  // so few are told to come often
constexpr uint64_t kSuddenNs = 1'500'000'000;  // and may for so long
constexpr uint64_t kCalming = 16;              // then the pause grows by a part of what it lasts

double Seconds(double ns) { return ns / kSecond; }

}  // namespace

void RoundTrip::Add(uint64_t seen_ns) {
  const double seen = static_cast<double>(seen_ns);
  deviation_ns += (std::abs(seen - mean_ns) - deviation_ns) / 4;
  mean_ns += (seen - mean_ns) / 8;
  least_ns = std::min(seen, 3 * least_ns);
}

double RoundTrip::lead_ns() const { return std::max(1.5 * mean_ns, mean_ns + 4 * deviation_ns); }

void Lease::Expire(uint64_t now_ns) {
  if (now_ns < expiry_ns_) return;
  pending_ += credits_;
  credits_ = 0;
}

// A second look at the same time would count as an interval without any attempt.
void Lease::Measure(uint64_t now_ns) {
  if (now_ns == measured_ns_) return;
  // Nobody looked while it was idle: what came did so of late. Spread over all that time it would
  // be next to nothing, and so would this host's share be.
  if (now_ns > measured_ns_ + 2 * sync_ns_) demand_.Update(0, now_ns - sync_ns_, sync_ns_);
  measured_ns_ = now_ns;
  slow_.Update(attempts_, now_ns, kSlowNs, HUGE_VAL);
  demand_.Update(attempts_, now_ns, sync_ns_, large_);
  // Calls out of turn come sooner than attempts that are worth believing.
  run_attempts_ += attempts_;
  attempts_ = 0;
  if (Demand::IsJump(run_attempts_, large_) && now_ns > run_since_ns_) {
    demand_.Raise(static_cast<double>(run_attempts_) /
                  Seconds(static_cast<double>(now_ns - run_since_ns_)));
  }
  if (now_ns >= run_since_ns_ + sync_ns_) {
    run_since_ns_ = now_ns;
    run_attempts_ = 0;
  }
}

void Lease::NoteAttempts(uint64_t tokens, uint64_t since_ns, uint64_t now_ns) {
  attempts_ += tokens;
  if (now_ns > last_check_ns_ + sync_ns_ / 2) {
    run_since_ns_ = since_ns;
    run_attempts_ = 0;
  }
  last_check_ns_ = now_ns;
  checked_ = true;
}

Verdict Lease::Check(uint64_t cost, uint64_t now_ns, uint64_t ticket) {
  if (cost > terms_.burst) return Verdict::kDeny;  // never, whoever waits
  Expire(now_ns);
  NoteAttempts(cost, now_ns, now_ns);
  const bool blocked = Blocked(now_ns);
  if (parked_.empty() && credits_ >= cost) {
    credits_ -= cost;
    if (credits_ <= low_water_ && !blocked) early_ = true;
    return Verdict::kAllow;
  }
  if (parked_.empty() && credits_ + Allowance(now_ns) >= cost) {
    Overdraw(cost - credits_);
    credits_ = 0;
    if (!blocked) early_ = true;
    return Verdict::kAllow;
  }
  if (!blocked) early_ = true;
  const uint64_t deadline_ns = now_ns + terms_.wait_ns;
  if (MayWait(deadline_ns, now_ns)) {
    parked_.push_back({ticket, cost, cost, deadline_ns});
    return Verdict::kWait;
  }
  denied_ += cost;
  need_ = std::max(need_, cost);
  return Verdict::kDeny;
}

bool Lease::MayWait(uint64_t deadline_ns, uint64_t now_ns) const {
  return terms_.wait_ns > 0 && parked_.size() < kMaxParked &&
         (!Blocked(now_ns) || retry_ns_ < deadline_ns);
}

void Lease::Observe(uint64_t spent, uint64_t denied, uint64_t need, uint64_t now_ns) {
  if (spent == 0 && denied == 0) return;
  const uint64_t since_ns = now_ns - std::min(now_ns, kEarlyGapNs);
  const uint64_t lent = std::min(spent, credits_);
  credits_ -= lent;
  if (spent > lent && terms_.may_overdraw()) Overdraw(spent - lent);
  NoteAttempts(spent + denied, since_ns, now_ns);
  const bool passes = terms_.wait_ns > 0 && target_ == 0;
  if (passes && is_full_ && spent > 0 && credits_ == 0) spent_all_ = true;
  if ((denied > 0 || (credits_ <= low_water_ && !passes)) && !Blocked(now_ns)) early_ = true;
  if (denied == 0) return;
  if (MayWait(since_ns + terms_.wait_ns, now_ns)) {
    parked_.push_back({.ticket = 0,
                       .cost = denied,
                       .need = std::min(need, terms_.burst),
                       .deadline_ns = since_ns + terms_.wait_ns,
                       .outside = true});
    return;
  }
  denied_ += denied;
  need_ = std::max(need_, std::min(need, terms_.burst));
}

bool Lease::IsIdle(uint64_t now_ns) const {
  return held_ == 0 && credits_ == 0 && pending_ == 0 && over_ == 0 && alone_since_ns_ == 0 &&
         !in_flight_ && !IsWatched(now_ns) && parked_.empty() &&
         (!checked_ || now_ns >= last_check_ns_ + kRecentNs) &&
         (!terms_.may_overdraw() || renew_ns_ == UINT64_MAX);
}

uint64_t Lease::Waiting() const {
  uint64_t tokens = 0;
  for (const Parked& p : parked_) tokens += p.cost;
  return tokens;
}

bool Lease::Tick(uint64_t now_ns, const RoundTrip& rtt, double random) {
  Expire(now_ns);
  EndWaits(now_ns);
  (void)Allowance(now_ns);
  if (in_flight_) return false;
  if (spent_all_) return true;
  if (now_ns >= sent_ns_ + gap_ns_ && (early_ || (!parked_.empty() && !Blocked(now_ns)))) {
    return true;
  }
  if (now_ns < tick_ns_) return false;
  // Jitter breaks the phase locks between hosts.
  tick_ns_ = now_ns + static_cast<uint64_t>(static_cast<double>(sync_ns_) * (0.8 + 0.4 * random));
  Measure(now_ns);
  return DueInTurn(now_ns, Target(now_ns, rtt));
}

bool Lease::DueInTurn(uint64_t now_ns, uint64_t target) const {
  if (Watches(now_ns)) return true;
  const double demand = demand_.rate();
  const bool recent = checked_ && now_ns < last_check_ns_ + kRecentNs;
  const bool blocked = Blocked(now_ns);
  if (pending_ > 0 || over_ > 0 || alone_since_ns_ > 0 || (!parked_.empty() && !blocked))
    return true;
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
  if (spent_all_) return 0;
  uint64_t next = tick_ns_;
  if (terms_.may_overdraw()) next = std::min(next, renew_ns_);
  if (early_) next = std::min(next, sent_ns_ + gap_ns_);
  if (!parked_.empty()) {
    next = std::min(next, std::max(short_ ? retry_ns_ : 0, sent_ns_ + gap_ns_));
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
  // Large costs are overdrawn where that may be: to hold as much everywhere would lock the burst
  // up.
  if (denied_ > 0 && large_ == 1) {
    target = std::max({target, std::min(2 * denied_ + 1, kColdTarget), need_});
  }
  if (PassesThrough(rtt) || IsSparse()) return 0;
  const uint64_t idle_ns = now_ns - last_check_ns_;
  if (!checked_ || idle_ns >= kRecentNs) return target;
  const bool many = hosts > kManyHosts * burst;
  if (many && all_demand_ > 0 && static_cast<double>(level_) < kLevelLeft * burst) {
    const double hold_ns =
        -std::log(1 - 0.99 * std::min(1.0, burst / hosts)) / (all_demand_ / hosts) * kSecond;
    return static_cast<double>(idle_ns) <= hold_ns ? target + 1 : target;
  }
  if (hosts > kMostHeld * burst && !many) return target;
  return (early_ && HasSpare() ? std::max(target, kRisingTarget) : target) + 1;
}

// Each host may hold a few tokens, and others miss none.
bool Lease::HasSpare() const {
  return static_cast<double>(hosts_ * kRisingTarget) <=
         kMostHeld * static_cast<double>(terms_.burst);
}

bool Lease::HasExcess(uint64_t target) const {
  if (target == 0) return credits_ > 0;
  return static_cast<double>(credits_) > 1.25 * static_cast<double>(target) + 1;
}

Ask Lease::Freeze(uint64_t now_ns, const RoundTrip& rtt, double random) {
  Expire(now_ns);
  EndWaits(now_ns);
  Measure(now_ns);
  for (const Parked& p : parked_) need_ = std::max(need_, p.need);
  NoteLargest(now_ns);
  target_ = Target(now_ns, rtt);
  passes_ = PassesThrough(rtt);
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
  const double rate = IsSparse() ? slow_.rate() : demand_.rate();
  ask.demand_milli = static_cast<uint64_t>(std::llround(rate * 1000));
  ask.target = target_;
  ask.waiting = Waiting();
  ask.need = terms_.may_overdraw() && terms_.wait_ns == 0 ? 1 : need_;
  ask.over = std::exchange(over_, 0);
  // One that was back before it went on alone says so too: nothing need be set aside for it.
  const uint64_t apart_ns = alone_since_ns_ > 0 ? alone_since_ns_ : silent_since_ns_;
  if (apart_ns > 0) {
    ask.alone_us = (now_ns - std::min(now_ns, apart_ns)) / 1000;
    ask.part_ppm = static_cast<uint64_t>(std::max(1.0, alone_share_ * 1e6));
  }
  ask.alone = std::exchange(alone_over_, 0);
  alone_since_ns_ = silent_since_ns_ = 0;
  dice_ = random * 1024 - std::floor(random * 1024);
  held_ -= ask.ret;
  pending_ = 0;
  asked_milli_ = ask.demand_milli;
  frozen_rem_ = ask.rem;
  denied_ = 0;
  asked_need_ = std::exchange(need_, 1);
  early_ = spent_all_ = false;
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

// A few hosts are told to come often, in case that a load is sudden. One that lasts is served as
// well by one call an interval: how long to wait for the next; 0: as told.
uint64_t Lease::Pace(const Grant& grant, uint64_t now_ns) {
  const double rate = terms_.rate();
  const double burst = static_cast<double>(terms_.burst);
  const bool easy =
      grant.demand <= kNoOverload * rate ||
      static_cast<double>(grant.level) > rate * Seconds(static_cast<double>(sync_ns_));
  if (easy) {
    overload_since_ns_ = 0;
  } else if (overload_since_ns_ == 0 && grant.demand > kOverload * rate) {
    overload_since_ns_ = now_ns;
  }
  const bool losing = static_cast<double>(grant.level + grant.out) >= kNearlyFull * burst;
  if (overload_since_ns_ == 0 || losing || terms_.wait_ns > 0 || grant.hosts >= kFewHosts) return 0;
  const uint64_t lasted_ns = now_ns - overload_since_ns_;
  if (lasted_ns <= kSuddenNs) return 0;
  return std::min(sync_ns_ / 20 * 19, (lasted_ns - kSuddenNs) / kCalming);
}

// What other hosts hold is there for whom it is kept at half, since he may come in here: else they
// would hold what is kept. Where hardly anything is spent all of it is: nobody is short of it.
uint64_t Lease::LeftOf(const Grant& grant) const {
  const uint64_t all = grant.level + grant.out;
  if (static_cast<double>(all) >= kNearlyFull * static_cast<double>(terms_.burst)) return all;
  return all - (grant.out - std::min(grant.out, held_)) / 2;
}

void Lease::OnGrant(const Grant& grant, uint64_t first_sent_ns, uint64_t now_ns,
                    const RoundTrip& rtt) {
  EndAlone();
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
  uint64_t pause_ns = grant.retry_us * 1000;
  const uint64_t paced_ns = Pace(grant, now_ns);
  if (paced_ns > 0) {
    pause_ns = short_ ? std::max(pause_ns, paced_ns) : paced_ns;
    short_ = true;
  }
  retry_ns_ = now_ns + pause_ns;
  // Where Redis is at its limit, calls out of turn would only make each other wait.
  gap_ns_ = std::max(kEarlyGapNs, static_cast<uint64_t>(kGapRtts * rtt.least_ns));
  level_ = grant.level;
  left_ = LeftOf(grant);
  share_ = grant.share;
  all_demand_ = grant.demand;
  hosts_ = std::max<uint64_t>(1, grant.hosts);
  const double lead_ns = std::min(rtt.lead_ns(), kLeadPart * static_cast<double>(sync_ns_));
  const double lead = demand_.rate() * Seconds(lead_ns);
  const auto low = static_cast<uint64_t>(std::llround(lead + 1.5 * std::sqrt(lead)));
  low_water_ = std::min(HasSpare() ? std::max(low, kLeastLow) : low, target_ / 2);
  starved_ = large_ == 1 && short_ && grant.tokens == 0 && frozen_rem_ > 0;
  // Who was denied meanwhile did not know of these credits; do they suffice?
  early_ = denied_ > 0 && credits_ <= low_water_ && !Blocked(now_ns);
  View(now_ns);
  if (IsSparse()) AllowByChance(grant);
  const size_t waited = parked_.size();
  EndWaits(now_ns);
  ServeParked();
  // A low limit whose tokens are all out: say at once that these are spent.
  const double burst = static_cast<double>(terms_.burst);
  is_full_ = (burst * share_ < 10 || passes_) &&
             static_cast<double>(grant.level + grant.out) >= kNearlyFull * burst;
  if (parked_.size() < waited && is_full_ && credits_ == 0) spent_all_ = true;
}

void Lease::ServeParked() {
  uint64_t left = credits_;
  while (!parked_.empty() && left > 0) {
    Parked& p = parked_.front();
    // Some of those outside are served by less than all would take.
    const uint64_t served = p.outside ? std::min(p.cost, left) : p.cost;
    if (served > left) return;
    left -= served;
    p.cost -= served;
    if (p.cost > 0) return;
    if (!p.outside) {
      credits_ -= served;
      answers_.push_back({p.ticket, true});
    }
    parked_.pop_front();
  }
}

// Deadlines rise from front to back.
void Lease::EndWaits(uint64_t now_ns) {
  while (!parked_.empty() && parked_.front().deadline_ns < now_ns) {
    denied_ += parked_.front().cost;
    need_ = std::max(need_, parked_.front().need);
    if (!parked_.front().outside) answers_.push_back({parked_.front().ticket, false});
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
