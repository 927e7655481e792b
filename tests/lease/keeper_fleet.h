// Hosts whose clients spend one strict bucket out of shared words, in virtual time: the daemon's
// keepers and lua/lease.lua as they are, a network that loses and delays, clocks that differ.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "daemon/lease/keeper.h"
#include "lua_scripts.h"
#include "shm/lease_slot.h"
#include "shm/segment.h"
#include "tests/accuracy/meter.h"
#include "tests/lease/virtual_world.h"
#include "tests/support/lua_redis.h"

namespace sluice::lease {

inline constexpr uint64_t kSyncNs = 50 * kMilli;
inline constexpr uint64_t kLookNs = kMilli / 2;

struct World : VirtualWorld {
  explicit World(uint64_t seed) : VirtualWorld(seed), redis(seed) {}

  test::LuaRedis redis;
  uint64_t redis_back_ns = 0;
  uint64_t primary = 1;
};

// The slot of the one key of these tests; where another stands in it, as after a client's claim.
inline shm::Slot& ClaimedAt(shm::Slot& slot, uint64_t now_ns) {
  constexpr uint64_t kFp = 0x5eed;
  const uint64_t k = slot.key.load();
  if (shm::key::Fp(k) == kFp) return slot;
  slot.key.store(shm::key::Make(kFp, shm::Kind::kLease, shm::key::Gen(k) + 1));
  slot.word.store(shm::credits::Make(now_ns, 0, 0));
  return slot;
}

class KeeperHost : public Link {
 public:
  KeeperHost(World* world, const config::CompiledRule* rule)
      : world_(world),
        rule_(rule),
        rate_(1 + 500e-6 * (2 * world->Unit() - 1)),
        offset_ns_(world->Below(1'000 * kSecond)) {
    if (!buckets_.Create(64).ok()) abort();
    Boot();
  }
  ~KeeperHost() override = default;

  // A daemon of another start over the same memory.
  void Boot() {
    ++incarnation_;
    keeper_ = std::make_unique<Keeper>(
        Keeper::Options{
            .shard_count = 1, .instance = {world_->random(), world_->random()}, .sync_ns = kSyncNs},
        &buckets_.buckets(), this, [this] {
          if (in_between) in_between();
          return world_->Unit();
        });
    id_.reset();
    is_dead_ = false;
  }
  // Clients go on with what stands in the words.
  void Kill() { is_dead_ = true; }

  // As a client's check of `cost` tokens, for a class with that floor.
  bool Check(uint64_t cost, uint16_t floor_q16 = 0) {
    shm::Slot& slot = Claimed();
    const uint64_t now_ns = LocalNs();
    const uint64_t trusted =
        rule_->strict ? 0 : shm::credits::TrustedOf(rule_->limit.burst, hosts_seen_);
    const uint64_t room = shm::credits::RoomOf(slot.aux.load(), rule_->limit.burst, floor_q16);
    uint64_t w = slot.word.load();
    for (;;) {
      const shm::credits::Measured m = shm::credits::Measure(
          w, 0, shm::key::Gen(slot.key), now_ns, cost, rule_->limit, trusted, room, floor_q16);
      if (!m.allowed) break;
      if (!slot.word.compare_exchange_weak(w, m.new_word)) continue;
      used_ += cost;
      spent_word_ = m.new_word;
      return true;
    }
    denied_ += cost;
    if (cost <= room) need_ = std::max(need_, cost);
    return false;
  }
  // As a caller that waits looks.
  bool HoldsEnough(uint64_t cost) {
    return shm::credits::Spendable(Claimed().word.load(), LocalNs()) >= cost;
  }
  bool Refund(uint64_t cost) {
    shm::Slot& slot = Claimed();
    uint64_t w = slot.word.load();
    const uint64_t back = shm::credits::Refunded(w, spent_word_, cost, LocalNs());
    return back != w && slot.word.compare_exchange_strong(w, back);
  }
  uint64_t word() { return Claimed().word.load(); }
  void Write(uint64_t word) { Claimed().word.store(word); }
  // The time in its second word, and as clients count there while nobody lends.
  uint64_t second_ns() {
    return shm::credits::second::TimeNs(buckets_.buckets().second()[slot_].load(), Gen());
  }
  void CountAlone(uint64_t until_ns) {
    buckets_.buckets().second()[slot_].store(shm::credits::second::Make(Gen(), until_ns));
  }
  // Its slot is reused for a key that is not looked at.
  void Evict() {
    shm::Slot& slot = Claimed();
    const uint64_t k = slot.key.load();
    slot.word.store(shm::word::Dead(shm::key::Gen(k), world_->events.now_ns / 1000));
    slot.key.store(shm::key::Make(0, shm::Kind::kTokenBucket, shm::key::Gen(k) + 1));
    slot.word.store(LocalNs());
  }

  void Harvest() {
    if (is_dead_) return;
    const uint64_t now_ns = LocalNs();
    const uint64_t key = buckets_.buckets().slots()[slot_].key.load();
    if (used_ != 0 || denied_ != 0) {
      if (!id_.has_value() || key != known_key_) {
        known_key_ = key;
        id_ = keeper_->OnBucket({slot_, key}, {rule_->label + ":u", 0, rule_}, now_ns);
      }
      keeper_->OnUse(*id_, denied_, need_, 0, now_ns);
      used_ = denied_ = 0;
      need_ = 1;
    }
    keeper_->Tick(now_ns);
  }

  Keeper& keeper() { return *keeper_; }
  // Called amid the keeper's work, as clients of another core come.
  std::function<void()> in_between;
  uint64_t LocalNs() const {
    return offset_ns_ + static_cast<uint64_t>(static_cast<double>(world_->events.now_ns) * rate_);
  }

 private:
  uint16_t Gen() { return shm::key::Gen(Claimed().key.load()); }
  shm::Slot& Claimed() { return ClaimedAt(buckets_.buckets().slots()[slot_], LocalNs()); }

  bool MayLend(uint32_t, uint64_t) override { return true; }
  uint32_t ShownShard(const config::CompiledRule&, const std::string&, uint32_t shard) override {
    return shard;
  }
  uint64_t HostsSeen() override { return hosts_seen_; }
  void OnHosts(uint64_t hosts) override { hosts_seen_ = std::max(hosts_seen_, hosts); }
  void OnForgotten(const harvest::Place&) override { id_.reset(); }
  void Lend(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) override {
    Carry([this, shard, args, seq, life = incarnation_] { Execute(shard, args, seq, life); });
  }
  void Carry(std::function<void()> run) {
    world_->Carry(/*far_ns=*/0, /*late_ns=*/200 * kMilli, std::move(run));
  }
  void Execute(uint32_t shard, std::vector<std::string> args, uint64_t seq, uint32_t life) {
    if (world_->events.now_ns < world_->redis_back_ns) {
      return world_->events.At(world_->redis_back_ns,
                               [this, shard, args, seq, life] { Execute(shard, args, seq, life); });
    }
    world_->redis.time_us = 1'700'000'000'000'000 + world_->events.now_ns / 1000;
    args[kPrimaryArg] = std::to_string(world_->primary);
    const redis::Reply reply = world_->redis.Eval(lua::kLease, "rl:1:strict:{0}", args);
    if (reply.is_error()) abort();
    Carry([this, shard, seq, life, reply] {
      if (life != incarnation_ || is_dead_) return;
      if (!keeper_->OnReply(shard, seq, reply, LocalNs()).ok()) abort();
    });
  }

  World* const world_;
  const config::CompiledRule* const rule_;
  const double rate_;
  const uint64_t offset_ns_;
  const uint32_t slot_ = 5;
  uint32_t incarnation_ = 0;
  shm::BucketsOwner buckets_;
  std::unique_ptr<Keeper> keeper_;
  std::optional<uint32_t> id_;
  uint64_t known_key_ = 0;
  uint64_t used_ = 0;
  uint64_t denied_ = 0;
  uint64_t need_ = 1;
  uint64_t spent_word_ = 0;
  uint64_t hosts_seen_ = 0;
  bool is_dead_ = false;
};

// All hosts under one rule, judged against one perfect bucket.
class KeeperFleet {
 public:
  // `wait_ns`: how long callers wait, as the rule says.
  KeeperFleet(size_t hosts, uint64_t limit_per_s, uint64_t burst, uint64_t seed,
              uint64_t wait_ns = 0, bool strict = true)
      : world(seed),
        terms_(*MakeTerms(limit_per_s, 1'000'000, burst, wait_ns)),
        shadow_(terms_),
        perfect_(terms_) {
    rule_.label = "strict";
    rule_.kind = shm::Kind::kLease;
    rule_.strict = strict;
    rule_.factor_q16 = shm::aux::kShareOne;
    rule_.limit = shm::MakeLimit(limit_per_s, kSecond, burst);
    rule_.wait_ns = wait_ns;
    world.events.now_ns = kSecond;
    for (size_t i = 0; i < hosts; ++i) {
      hosts_.push_back(std::make_unique<KeeperHost>(&world, &rule_));
    }
    // The fence of a hash that is new, and the burst after it.
    (void)host(0).Check(1);
    Run((3 + burst / limit_per_s) * kSecond, 0);
  }

