// What a host and lua/lease.lua say to each other about one bucket.
#pragma once

#include <cstdint>
#include <string>

namespace sluice::lease {

// Of a rule whose hosts may overdraw. Where refill stops at the burst, what is out at hosts keeps
// tokens from coming that a moment later are asked for.
inline constexpr uint64_t kSpareUs = 15'000;

// One rule as the script counts it: `limit` tokens in `unit_us`, in lowest terms.
struct Terms {
  uint64_t limit = 0;
  uint64_t unit_us = 0;
  uint64_t burst = 0;
  uint64_t wait_ns = 0;  // how long a caller may wait; 0: it never does
  // What refill may bring beyond the burst, as time. 0: strict. Else hosts may spend a little more
  // than they are lent, and say so.
  uint64_t spare_us = 0;

  bool may_overdraw() const { return spare_us != 0; }
  double rate() const { return static_cast<double>(limit) * 1e6 / static_cast<double>(unit_us); }
};

// What a host reports and asks for, frozen when the request is made.
struct Ask {
  uint64_t fence_us = 0;      // of the lease that it holds
  int64_t gen = -1;           // of it; -1: it holds none
  uint64_t held = 0;          // what Redis counts for this host
  uint64_t rem = 0;           // what it keeps of that
  uint64_t ret = 0;           // what it gives back; what is left of `held` was spent
  uint64_t said_milli = 0;    // its demand as said in that lease, milli-tokens/s
  uint64_t demand_milli = 0;  // and now
  uint64_t target = 0;        // what it would like to hold
  uint64_t waiting = 0;       // tokens that parked callers wait for
  uint64_t need = 1;          // the largest cost that it could not serve
  uint64_t over = 0;          // spent beyond the lease since the last request
  uint64_t alone = 0;         // spent by its share while replies were overdue,
  uint64_t alone_us = 0;      // how long ago that began,
  uint64_t part_ppm = 0;      // and its share then; 0: they were not
};

// Why a bucket's home is not where it was asked for (lua/lease.lua).
enum class Away : uint8_t {
  kNot,         // it is
  kNotOpen,     // the homes are to be settled there (homes.h)
  kLaterMap,    // this host's map is out of date
  kAnotherMap,  // hosts have different maps of one epoch
};

struct Grant {
  Away away = Away::kNot;
  bool live = false;  // the lease that was reported still counted
  bool shortage = false;
  uint64_t tokens = 0;
  uint64_t fence_us = 0;
  int64_t gen = 0;
  uint64_t retry_us = 0;  // no sooner while short
  double share = 1;       // of this host in the demand of all
  double demand = 0;      // of all, tokens/s
  uint64_t hosts = 1;     // seen in this and the last generation
  uint64_t level = 0;     // tokens that nobody holds
  uint64_t out = 0;       // tokens that hosts hold
};

}  // namespace sluice::lease
