// Hosts in several regions that spend one strict bucket whose home moves, in virtual time: keepers,
// homes and both scripts as they are, a network with latency between regions that loses and delays,
// clocks that differ, failovers that lose writes.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/config/parse.h"
#include "daemon/lease/homes.h"
#include "tests/lease/keeper_fleet.h"

namespace sluice::lease {

inline constexpr uint32_t kRegions = 3;
inline constexpr uint64_t kFarNs = 40 * kMilli;  // one way, to another region

// The script of that name, or what the environment has in its place.
inline std::string ScriptOr(const char* variable, const char* text) {
  const char* const file = getenv(variable);
  if (file == nullptr) return text;
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The rules of one configuration: the bucket is at home in region `home`.
inline std::shared_ptr<const config::CompiledRules> RulesWithHome(uint64_t limit_per_s,
                                                                  uint64_t burst, uint32_t home,
                                                                  uint64_t epoch) {
  std::string yaml = "redis: {region: r0, regions: {";
  for (uint32_t r = 0; r < kRegions; ++r) {
    yaml += (r == 0 ? "r" : ", r") + std::to_string(r) +
            ": {addresses: \"h:" + std::to_string(r + 1) + "\"}";
  }
  yaml += "}}\nrules: [{name: strict, key: [tenant], limit: " + std::to_string(limit_per_s) +
          "/s, burst: " + std::to_string(burst) +
          ", consistency: {mode: strict, epoch: " + std::to_string(epoch) +
          ", home: {tenant: {u: r" + std::to_string(home) + "}, default: r0}}}]\n";
  const config::ParseResult parsed = config::ParseConfig(yaml, "t.yaml");
  if (!parsed.ok()) abort();
  const auto bytes = config::Compile(parsed.config, shm::HashKey{}, 1);
  auto rules = config::CompiledRules::Load(*bytes);
  rules->AddRegions(parsed.config);
  return std::make_shared<const config::CompiledRules>(*std::move(rules));
}

struct RegionWorld : VirtualWorld {
  explicit RegionWorld(uint64_t seed) : VirtualWorld(seed) {
    for (uint32_t r = 0; r < kRegions; ++r) {
      regions.push_back(std::make_unique<Region>(seed * kRegions + r));
    }
  }

  struct Region {
    explicit Region(uint64_t seed) : redis(seed) {}
    test::LuaRedis redis;
    uint64_t primary = 1;
    uint64_t back_ns = 0;  // cut off from all until then
  };
  std::vector<std::unique_ptr<Region>> regions;
  const std::string lease = ScriptOr("LEASE_SCRIPT", lua::kLease);
  const std::string home = ScriptOr("HOME_SCRIPT", lua::kHome);
};

class RegionHost : public Link, public HomesLink {
 public:
  using Rules = std::shared_ptr<const config::CompiledRules>;

  RegionHost(RegionWorld* world, uint32_t region, Rules rules)
      : world_(world),
        region_(region),
        rate_(1 + 500e-6 * (2 * world->Unit() - 1)),
        offset_ns_(world->Below(1'000 * kSecond)) {
    if (!buckets_.Create(64).ok()) abort();
    Boot(std::move(rules));
  }
  ~RegionHost() override = default;

  // A daemon of another start over the same memory.
  void Boot(Rules rules) {
    ++life_;
    keeper_ =
        std::make_unique<Keeper>(Keeper::Options{.shard_count = kRegions,
                                                 .instance = {world_->random(), world_->random()},
                                                 .sync_ns = kSyncNs},
                                 &buckets_.buckets(), this, [this] { return world_->Unit(); });
    homes_ = std::make_unique<Homes>(kRegions, 1, this);
    id_.reset();
    Reload(std::move(rules));
  }
  void Reload(Rules rules) {
    keeper_->SetRules(*rules, LocalNs());
    homes_->SetRules(*rules);
    rules_ = std::move(rules);
    known_key_ = 0;
  }

  bool Check() {
    shm::Slot& slot = Claimed();
    uint64_t w = slot.word.load();
    if (shm::credits::Spendable(w, LocalNs()) >= 1) {
      slot.word.store(w - 1);
      used_ = true;
      return true;
    }
    ++denied_;
    return false;
  }

  void Harvest() {
    const uint64_t now_ns = LocalNs();
    const uint64_t key = buckets_.buckets().slots()[kSlot].key.load();
    if (used_ || denied_ != 0) {
      if (!id_.has_value() || key != known_key_) {
        known_key_ = key;
        const config::CompiledRule* const rule = rules_->Find("strict");
        id_ = keeper_->OnBucket({kSlot, key}, {"strict:u", 0, rule}, now_ns);
      }
      keeper_->OnUse(*id_, std::exchange(denied_, 0), 1, /*alone=*/0, now_ns);
      used_ = false;
    }
    keeper_->Tick(now_ns);
    homes_->Tick(now_ns);
  }

  const Homes& homes() const { return *homes_; }
  uint64_t LocalNs() const {
    return offset_ns_ + static_cast<uint64_t>(static_cast<double>(world_->events.now_ns) * rate_);
  }

 private:
  shm::Slot& Claimed() { return ClaimedAt(buckets_.buckets().slots()[kSlot], LocalNs()); }

  bool MayLend(uint32_t, uint64_t) override { return true; }
  uint32_t ShownShard(const config::CompiledRule&, const std::string&, uint32_t shard) override {
    return shard;
  }
  uint64_t HostsSeen() override { return 0; }
  void OnHosts(uint64_t) override {}
  void OnForgotten(const harvest::Place&) override { id_.reset(); }
  uint32_t HomeShard(const config::CompiledRule& rule, const std::string& text, uint32_t) override {
    return rule.home->RegionOf(text);
  }
  void OnAway(uint32_t shard, const config::CompiledRule& rule, Away why) override {
    homes_->OnAway(shard, rule.label, why);
  }

  void Lend(uint32_t shard, const std::vector<std::string>& args, uint64_t seq) override {
    Ask(shard, world_->lease, args, kPrimaryArg, /*replaces=*/true,
        [this, shard, seq](const redis::Reply& reply) {
          if (!keeper_->OnReply(shard, seq, reply, LocalNs()).ok()) abort();
        });
  }
  void Settle(uint32_t shard, const std::vector<std::string>& args, uint64_t round) override {
    Ask(shard, world_->home, args, kHomePrimaryArg, /*replaces=*/false,
        [this, shard, round](const redis::Reply& reply) {
          if (!homes_->OnReply(shard, round, reply).ok()) abort();
        });
  }

  void Ask(uint32_t to, const std::string& script, std::vector<std::string> args, size_t primary_at,
           bool replaces, std::function<void(const redis::Reply&)> answer) {
    const auto at = args.begin() + static_cast<std::ptrdiff_t>(primary_at);
    if (replaces) args.erase(at);
    Carry(to, [this, to, &script, args, primary_at, answer = std::move(answer), life = life_] {
      RegionWorld::Region& region = *world_->regions[to];
      if (world_->events.now_ns < region.back_ns) return;
      region.redis.time_us = 1'700'000'000'000'000 + world_->events.now_ns / 1000;
      std::vector<std::string> argv = args;
      argv.insert(argv.begin() + static_cast<std::ptrdiff_t>(primary_at),
                  std::to_string(region.primary));
      const redis::Reply reply = region.redis.Eval(script, "rl:1:strict:{0}", argv);
      if (reply.is_error()) abort();
      Carry(to, [this, answer, reply, life] {
        if (life == life_) answer(reply);
      });
    });
  }
  void Carry(uint32_t to, std::function<void()> run) {
    world_->Carry(to == region_ ? 0 : kFarNs, /*late_ns=*/kSecond, std::move(run));
  }

  static constexpr uint32_t kSlot = 5;

  RegionWorld* const world_;
  const uint32_t region_;
  const double rate_;
  const uint64_t offset_ns_;
  Rules rules_;
  uint32_t life_ = 0;
  shm::BucketsOwner buckets_;
  std::unique_ptr<Keeper> keeper_;
  std::unique_ptr<Homes> homes_;
  std::optional<uint32_t> id_;
  uint64_t known_key_ = 0;
  bool used_ = false;
  uint64_t denied_ = 0;
};

// One host in each region, under one rule, judged against one perfect bucket.
class RegionFleet {
 public:
  RegionFleet(uint64_t limit_per_s, uint64_t burst, uint64_t seed)
      : world(seed),
        limit_per_s_(limit_per_s),
        burst_(burst),
        shadow_(*MakeTerms(limit_per_s, 1'000'000, burst, 0)) {
    for (uint32_t r = 0; r < kRegions; ++r) {
      hosts_.push_back(std::make_unique<RegionHost>(&world, r, Rules(0, 0)));
    }
  }

  std::shared_ptr<const config::CompiledRules> Rules(uint32_t home, uint64_t epoch) const {
    return RulesWithHome(limit_per_s_, burst_, home, epoch);
  }
  RegionHost& host(size_t i) { return *hosts_[i]; }

  // `per_s`: checks of all hosts, Poisson.
  void Run(uint64_t ns, double per_s) {
    world.events.RunUntil(
        world.events.now_ns + ns, [&] { return world.NextArrivalNs(per_s); },
        [this] {
          if (!hosts_[world.Below(hosts_.size())]->Check()) return;
          ++admitted;
          shadow_.Force(1, world.events.now_ns);
        },
        [this] {
          for (auto& host : hosts_) host->Harvest();
        });
  }
  void At(uint64_t in_ns, std::function<void()> run) {
    world.events.At(world.events.now_ns + in_ns, std::move(run));
  }
  uint64_t over() const { return shadow_.over_tokens(); }

  RegionWorld world;
  uint64_t admitted = 0;

 private:
  const uint64_t limit_per_s_;
  const uint64_t burst_;
  accuracy::Bucket shadow_;
  std::vector<std::unique_ptr<RegionHost>> hosts_;
};

}  // namespace sluice::lease
