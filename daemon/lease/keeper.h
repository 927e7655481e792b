// Lends what Redis lends this host on to its clients: the credits of such buckets stand in their
// slots' words (shm/credits.h), clients spend them there by CAS, and the keeper reports, renews and
// returns. A state machine without threads, sockets or a clock.
//
// How lease.h's L1 to L3 hold across a word that others change (P1 to P3: shm/purse.h):
//
// K1 A Lease's credits are those in the word: what its clients took is told to it before anything
//    else is asked of it (P1).
// K2 What is returned, or reported as kept, is what a CAS left in the word (P2).
// K3 The word ends no later than the lease, and is empty before the lease's end is counted (P3).
// K4 What stood in a word before the keeper knew it is nobody's.
//
// Where a rule is not strict, the word holds the lease's allowance too, and does not end by itself:
// what clients take beyond the credits is overdrawn, and so is what was taken of an unsettled word.
//
// Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "daemon/config/compile.h"
#include "daemon/harvest/harvester.h"
#include "daemon/lease/books.h"
#include "daemon/lease/lease.h"
#include "daemon/lease/session.h"
#include "daemon/redis/reply.h"
#include "shm/purse.h"
#include "shm/segment.h"

namespace sluice::lease {

inline constexpr size_t kMaxCallBuckets = 100;  // a script's time, and Lua's unpack
inline constexpr uint64_t kForgetNs = 60'000'000'000;

// What the keeper needs of the network. Each Lend is answered by one OnReply or OnFailure, later.
class Link {
 public:
  virtual ~Link() = default;
  // Whether the shard may be asked now: there is a primary, and it is not taken for dead.
  virtual bool MayLend(uint32_t shard, uint64_t now_ns) = 0;
  // Runs lua/lease.lua on it. `args` are its ARGV, but that at kPrimaryArg the id of the primary is
  // to be put in: the same on all hosts, another after a restart and a failover.
  virtual void Lend(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) = 0;
  // At whose state the clients of a bucket are to look: its shard's, but where an operator's word
  // puts it in emergency.
  virtual uint32_t ShownShard(const config::CompiledRule& rule, const std::string& text,
                              uint32_t shard) = 0;
  // Which shard lends the bucket: of its home, where there are regions.
  virtual uint32_t HomeShard(const config::CompiledRule& /*rule*/, const std::string& /*text*/,
                             uint32_t shard) {
    return shard;
  }
  // The shard lends nothing of the rule, for that reason.
  virtual void OnAway(uint32_t /*shard*/, const config::CompiledRule& /*rule*/, Away /*why*/) {}
  // How many hosts share limits, as last seen, with this one; 0: not known. And so many were seen.
  virtual uint64_t HostsSeen() = 0;
  virtual void OnHosts(uint64_t hosts) = 0;
  // The bucket that stood there is forgotten: it is to be named anew at its next use.
  virtual void OnForgotten(const harvest::Place& place) = 0;
};

struct KeeperStats {
  uint64_t calls = 0;
  uint64_t resends = 0;
  uint64_t asked_buckets = 0;    // in the calls
  uint64_t lent_tokens = 0;      // by Redis
  uint64_t returned_tokens = 0;  // to it
  uint64_t lost_tokens = 0;      // given up: they stood in a word that was reused
  uint64_t bad_replies = 0;
};

class Keeper {
 public:
  struct Options {
    uint32_t shard_count = 64;
    Instance instance{};
    uint64_t sync_ns = 50'000'000;  // how often a host in use reports
  };

  // What is passed outlives the keeper. `random` is uniform in [0, 1).
  Keeper(const Options& options, const shm::MappedBuckets* buckets, Link* link,
         std::function<double()> random);

  // As harvest::Sink has them; `need`: the largest cost among what was denied; `alone`: tokens that
  // were spent past the word, in an emergency.
  uint32_t OnBucket(const harvest::Place& place, harvest::Named&& named, uint64_t now_ns);
  void OnUse(uint32_t bucket, uint64_t denied, uint64_t need, uint64_t alone, uint64_t now_ns);
  const config::CompiledRule* RuleOf(uint32_t bucket) const { return books_[bucket].rule; }
  uint32_t ShardOf(uint32_t bucket) const { return books_[bucket].shard; }
  uint32_t ShownShardOf(uint32_t bucket) const { return books_[bucket].shown_shard; }

  // The rules changed. A bucket whose terms are others gives up what it holds and begins anew.
  void SetRules(const config::CompiledRules& rules, uint64_t now_ns);

  // Does what is due, and returns when it wants to be called again at the latest.
  uint64_t Tick(uint64_t now_ns);
  // What ShownShard says has changed.
  void ShowShards(uint64_t now_ns);

  // InternalError: what answered is not the script.
  absl::Status OnReply(uint32_t shard, uint64_t seq, const redis::Reply& reply, uint64_t now_ns);

  // Buckets under rules that lend that are known; those that hold or want something.
  size_t size() const { return books_.open(); }
  const KeeperStats& stats() const { return stats_; }
  // Tokens that this host may still spend or return, as of the last look at each bucket.
  uint64_t held_tokens() const { return held_tokens_; }

 private:
  struct Book {
    std::string text;                            // empty: free
    std::string wire;                            // in Redis
    const config::CompiledRule* rule = nullptr;  // null: as lease
    uint32_t shard = 0;
    uint32_t shown_shard = 0;
    harvest::Place place;  // key 0: it stands in no slot
    Terms terms;
    std::string home;            // as asked for
    std::optional<Lease> lease;  // none: no rule speaks of it
    shm::Purse purse;
    uint64_t wake_ns = 0;  // the timer that counts; 0: none
    uint64_t touched_ns = 0;
    uint64_t reported_ns = 0;
    uint64_t counted = 0;  // of its credits, in held_tokens_
    bool queued = false;   // wants to be asked for
  };
  struct Shard {
    std::unique_ptr<Session> session;
    std::vector<uint32_t> queue;
    std::vector<uint32_t> asked;  // in the call on its way, in its order
  };
  using Timer = std::pair<uint64_t, uint32_t>;  // when, which book

  Session& SessionOf(uint32_t shard);
  void Visit(uint32_t id, uint64_t now_ns);
  void Schedule(uint32_t id, uint64_t now_ns);
  void Queue(uint32_t id);
  void Flush(uint32_t shard, uint64_t now_ns);
  void Send(uint32_t shard);
  Ask AskOf(Book& b, uint64_t now_ns);
  void TakeGrant(Book& b, const Grant& grant, uint64_t first_sent_ns, uint64_t now_ns);
  void Begin(Book& b, const config::CompiledRule& rule);
  void CountHeld(Book& b);
  void Forget(uint64_t now_ns);

  void Sync(Book& b, uint64_t now_ns);
  void Note(Book& b, const shm::Purse::Change& change, uint64_t now_ns);
  void Put(Book& b, uint64_t now_ns);
  void Stand(Book& b, const harvest::Place& place, uint64_t now_ns);
  void Publish(Book& b, uint64_t now_ns);

  const Options options_;
  const shm::MappedBuckets* const buckets_;
  Link* const link_;
  const std::function<double()> random_;
  Books<Book> books_;
  std::vector<Shard> shards_;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<Timer>> timers_;
  KeeperStats stats_;
  uint64_t held_tokens_ = 0;
  uint32_t forget_at_ = 0;
};

}  // namespace sluice::lease
