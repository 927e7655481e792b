// A host's tokens on loan from one bucket (docs/accuracy.md).
//
// L1  A credit is spent, returned or expired, each once and by this host alone.
// L2  Credits end within 0.999 generations of this host's clock after the request that brought them
//     was FIRST sent, whichever copy was answered: before Redis forgets them, for clocks that
//     differ by less than 1,000 ppm.
// L3  What is returned is taken out of the credits before the request is built.
//
// Where the terms let it overdraw, it also has an *allowance*: tokens that may be spent beyond the
// credits, each reported as `over` by the next request but for those of a time without replies, in
// which the host goes on by its share alone. No such spend weakens L1 to L3: they are of credits.
//
// Pure and single-threaded: time and randomness come in. One request may be on its way at a time;
// Session keeps its bytes.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "daemon/lease/demand.h"
#include "daemon/lease/terms.h"

namespace sluice::lease {

inline constexpr uint64_t kGenerationNs = 1'000'000'000;  // as in lua/lease.lua
inline constexpr uint64_t kLifetimeNs = kGenerationNs / 1000 * 999;
inline constexpr uint64_t kEarlyGapNs = 2'000'000;  // between requests out of turn, at least: 500/s
inline constexpr uint64_t kRecentNs = 1'000'000'000;
inline constexpr uint64_t kSlowNs = 2'500'000'000;  // half of what a slow rate is taken over
inline constexpr size_t kMaxParked = 1024;

enum class Verdict : uint8_t { kAllow, kDeny, kWait };

// How long replies take; the lead with which credits are renewed.
struct RoundTrip {
  double mean_ns = 1e6;
  double deviation_ns = 0.5e6;
  double least_ns = 1e6;  // of late: without what lost messages add

  void Add(uint64_t seen_ns);
  double lead_ns() const;
};

class Lease {
 public:
  struct Options {
    Terms terms;
    uint64_t sync_ns = 50'000'000;
    uint64_t hosts = 0;  // how many may share the bucket, before Redis tells; 0: nobody knows
    double factor = 1;   // of the limit, while it goes on alone
  };

  explicit Lease(const Options& options);

  // kWait: the answer comes from Answered() with this ticket; a wait needs Terms::wait_ns.
  Verdict Check(uint64_t cost, uint64_t now_ns, uint64_t ticket = 0);

  // Is a request due? `random` is uniform in [0, 1).
  bool Tick(uint64_t now_ns, const RoundTrip& rtt, double random);
  // The next time at which Tick may say yes without a check in between.
  uint64_t NextTickNs() const;

  // What to send now. A second one only after OnGrant.
  Ask Freeze(uint64_t now_ns, const RoundTrip& rtt, double random);
  void OnGrant(const Grant& grant, uint64_t first_sent_ns, uint64_t now_ns, const RoundTrip& rtt);

  struct Answer {
    uint64_t ticket;
    bool allowed;
  };
  // Where clients spend by themselves, out of a word that they share: what they did since the last
  // call. `spent` of the credits, `denied` tokens refused, `need` the largest cost among these.
  // Where callers wait (Terms::wait_ns) those denied do, for a reply in time, and help themselves.
  void Observe(uint64_t spent, uint64_t denied, uint64_t need, uint64_t now_ns);
  // So many of them were given back, before they were reported as spent.
  void Restore(uint64_t tokens);
  // Tokens that nobody can spend or give back any more.
  void Lose(uint64_t tokens) { credits_ -= tokens < credits_ ? tokens : credits_; }
  // After Freeze, where the credits stand in such a word: of the `back` that it wanted to give back
  // only `taken` were still there, and `left` remain. Puts *ask right (L3).
  void Settle(Ask* ask, uint64_t back, uint64_t taken, uint64_t left);

  // What may be spent beyond the credits now; brings it up to date.
  uint64_t Allowance(uint64_t now_ns);
  // So many tokens were spent by the host's share alone, past the word that clients share.
  void SpendAlone(uint64_t tokens, uint64_t now_ns);

  // Parked callers that were served or whose time is over, once each.
  std::vector<Answer> Answered(uint64_t now_ns);
  // When the first parked caller's time is over; UINT64_MAX without one.
  uint64_t NextDeadlineNs() const;

  uint64_t credits() const { return credits_; }
  uint64_t held() const { return held_; }
  uint64_t expiry_ns() const { return expiry_ns_; }
  // Before it nothing is asked for, since nothing would come; 0: that was not said.
  uint64_t retry_ns() const { return short_ ? retry_ns_ : 0; }
  double share() const { return share_; }
  // Its share over the last second, by which it goes on alone.
  double lasting_share() const { return lasting_share_; }
  uint64_t allowance() const { return allowance_; }
  // What of the bucket is there for whom it is kept, tokens, as Redis told last; 0 before it has.
  uint64_t left() const { return left_; }
  bool is_told() const { return hosts_ != 0; }
  bool in_flight() const { return in_flight_; }
  // Nothing is held, asked for or waited for: it needs no Tick before the next check.
  bool IsIdle(uint64_t now_ns) const;

 private:
  struct Parked {
    uint64_t ticket;
    uint64_t cost;
    uint64_t need;  // the largest cost of the callers that it is about
    uint64_t deadline_ns;
    bool outside = false;  // who waits is unknown: nobody is answered, and credits stay there
  };

