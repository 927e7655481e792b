// Places of requests in flight over all hosts, in virtual time: the daemons' keepers and
// lua/places.lua as they are, clients that take entries of real rows, a network that loses, delays
// and repeats, clocks that differ, daemons that start again, failovers that lose writes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "daemon/lease/place_keeper.h"
#include "lua_scripts.h"
#include "shm/place_slot.h"
#include "tests/lease/keeper_fleet.h"

namespace sluice::lease {
namespace {

namespace places = shm::places;
using Table = shm::SlotTable<std::atomic<uint64_t>>;

constexpr char kHashName[] = "rl:1:places:{0}";
constexpr uint64_t kHash = 0x5eed'5eed'5eed'5eed;
constexpr shm::LogShape kRows = {.rows = 8, .entries = 64};

// The script as it is, or as the seeded bugs of test_mutants.py have it.
const std::string& Script() {
  static const std::string text = [] {
    const char* const file = getenv("PLACES_SCRIPT");
    if (file == nullptr) return std::string(lua::kPlaces);
    std::ifstream in(file);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  return text;
}

struct HostClock {
  static inline uint64_t now_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

struct Place {
  uint32_t slot;
  uint64_t entry;
  uint32_t first;
  uint32_t count;
};

class PlaceHost : public PlaceLink {
 public:
  PlaceHost(World* world, const config::CompiledRule* rule, uint64_t number)
      : world_(world),
        rule_(rule),
        number_(number),
        rate_(1 + 500e-6 * (2 * world->Unit() - 1)),
        offset_ns_(world->Below(1'000 * kSecond)) {
    if (!buckets_.Create(64, kRows).ok()) abort();
    Boot();
  }

  // The next daemon over the same memory.
  void Boot() {
    ++incarnation_;
    keeper_ = std::make_unique<PlaceKeeper>(
        PlaceKeeper::Options{.shard_count = 1,
                             .instance = absl::StrFormat("%016x%016x", number_, incarnation_)},
        &buckets_.buckets(), this);
    keeper_->TakeOver();
    known_key_ = 0;
    is_dirty_ = true;
    is_dead_ = false;
  }
  // Clients go on with what stands there.
  void Kill() { is_dead_ = true; }
  void Forget() { buckets_.buckets().second()[0].store(0); }

  bool Enter(uint32_t cost) {
    const shm::MappedBuckets& b = buckets_.buckets();
    HostClock::now_ns = LocalNs();
    Table table =
        Table::OfPlaces(b.slots(), kRows, b.counters(), b.log_entries(), rule_->limit.limit);
    bool claimed = false;
    const uint32_t index = table.FindOrClaim(kHash, shm::Kind::kInFlight, 0,
                                             {LocalNs(), kMilli, 2 * places::kPinNs}, &claimed);
    if (index == shm::kNoSlot) abort();
    slot_ = index;
    shm::RequestTime<HostClock> time(false, 0);
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = rule_->limit.tau_ns,
                             .debt_max_ns = rule_->limit.debt_max_ns,
                             .tokens = cost,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = shm::Kind::kInFlight,
                             .limit = &rule_->limit};
    shm::Seen seen;
    const shm::Outcome outcome = places::Enter(
        table, index, kHash, charge, places::Lent<std::atomic<uint64_t>>{&b.second()[index]},
        places::NameOf(1, ++nonce_), time, &seen);
    if (outcome != shm::Outcome::kAllowed) {
      denied_ += cost;
      return false;
    }
    entered_ += cost;
    in_.push_back({index, seen.verdict.new_ns, static_cast<uint32_t>(seen.cost_ns), cost});
    return true;
  }
  // One of those that are in leaves; its places.
  uint32_t Leave(size_t which) {
    const Place place = in_[which];
    in_.erase(in_.begin() + static_cast<std::ptrdiff_t>(which));
    const shm::logs::Row<std::atomic<uint64_t>> row = {
        buckets_.buckets().log_entries() + uint64_t{place.slot} * kRows.entries, kRows.entries};
    EXPECT_EQ(places::Leave(row, place.entry, place.first, place.count), place.count);
    return place.count;
  }
  size_t requests() const { return in_.size(); }
  uint32_t in() const {
    uint32_t n = 0;
    for (const Place& place : in_) n += place.count;
    return n;
  }

  void Harvest() {
    if (is_dead_) return;
    const uint64_t now_ns = LocalNs();
    const uint64_t key = buckets_.buckets().slots()[slot_].key.load();
    if (shm::key::Fp(key) == shm::FingerprintOf(kHash) &&
        (entered_ != 0 || denied_ != 0 || is_dirty_)) {
      if (key != known_key_) {
        known_key_ = key;
        keeper_->OnBucket({slot_, key}, {rule_->label + ":u", 0, rule_, {}}, now_ns);
      }
      keeper_->OnUse(rule_->label + ":u", static_cast<int64_t>(entered_), denied_, denied_, now_ns);
      entered_ = denied_ = 0;
      is_dirty_ = false;
    }
    keeper_->Tick(now_ns);
  }
  PlaceKeeper& keeper() { return *keeper_; }
  uint64_t LocalNs() const {
    return offset_ns_ + static_cast<uint64_t>(static_cast<double>(world_->events.now_ns) * rate_);
  }
  double copies = 0;  // of calls, that are run once more up to 3 s later

 private:
  bool MayLend(uint32_t, uint64_t) override { return true; }
  void OnForgotten(const harvest::Place&) override { known_key_ = 0; }
  void AskPlaces(uint32_t, const std::vector<std::string>& args, uint64_t seq) override {
    const auto run = [this, args, seq, life = incarnation_] { Execute(args, seq, life); };
    if (world_->Chance(copies)) {
      world_->events.At(world_->events.now_ns + world_->Below(3 * kSecond), run);
    }
    Carry(run);
  }
  void Carry(std::function<void()> run) {
    world_->Carry(/*far_ns=*/0, /*late_ns=*/400 * kMilli, std::move(run));
  }
  void Execute(std::vector<std::string> args, uint64_t seq, uint64_t life) {
    if (world_->events.now_ns < world_->redis_back_ns) {
      return world_->events.At(world_->redis_back_ns,
                               [this, args, seq, life] { Execute(args, seq, life); });
    }
    world_->redis.time_us = 1'700'000'000'000'000 + world_->events.now_ns / 1000;
    args.insert(args.begin() + kPlacePrimaryArg, std::to_string(world_->primary));
    const redis::Reply reply = world_->redis.Eval(Script(), kHashName, args);
    if (reply.is_error()) {
      ADD_FAILURE() << reply.text;
      abort();
    }
    Carry([this, seq, life, reply] {
      if (life != incarnation_ || is_dead_) return;
      if (reply.elements[0].integer == 0) return;  // of a copy that nobody waits for
      EXPECT_TRUE(keeper_->OnReply(0, seq, reply, LocalNs()).ok());
    });
  }

  World* const world_;
  const config::CompiledRule* const rule_;
  const uint64_t number_;
  const double rate_;
  const uint64_t offset_ns_;
  uint64_t incarnation_ = 0;
  uint32_t slot_ = 0;
  shm::BucketsOwner buckets_;
  std::unique_ptr<PlaceKeeper> keeper_;
  std::vector<Place> in_;
  uint64_t known_key_ = 0;
  uint64_t entered_ = 0;
  uint64_t denied_ = 0;
  uint64_t nonce_ = 0;
  bool is_dirty_ = false;
  bool is_dead_ = false;
};

class PlaceFleet {
 public:
  PlaceFleet(size_t hosts, uint32_t limit, uint64_t seed) : world(seed) {
    rule_.label = "exports";
    rule_.kind = shm::Kind::kInFlight;
    rule_.strict = true;
    rule_.limit = places::MakeLimit(limit);
    for (size_t i = 0; i < hosts; ++i) {
      hosts_.push_back(std::make_unique<PlaceHost>(&world, &rule_, 0xab00 + i));
    }
    (void)host(0).Enter(1);  // the fence of a hash that is new
    Run(kPlacesFenceNs + kSecond, 0, 0);
  }

  // `per_s` requests of all hosts, each in for `stay_ns` in the mean.
  void Run(
      uint64_t ns, double per_s, uint64_t stay_ns, const std::function<size_t()>& pick = nullptr,
      const std::function<uint32_t()>& cost = [] { return 1u; }) {
    world.events.RunUntil(
        world.events.now_ns + ns, [&] { return world.NextArrivalNs(per_s); },
        [&] { Arrive(pick ? pick() : world.Below(hosts_.size()), cost(), stay_ns); },
        [this] {
          for (auto& host : hosts_) host->Harvest();
        });
  }
  void FailOver(const test::LuaRedis::Data& copy) {
    world.redis.data = copy;
    ++world.primary;
  }
  // All daemons start again with it.
  void SetLimit(uint32_t limit) {
    rule_.limit = places::MakeLimit(limit);
    for (auto& host : hosts_) {
      host->Kill();
      host->Boot();
    }
  }
  PlaceHost& host(size_t i) { return *hosts_[i]; }
  uint32_t In() const {
    uint32_t in = 0;
    for (const auto& host : hosts_) in += host->in();
    return in;
  }
  uint32_t limit() const { return static_cast<uint32_t>(rule_.limit.limit); }

  World world;
  uint64_t asked = 0;
  uint64_t entered = 0;
  uint32_t most = 0;

 private:
  void Arrive(size_t at, uint32_t cost, uint64_t stay_ns) {
    ++asked;
    if (!hosts_[at]->Enter(cost)) return;
    ++entered;
    most = std::max(most, In());
    if (stay_ns == UINT64_MAX) return;
    world.events.At(world.NextNs(static_cast<double>(stay_ns)), [this, at] {
      if (hosts_[at]->requests() != 0) hosts_[at]->Leave(world.Below(hosts_[at]->requests()));
    });
  }

  config::CompiledRule rule_;
  std::vector<std::unique_ptr<PlaceHost>> hosts_;
};

TEST(PlaceFleetTest, OneHostMayHaveThemAllAndThenAnother) {
  PlaceFleet fleet(3, 20, 1);
  fleet.Run(10 * kSecond, 50, UINT64_MAX, [] { return 0; });
  EXPECT_EQ(fleet.host(0).in(), 20u);
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.In(), 20u) << "nobody is thrown out, nobody is let in";
  while (fleet.host(0).requests() != 0) fleet.host(0).Leave(0);
  fleet.Run(3 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.host(1).in(), 20u) << "what one host does not use comes to another";
}

// Whenever the other began to ask: for long, or just then. Who was denied himself of late keeps it.
TEST(PlaceFleetTest, WhatIsLeftOnOneHostIsHadOnAnotherThatAsksWithinASecond) {
  uint64_t worst_ns = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    PlaceFleet fleet(3, 20, seed);
    fleet.Run(4 * kSecond, 50, UINT64_MAX, [] { return 0; });
    ASSERT_EQ(fleet.host(0).in(), 20u);
    fleet.Run(kPlacesNeedNs, 0, 0);
    fleet.Run(fleet.world.Below(3 * kSecond), 20, UINT64_MAX, [] { return 1; });
    ASSERT_EQ(fleet.host(1).in(), 0u);
    fleet.host(0).Leave(0);
    const uint64_t left_ns = fleet.world.events.now_ns;
    while (fleet.host(1).in() == 0 && fleet.world.events.now_ns < left_ns + 5 * kSecond) {
      fleet.Run(10 * kMilli, 20, UINT64_MAX, [] { return 1; });
    }
    worst_ns = std::max(worst_ns, fleet.world.events.now_ns - left_ns);
  }
  std::printf("had after %.2f s at most\n", static_cast<double>(worst_ns) / 1e9);
  EXPECT_LT(worst_ns, kSecond);
}

TEST(PlaceFleetTest, AKeyThatHasBeenIdleIsLentWithinMilliseconds) {
  PlaceFleet fleet(3, 5, 2);
  fleet.Run(20 * kSecond, 0, 0);
  EXPECT_EQ(fleet.host(0).keeper().size(), 0u) << "it is forgotten, here and in Redis";
  EXPECT_EQ(fleet.world.redis.data[kHashName].count("exports:u"), 0u);
  EXPECT_FALSE(fleet.host(2).Enter(1)) << "nothing is lent to it yet";
  fleet.Run(20 * kMilli, 0, 0);
  EXPECT_TRUE(fleet.host(2).Enter(1));
  fleet.Run(60 * kSecond, 0, 0);
  EXPECT_EQ(fleet.host(2).in(), 1u) << "held for as long as it is";
}

TEST(PlaceFleetTest, AFreePlaceOfAHostThatIsCutOffIsNotUsedForLong) {
  PlaceFleet fleet(2, 4, 3);
  fleet.Run(2 * kSecond, 20, 10 * kMilli, [] { return 0; });
  fleet.world.loss = 1;
  fleet.Run(kPlacesGoodNs + 100 * kMilli, 0, 0);
  EXPECT_FALSE(fleet.host(0).Enter(1));
}

TEST(PlaceFleetTest, ADaemonThatStartsAgainTakesOverWhatIsHeldAndGivesBackWhatIsFree) {
  PlaceFleet fleet(2, 8, 5);
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 0; });
  while (fleet.host(0).requests() > 3) fleet.host(0).Leave(0);
  fleet.host(0).Kill();
  fleet.Run(kSecond, 0, 0);
  fleet.host(0).Boot();
  fleet.Run(2 * kSecond, 0, 0);
  fleet.Run(4 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.host(1).in(), 5u);
  EXPECT_EQ(fleet.most, 8u);
}

