// What the reconciler needs of the network: script calls by shard (with regions: region x shards +
// shard, the own region first; primaries interleaved, p x regions + region), answered later and
// exactly once, by OnReply, OnFailure or OnPong of the reconciler. The daemon's is daemon/redis/; a
// simulation brings its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::reconcile {

inline constexpr uint32_t kNoPrimary = UINT32_MAX;

class Transport {
 public:
  virtual ~Transport() = default;
  // Runs the fold script on the shard. `args` are encoded bulk strings. Copied before returning.
  virtual void Call(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) = 0;
  // The same for the script of strict rules; the name of the primary that runs it is put in on the
  // way, before the argument lease::kPrimaryArg.
  virtual void Lend(uint32_t /*shard*/, std::string_view /*args*/, uint32_t /*arg_count*/,
                    uint64_t /*token*/) {}
  // The same for lua/home.lua; the name goes before the argument lease::kHomePrimaryArg.
  virtual void Settle(uint32_t /*shard*/, std::string_view /*args*/, uint32_t /*arg_count*/,
                      uint64_t /*token*/) {}
  // The same for lua/places.lua; the name goes before the argument lease::kPlacePrimaryArg.
  virtual void AskPlaces(uint32_t /*shard*/, std::string_view /*args*/, uint32_t /*arg_count*/,
                         uint64_t /*token*/) {}
  // Whether that name is known.
  virtual bool IsKnown(uint32_t /*primary*/) const { return false; }
  virtual void Ping(uint32_t primary, uint64_t token) = 0;
  virtual uint32_t PrimaryOf(uint32_t shard) const = 0;
  virtual uint32_t primary_count() const = 0;
};

}  // namespace sluice::reconcile
