// Lends places of requests in flight on to this host's clients, where a limit holds over all hosts:
// how many of a bucket's entries may be taken here stands beside its slot (shm/lent_places.h), and
// Redis says how many that may be (lua/places.lua). A state machine without threads, sockets or a
// clock.
//
// M1 What is counted here, the cap and what is held beyond it, is at most what Redis counts for
//    this host: it is raised by a reply alone, and lowered before a call says so (F5).
// M2 What is lent and free is used for kPlacesGoodNs from when the call was first sent, held places
//    for as long as they are held. Redis counts both for far longer.
// M3 What a former daemon lent on is taken back before this one says what is held; a call of this
//    one takes over from it.
//
// Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/config/compile.h"
#include "daemon/harvest/harvester.h"
#include "daemon/lease/books.h"
#include "daemon/lease/demand.h"
#include "daemon/redis/reply.h"
#include "shm/lent_places.h"
#include "shm/segment.h"

namespace sluice::lease {

// As lua/places.lua has them: after a failover nothing is lent for so long, and so long a host may
// be silent until its places are others'.
inline constexpr uint64_t kPlacesFenceNs = 5'000'000'000;
inline constexpr uint64_t kPlacesSilentNs = 30'000'000'000;
// Less than a fence, by what clocks may differ and a look may be late.
inline constexpr uint64_t kPlacesGoodNs = 2'000'000'000;
// How often a host says what it has: where some of it is free, and where all is held.
inline constexpr uint64_t kPlacesBeatNs = 500'000'000;
inline constexpr uint64_t kPlacesHeldBeatNs = 1'000'000'000;
// And looks whether some of it has become free.
inline constexpr uint64_t kPlacesLookNs = 100'000'000;
// So often it asks for what its requests were denied for want of, and for so long after one; and
// gives back what others are short of.
inline constexpr uint64_t kPlacesAskNs = 30'000'000;
inline constexpr uint64_t kPlacesNeedNs = 1'500'000'000;
// What is lent and not used stays here for so long: where others are short, and where none is.
inline constexpr uint64_t kPlacesShortNs = 1'200'000'000;
inline constexpr uint64_t kPlacesIdleNs = 10'000'000'000;
// A shard is called so often though it has nothing to lend, so that a new one's fence is over by
// the time that its first key is used.
inline constexpr uint64_t kPlacesTouchNs = 5'000'000'000;
inline constexpr size_t kMaxPlaceBuckets = 50;  // of a call: a script's time
inline constexpr size_t kPlacePrimaryArg = 3;

// What it needs of the network. Each AskPlaces is answered by one OnReply or OnFailure, later.
class PlaceLink {
 public:
  virtual ~PlaceLink() = default;
  // Whether the shard may be asked now: there is a primary, and it is not taken for dead.
  virtual bool MayLend(uint32_t shard, uint64_t now_ns) = 0;
  // Runs lua/places.lua on it. `args` are its ARGV, without the primary's id, which is to be put in
  // before the one at kPlacePrimaryArg: the same on all hosts, another after a restart or failover.
  virtual void AskPlaces(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) = 0;
  // The bucket that stood there is to be named anew at its next use.
  virtual void OnForgotten(const harvest::Place& place) = 0;
};

class PlaceKeeper {
 public:
  struct Options {
    uint32_t shard_count = 64;
    // 32 hex digits; its first half is of the segments, and it is above those of former daemons.
    std::string instance;
  };

  // What is passed outlives it.
  PlaceKeeper(Options options, const shm::MappedBuckets* buckets, PlaceLink* link);

  // M3: has the harvester name every bucket that a former daemon may have lent on. To be called
  // before the first Tick.
  void TakeOver();

  // A bucket under a rule whose places are lent, as harvest::Sink has it.
  void OnBucket(const harvest::Place& place, const harvest::Named& named, uint64_t now_ns);
  // It was used: `entered` places were taken since, `denied` asked for in vain, `need` at once.
  void OnUse(const std::string& text, int64_t entered, uint64_t denied, uint64_t need,
             uint64_t now_ns);
  void SetRules(const config::CompiledRules& rules, uint64_t now_ns);
  // Does what is due.
  void Tick(uint64_t now_ns);
  // InternalError: what answered is not the script.
  absl::Status OnReply(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint64_t now_ns);

  // Buckets that are known.
  size_t size() const { return books_.open(); }

 private:
  struct Book {
    std::string text;  // empty: free
    std::string wire;  // in Redis
    uint32_t shard = 0;
    uint32_t limit = 0;  // 0: no rule speaks of it
    uint32_t cost = 1;
    harvest::Place place;  // key 0: it stands in no slot
    uint32_t lent = 0;     // M1; free ones among them are good until
    uint64_t good_ns = 0;
    shm::places::Stock stock;
    Demand demand;
    uint64_t uses = 0;  // since the last look
    uint64_t need = 0;  // what was denied and not lent yet
    uint64_t need_ns = 0;
    uint64_t used_ns = 0;
    uint64_t lent_ns = 0;  // when more came last
    uint64_t looked_ns = 0;
    uint64_t asked_ns = 0;  // the last call began; 0: never
    uint64_t told = 0;      // what Redis counts for it at least
    uint32_t kept = 0;      // as the call says that is on its way
    bool is_asked = false;  // one is
    bool is_short = false;  // others are
  };
  struct Shard {
    uint64_t seq = 0;
    uint64_t first_sent_ns = 0;
    uint64_t sent_ns = 0;
    uint64_t timeout_ns = 0;
    uint64_t not_before_ns = 0;
    std::vector<std::string> args;  // of the call on its way; empty: none is
    std::vector<uint32_t> asked;
    std::vector<uint32_t> due;
  };

  void Put(Book& b, uint32_t counted, uint64_t now_ns);
  void Look(Book& b, uint64_t now_ns);
  static bool GivesWay(const Book& b, uint64_t now_ns);
  uint32_t WantOf(const Book& b, uint64_t now_ns) const;
  bool IsDue(const Book& b, uint64_t now_ns) const;
  void Visit(uint32_t id, uint64_t now_ns);
  void Flush(uint32_t shard, uint64_t now_ns);
  void Send(uint32_t shard, uint64_t now_ns);
  void Forget(uint32_t id);

  const Options options_;
  const shm::MappedBuckets* const buckets_;
  PlaceLink* const link_;
  Books<Book> books_;
  std::vector<Shard> shards_;
  std::vector<uint32_t> urgent_;  // was denied since the last Tick
  uint64_t scanned_ns_ = 0;
  bool has_rules_ = false;  // that lend
};

}  // namespace sluice::lease