  void Expire(uint64_t now_ns);
  void Overdraw(uint64_t tokens);
  void BeginAlone(uint64_t now_ns);
  void EndAlone();
  void View(uint64_t now_ns);
  void Allow(double tokens);
  double AloneMost() const;
  void Measure(uint64_t now_ns);
  // They came since then.
  void NoteAttempts(uint64_t tokens, uint64_t since_ns, uint64_t now_ns);
  bool Blocked(uint64_t now_ns) const { return short_ && now_ns < retry_ns_; }
  uint64_t Unreported() const { return held_ - credits_ - pending_; }
  uint64_t Waiting() const;
  uint64_t Target(uint64_t now_ns, const RoundTrip& rtt) const;
  bool DueInTurn(uint64_t now_ns, uint64_t target) const;
  bool HasSpare() const;
  bool PassesThrough(const RoundTrip& rtt) const;
  bool CanWait() const { return terms_.wait_ns > 0 && passes_; }
  // A limit too low for its hosts, none of which waits: nothing is held, and chance decides.
  bool IsSparse() const;
  void AllowByChance(const Grant& grant);
  uint64_t WatchNs() const;
  bool IsWatched(uint64_t now_ns) const;
  bool Watches(uint64_t now_ns) const;
  void NoteLargest(uint64_t now_ns);
  uint64_t Pace(const Grant& grant, uint64_t now_ns);
  bool HasExcess(uint64_t target) const;
  bool MayWait(uint64_t deadline_ns, uint64_t now_ns) const;
  uint64_t LeftOf(const Grant& grant) const;
  void EndWaits(uint64_t now_ns);
  void ServeParked();

  Terms terms_;
  uint64_t sync_ns_;
  double factor_ = 1;

  // The lease
  uint64_t credits_ = 0;  // spendable until expiry
  uint64_t expiry_ns_ = 0;
  uint64_t held_ = 0;     // counted for this host by Redis: credits, spent and pending
  uint64_t pending_ = 0;  // expired: not spendable, and not yet given back
  uint64_t fence_us_ = 0;
  int64_t gen_ = -1;

  // Demand
  Demand demand_;
  Demand slow_;                // over some seconds
  uint64_t attempts_ = 0;      // tokens asked for since it was brought up to date
  uint64_t measured_ns_ = 0;   // when that was
  uint64_t run_since_ns_ = 0;  // checks in a row, for at most an interval
  uint64_t run_attempts_ = 0;
  uint64_t said_milli_ = 0;   // as said in the lease that is held
  uint64_t asked_milli_ = 0;  // as said in the request on its way
  uint64_t denied_ = 0;       // tokens, since the last request
  uint64_t need_ = 1;         // the largest cost among them
  double large_ = 1;          // to be reckoned with, where they are overdrawn
  uint64_t asked_need_ = 1;   // as said in the request on its way
  uint64_t last_check_ns_ = 0;
  bool checked_ = false;
  std::deque<Parked> parked_;
  std::vector<Answer> answers_;

  // What Redis said last
  bool short_ = false;
  bool starved_ = false;  // of a cost larger than what is held
  uint64_t retry_ns_ = 0;
  double share_ = 1;
  uint64_t level_ = 0;  // tokens that nobody holds
  uint64_t left_ = 0;
  uint64_t overload_since_ns_ = 0;  // 0: there is none
  double all_demand_ = 0;
  uint64_t hosts_ = 0;  // 0: not told yet

  // Beyond the credits
  uint64_t allowance_ = 0;
  bool passes_ = true;      // nothing is held or allowed beyond it, where callers wait
  uint64_t over_ = 0;       // spent of it and not yet reported
  uint64_t viewed_ns_ = 0;  // when Redis told last; 0: never
  uint64_t renew_ns_ = 0;   // when the allowance is to change without a reply; UINT64_MAX: never
  double lasting_share_ = 1;
  uint64_t viewed_hosts_ = 0;  // as told by a view that was no part of them
  double dice_ = 0;          // for the fraction of a token, so that no host is starved by rounding
  bool alone_ = false;       // replies are overdue
  double alone_tokens_ = 0;  // of a bucket of this host's own, beyond the allowance
  uint64_t alone_ns_ = 0;    // to when it is filled
  uint64_t alone_spent_ = 0;
  uint64_t alone_begin_ns_ = 0;
  uint64_t alone_over_ = 0;      // spent so before, not yet reported,
  uint64_t alone_since_ns_ = 0;  // since when, and by which share; 0: it was not alone
  double alone_share_ = 0;
  uint64_t silent_since_ns_ =
      0;  // no reply from then on for long, and not alone; 0: not so, or said

  // The pace
  bool in_flight_ = false;
  bool early_ = false;
  bool spent_all_ = false;  // callers took all of a low limit: said at once, for the refill
  bool is_full_ = false;    // where that limit loses refill until it is said
  uint64_t sent_ns_ = 0;
  uint64_t gap_ns_ = kEarlyGapNs;  // between requests out of turn
  uint64_t tick_ns_ = 0;
  uint64_t target_ = 0;
  uint64_t frozen_rem_ = 0;
  uint64_t low_water_ = 0;
};

}  // namespace sluice::lease