  // `per_s`: checks of all hosts, spread by `pick`; Poisson.
  void Run(
      uint64_t ns, double per_s, const std::function<size_t()>& pick = nullptr,
      const std::function<uint64_t()>& cost = [] { return uint64_t{1}; }) {
    world.events.RunUntil(
        world.events.now_ns + ns, [&] { return world.NextArrivalNs(per_s); },
        [&] { Arrive(pick ? pick() : world.Below(hosts_.size()), cost()); },
        [this] {
          for (auto& host : hosts_) host->Harvest();
        });
  }

  void Arrive(size_t at, uint64_t cost) {
    if (perfect_.Take(cost, world.events.now_ns)) perfect_admitted += cost;
    Ask(at, cost, world.events.now_ns + terms_.wait_ns);
  }

  // One request of a class.
  bool ArriveOf(size_t at, uint16_t floor_q16) {
    if (perfect_.Take(1, world.events.now_ns)) ++perfect_admitted;
    if (!hosts_[at]->Check(1, floor_q16)) return false;
    ++admitted;
    shadow_.Force(1, world.events.now_ns);
    return true;
  }
  void HaveClasses() { rule_.classed = true; }

  // Redis forgets what it was told since `copy`, and another primary serves.
  void FailOver(const test::LuaRedis::Data& copy) {
    world.redis.data = copy;
    ++world.primary;
  }

