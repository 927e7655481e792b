// How often a keeper calls a shard that many buckets share.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/lease/keeper_fleet.h"

namespace sluice::lease {
namespace {

constexpr uint32_t kBuckets = 40;
constexpr uint64_t kFirstFp = 0x5eed;

// A host that is asked for every bucket in each millisecond and has nothing; its calls are answered
// in the next.
class BusyHost : public Link {
 public:
  BusyHost()
      : keeper_({.shard_count = 1, .sync_ns = kSyncNs}, &buckets_.buckets(), this,
                [] { return 0.5; }) {
    if (!buckets_.Create(64).ok()) abort();
    rule_.label = "strict";
    rule_.kind = shm::Kind::kLease;
    rule_.strict = true;
    rule_.limit = shm::MakeLimit(1000, kSecond, 1000);
  }

  void RunUntil(uint64_t end_ns) {
    for (; now_ns_ < end_ns; now_ns_ += kMilli) {
      if (!args_.empty()) Answer();
      for (uint32_t i = 0; i < kBuckets; ++i)
        keeper_.OnUse(Bucket(i), /*denied=*/1, /*need=*/1, /*alone=*/0, now_ns_);
      keeper_.Tick(now_ns_);
    }
  }
  const KeeperStats& stats() const { return keeper_.stats(); }

 private:
  uint32_t Bucket(uint32_t i) {
    if (i < ids_.size()) return ids_[i];
    shm::Slot& slot = buckets_.buckets().slots()[i];
    slot.key.store(shm::key::Make(kFirstFp + i, shm::Kind::kLease, 1));
    slot.word.store(shm::credits::Make(now_ns_, 0, 0));
    ids_.push_back(keeper_.OnBucket({i, slot.key.load()},
                                    {"strict:u" + std::to_string(i), 0, &rule_}, now_ns_));
    return ids_[i];
  }
  void Answer() {
    std::vector<std::string> args = std::exchange(args_, {});
    args[kPrimaryArg] = "1";
    redis_.time_us = 1'700'000'000'000'000 + now_ns_ / 1000;
    const redis::Reply reply = redis_.Eval(lua::kLease, "rl:1:strict:{0}", args);
    ASSERT_TRUE(keeper_.OnReply(0, seq_, reply, now_ns_).ok());
  }

  bool MayLend(uint32_t, uint64_t) override { return true; }
  uint32_t ShownShard(const config::CompiledRule&, const std::string&, uint32_t shard) override {
    return shard;
  }
  uint64_t HostsSeen() override { return 0; }
  void OnHosts(uint64_t) override {}
  void OnForgotten(const harvest::Place&) override {}
  void Lend(uint32_t, const std::vector<std::string>& args, uint64_t seq) override {
    args_ = args;
    seq_ = seq;
  }

  uint64_t now_ns_ = kSecond;
  config::CompiledRule rule_;
  shm::BucketsOwner buckets_;
  test::LuaRedis redis_{1};
  Keeper keeper_;
  std::vector<uint32_t> ids_;
  std::vector<std::string> args_;
  uint64_t seq_ = 0;
};

TEST(PaceTest, ManyBucketsOfAShardShareCalls) {
  BusyHost host;
  host.RunUntil(5 * kSecond);
  const uint64_t most = 4 * kSecond / kCallGapNs + kCallsAtOnce;
  EXPECT_LE(host.stats().calls, most);
  EXPECT_GE(host.stats().calls, most / 2) << "each bucket wants to be asked for all the time";
  EXPECT_GE(host.stats().asked_buckets, 4 * host.stats().calls);
}

}  // namespace
}  // namespace sluice::lease