// A host that nobody hears of: what it holds is others' when the time is over that the script
// states, and not before.
TEST(PlaceFleetTest, PlacesOfAHostThatIsSilentAreOthersAfterAStatedTime) {
  PlaceFleet fleet(2, 4, 6);
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 0; });
  fleet.host(0).Kill();
  fleet.Run(kPlacesSilentNs - 2 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.host(1).in(), 0u);
  fleet.Run(4 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.host(1).in(), 4u);
}

// Nor does an outage of Redis make anybody silent, however long.
TEST(PlaceFleetTest, NobodyIsSilentWhileRedisIsAway) {
  PlaceFleet fleet(3, 4, 7);
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 0; });
  fleet.host(0).Kill();  // so that others are back before it
  fleet.world.redis_back_ns = fleet.world.events.now_ns + 2 * kPlacesSilentNs;
  fleet.Run(2 * kPlacesSilentNs + kSecond, 50, UINT64_MAX, [] { return 1; });
  fleet.host(0).Boot();
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 2; });
  EXPECT_EQ(fleet.In(), 4u);
}

// One that falls back in the same moment as writes are lost is heard before anything is lent.
TEST(PlaceFleetTest, AfterAFailoverThatLosesAllNothingIsLentUntilAllHaveReported) {
  PlaceFleet fleet(2, 4, 8);
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 0; });
  fleet.host(0).Kill();
  fleet.Run(100 * kMilli, 0, 0);  // its last call is through
  fleet.FailOver({});
  fleet.Run(3 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.In(), 4u);
  fleet.host(0).Boot();
  fleet.Run(5 * kSecond, 50, UINT64_MAX, [] { return 1; });
  EXPECT_EQ(fleet.In(), 4u);
}

