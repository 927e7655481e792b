// Takes use and denials out of the bucket segment: scans the dirty bitmap, reads each slot's name
// once per tenancy, and hands what was used since to a Sink. A slower sweep over all slots picks up
// what killed clients left behind. Design: docs/slot-protocol.md.
//
// Nothing in the segment is trusted: a text counts only if it hashes to its slot's fingerprint, and
// each take is capped at what the bucket could have admitted, so that a hostile client can spend
// its own host's words but not poison a key for the fleet.
//
// Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "daemon/config/compile.h"
#include "shm/bucket_name.h"
#include "shm/hash.h"
#include "shm/segment.h"
#include "shm/slot_table.h"

namespace sluice::harvest {

// Where a bucket stands: a slot, and the key word of the tenancy.
struct Place {
  uint32_t slot = 0;
  uint64_t key = 0;
};

// A bucket as its name tells it.
struct Named {
  std::string text;  // "label:value:...", never for the outside
  uint32_t shard = 0;
  const config::CompiledRule* rule = nullptr;  // of the rules last set
  std::string wire;  // in Redis, where that differs: see config::WireName; empty: the text
};

class Sink {
 public:
  virtual ~Sink() = default;
  // A tenancy met for the first time since the rules were set; returns the id for Use.
  virtual uint32_t OnBucket(const Place& place, Named named) = 0;
  // That bucket is about to be spoken of: its memory may be asked for.
  virtual void Expect(uint32_t bucket) = 0;
  // What was used there since the last take. Tokens may be negative (refunds).
  // `need`: the largest cost among what was denied, where the rule is strict; else 1.
  virtual void OnUse(uint32_t bucket, int64_t tokens, uint64_t denied, uint64_t need) = 0;
  // Tokens that fell into a rule's overflow bucket.
  virtual void OnOverflow(uint16_t rule, int64_t tokens) = 0;
  // Denials of requests of a class.
  virtual void OnClassDenied(const config::CompiledClass& c, uint64_t denied) = 0;
};

// A whole sweep takes the shorter time, over more than kSweepSlots in proportion up to the longer:
// a large table at rest is to cost little. It takes so many times as long after one that met no
// use, as long as none comes: then only a client that is killed in the middle of a check leaves
// any.
inline constexpr uint64_t kSweepNs = 5'000'000'000;
inline constexpr uint64_t kLongestSweepNs = 30'000'000'000;
inline constexpr uint64_t kSweepSlots = 1 << 18;
inline constexpr uint64_t kIdleSweeps = 4;
// A dead word is settled by the sweep when its claimer had this long to go on.
inline constexpr uint64_t kStalledClaimNs = 1'000'000'000;
// A rule that fails open admits without a bound by time; this many tokens a second are believed.
inline constexpr uint64_t kMaxOpenTokensPerSecond = 100'000'000;

class Harvester {
 public:
  // `buckets` outlives the harvester. `use_since_ns`: when use may have begun to pile up in the
  // slots, that is the last harvest of an earlier daemon; now, where there was none.
  Harvester(const shm::MappedBuckets* buckets, const shm::HashKey& hash_key, uint32_t shard_count,
            uint64_t use_since_ns);

  // Names are resolved anew: rule ids and pointers belong to one policy.
  void SetRules(std::shared_ptr<const config::CompiledRules> rules);

  // Takes from all dirty slots. Returns how many were.
  size_t Harvest(uint64_t now_ns, Sink& sink);

  // Goes on with the sweep as far as the time since the last call asks for.
  void Sweep(uint64_t now_ns, const shm::SlotTable<std::atomic<uint64_t>>::Env& env, Sink& sink);

  // The sink has freed the bucket that stood there: it is named anew at its next use.
  void Forget(const Place& place) {
    if (place.key != 0 && known_[place.slot].key == place.key) known_[place.slot].key = 0;
  }

  // Slots that held an unexpired key in the last whole sweep.
  uint64_t live_buckets() const { return live_buckets_; }

 private:
  struct Known {
    uint64_t key = 0;  // 0: not resolved
    uint64_t taken_ns = 0;
    uint32_t bucket = 0;
    uint16_t rule = 0;
    // The tenancy that was looked at for duplicates. Once is enough: of two slots with one key, the
    // one that was claimed later is looked at when both stand.
    uint16_t alone_gen = 0;
  };
  static_assert(sizeof(Known) == 24);

  void Ask(uint32_t slot) const;
  void TakeSlots(std::span<const uint32_t> slots, uint64_t now_ns, Sink& sink);
  void TakeSlot(uint32_t slot, uint64_t now_ns, Sink& sink);
  bool Resolve(uint32_t slot, uint64_t key, uint64_t now_ns, Sink& sink);
  bool ReadName(uint32_t slot, uint64_t key, char (&parts)[shm::kKeyTextBytes],
                shm::ParsedName* name) const;
  void SweepSlot(uint32_t slot, const shm::SlotTable<std::atomic<uint64_t>>::Env& env, Sink& sink);
  bool ResolveDuplicates(uint32_t slot, uint64_t key,
                         const shm::SlotTable<std::atomic<uint64_t>>::Env& env);
  void SweepOverflow(Sink& sink);
  void TakeClasses(uint64_t now_ns, Sink& sink);

  const shm::MappedBuckets* buckets_;
  shm::HashKey hash_key_;
  uint32_t shard_count_;
  std::shared_ptr<const config::CompiledRules> rules_;
  std::vector<Known> known_;  // by slot
  uint64_t use_since_ns_;
  uint64_t classes_taken_ns_ = 0;
  uint64_t sweep_ns_;        // a whole sweep takes, where there is use
  bool was_used_ = true;     // in the last whole sweep or since
  bool is_used_ = true;      // since the last whole sweep
  uint64_t started_ns_ = 0;  // of the first harvest
  uint64_t swept_ns_ = 0;
  uint64_t sweep_at_ = 0;
  uint64_t live_seen_ = 0;
  uint64_t live_buckets_ = 0;
};

}  // namespace sluice::harvest