  KeeperHost& host(size_t i) { return *hosts_[i]; }
  // Tokens of the bucket that nobody holds, with what would have come in by now.
  uint64_t StockNow() {
    const auto& fields = world.redis.data["rl:1:strict:{0}"];
    const auto found = fields.find("strict:u");
    if (found == fields.end()) return terms_.burst;
    int64_t level = 0;
    uint64_t t_us = 0;
    std::istringstream(found->second) >> level >> t_us;
    const uint64_t passed_us = 1'700'000'000'000'000 + world.events.now_ns / 1000 - t_us;
    level += static_cast<int64_t>(passed_us * terms_.limit);
    return level < 0 ? 0 : std::min(terms_.burst, static_cast<uint64_t>(level) / terms_.unit_us);
  }
  uint64_t over() const { return shadow_.over_tokens(); }
  double used_percent() const {
    return 100 * static_cast<double>(admitted) / static_cast<double>(perfect_admitted);
  }

  World world;
  uint64_t admitted = 0;
  uint64_t perfect_admitted = 0;

 private:
  void Ask(size_t at, uint64_t cost, uint64_t until_ns) {
    if (hosts_[at]->Check(cost)) {
      admitted += cost;
      shadow_.Force(cost, world.events.now_ns);
    } else {
      LookAgain(at, cost, until_ns);
    }
  }
  // As client/wait.cc.
  void LookAgain(size_t at, uint64_t cost, uint64_t until_ns) {
    if (world.events.now_ns + kLookNs > until_ns) return;
    world.events.At(world.events.now_ns + kLookNs, [this, at, cost, until_ns] {
      if (hosts_[at]->HoldsEnough(cost)) return Ask(at, cost, until_ns);
      LookAgain(at, cost, until_ns);
    });
  }

  Terms terms_;
  config::CompiledRule rule_;
  accuracy::Bucket shadow_;
  accuracy::Bucket perfect_;
  std::vector<std::unique_ptr<KeeperHost>> hosts_;
};

}  // namespace sluice::lease