TEST(PlaceFleetTest, ALowerLimitLetsNobodyInUntilFewerAreIn) {
  PlaceFleet fleet(2, 6, 9);
  fleet.Run(5 * kSecond, 50, UINT64_MAX);
  EXPECT_EQ(fleet.In(), 6u);
  fleet.SetLimit(3);
  fleet.Run(3 * kSecond, 50, UINT64_MAX);
  EXPECT_EQ(fleet.In(), 6u) << "nobody is thrown out";
  for (size_t i : {0, 1}) {
    while (fleet.host(i).requests() > 1) fleet.host(i).Leave(0);
  }
  fleet.Run(5 * kSecond, 50, UINT64_MAX);
  EXPECT_EQ(fleet.In(), 3u);
}

TEST(PlaceFleetTest, CostsLargerThanAPartAreServed) {
  PlaceFleet fleet(2, 6, 4);
  fleet.Run(20 * kSecond, 20, 50 * kMilli, nullptr, [] { return 5u; });
  EXPECT_LE(fleet.most, 6u);
  EXPECT_GT(fleet.entered, 50u);
}

TEST(PlaceFleetTest, AllOfTheLimitIsUsedWhereMoreIsAskedFor) {
  for (const uint64_t hosts : {1, 3, 10}) {
    PlaceFleet fleet(hosts, 30, hosts);
    fleet.Run(5 * kSecond, 300, 200 * kMilli);
    const uint64_t before = fleet.entered;
    fleet.Run(20 * kSecond, 300, 200 * kMilli);
    const double used = static_cast<double>(fleet.entered - before) * 0.2 / 20;
    std::printf("%zu hosts: %.1f of 30 in the mean, %u at most\n", static_cast<size_t>(hosts), used,
                fleet.most);
    EXPECT_LE(fleet.most, 30u);
    EXPECT_GT(used, 15);
  }
}

// Never over: whatever is lost, comes late or twice, whoever starts again, and whatever a failover
// loses of the last second, or all of it.
TEST(PlaceFleetTest, NoMoreThanTheLimitAreEverIn) {
  const char* const seeds = getenv("PLACES_SEEDS");
  const uint64_t last = seeds == nullptr ? 40 : strtoull(seeds, nullptr, 10);
  uint64_t entered = 0;
  for (uint64_t seed = 1; seed <= last; ++seed) {
    PlaceFleet fleet(2 + seed % 5, 3 + seed % 17, seed);
    fleet.world.loss = 0.02 * static_cast<double>(seed % 8);
    for (size_t i = 0; i < 2 + seed % 5; ++i) fleet.host(i).copies = 0.05;
    test::LuaRedis::Data copy = fleet.world.redis.data;
    const size_t hosts = 2 + seed % 5;
    for (int step = 0; step < 60; ++step) {
      const uint64_t stay_ns = (20 + fleet.world.Below(2000)) * kMilli;
      const bool is_skewed = fleet.world.Chance(0.3);
      const size_t favoured = fleet.world.Below(hosts);
      fleet.Run((100 + fleet.world.Below(900)) * kMilli, 20 + 100 * fleet.world.Unit(), stay_ns,
                [&fleet, is_skewed, favoured, hosts] {
                  return is_skewed ? favoured : fleet.world.Below(hosts);
                },
                [&fleet] { return fleet.world.Chance(0.1) ? 2u : 1u; });
      PlaceHost& some = fleet.host(fleet.world.Below(hosts));
      switch (fleet.world.Below(12)) {
        case 0:  // its clients die
          while (some.requests() != 0) some.Leave(0);
          break;
        case 1:
        case 2:
          some.Kill();
          fleet.Run(fleet.world.Below(3000) * kMilli, 50, stay_ns);
          some.Boot();
          break;
        case 3:
          fleet.FailOver(copy);
          break;
        case 4:
          fleet.FailOver({});
          break;
        case 5:
          fleet.world.redis_back_ns = fleet.world.events.now_ns + fleet.world.Below(40) * kSecond;
          break;
        default:
          break;
      }
      copy = fleet.world.redis.data;
    }
    EXPECT_LE(fleet.most, fleet.limit()) << "seed " << seed;
    EXPECT_GT(fleet.entered, 0u) << "seed " << seed;
    entered += fleet.entered;
    if (testing::Test::HasFailure()) return;
  }
  std::printf("%zu entered\n", static_cast<size_t>(entered));
  EXPECT_GT(entered, 50 * last) << "for all that, somebody is";
}

}  // namespace
}  // namespace sluice::lease
