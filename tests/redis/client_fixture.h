#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "daemon/redis/cluster_client.h"
#include "daemon/redis/codec.h"
#include "daemon/redis/slot.h"
#include "daemon/ring/ring.h"
#include "tests/support/redis_process.h"

namespace sluice::redis {

// Scripts of the tests, by position; within the rights that ship.
inline constexpr ScriptId kEcho = 0;   // answers its first argument
inline constexpr ScriptId kCount = 1;  // adds one to the shard's field n, answers the sum
inline constexpr ScriptId kBoom = 2;   // an error after a write
inline constexpr ScriptId kProbe = 3;  // reads

inline std::vector<Script> TestScripts() {
  return {{"echo", "return ARGV[1]"},
          {"count",
           "local n = (redis.call('HGET', KEYS[1], 'n') or 0) + 1 "
           "redis.call('HSET', KEYS[1], 'n', n) return n"},
          {"boom", "redis.call('HSET', KEYS[1], 'half', 1) error('boom')"},
          {"probe", "return redis.call('EXISTS', KEYS[1])"}};
}

inline int64_t SteadyNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Keeps what the client tells.
class Recorder : public Listener {
 public:
  struct Outcome {
    int times = 0;
    bool ok = false;
    Reply reply;
    Failure failure;
    PrimaryIndex primary = kNoPrimary;
  };

  void OnReply(uint32_t, uint64_t token, const Reply& reply, PrimaryIndex primary) override {
    EXPECT_FALSE(inside_call);
    Outcome& outcome = calls[token];
    ++outcome.times;
    outcome.ok = true;
    outcome.reply = reply;
    outcome.primary = primary;
    if (on_outcome) on_outcome(token);
  }
  void OnFailure(uint32_t, uint64_t token, const Failure& failure, PrimaryIndex primary) override {
    EXPECT_FALSE(inside_call);
    EXPECT_FALSE(failure.message.empty());
    Outcome& outcome = calls[token];
    ++outcome.times;
    outcome.failure = failure;
    outcome.primary = primary;
    if (on_outcome) on_outcome(token);
  }
  void OnPong(PrimaryIndex primary, uint64_t token, const Failure* failure) override {
    EXPECT_FALSE(inside_call);
    Outcome& outcome = pongs[token];
    ++outcome.times;
    outcome.ok = failure == nullptr;
    if (failure != nullptr) outcome.failure = *failure;
    outcome.primary = primary;
  }
  void OnTopology() override {
    EXPECT_FALSE(inside_call);
    ++topologies;
  }
  void OnAlarm(const Alarm& alarm) override {
    EXPECT_FALSE(inside_call);
    alarms.push_back(alarm);
  }

  int Raised(AlarmKind kind) const { return CountAlarms(kind, true); }
  int Cleared(AlarmKind kind) const { return CountAlarms(kind, false); }
  const Alarm* Last(AlarmKind kind) const {
    const Alarm* last = nullptr;
    for (const Alarm& alarm : alarms) {
      if (alarm.kind == kind && alarm.raised) last = &alarm;
    }
    return last;
  }

  std::map<uint64_t, Outcome> calls, pongs;
  std::vector<Alarm> alarms;
  int topologies = 0;
  bool inside_call = false;
  std::function<void(uint64_t)> on_outcome;

 private:
  int CountAlarms(AlarmKind kind, bool raised) const {
    int count = 0;
    for (const Alarm& alarm : alarms) count += alarm.kind == kind && alarm.raised == raised;
    return count;
  }
};

// A client with its ring, run by hand.
class ClientFixture : public testing::TestWithParam<ring::RingChoice> {
 protected:
  void SetUp() override {
    absl::StatusOr<ring::OpenedRing> opened = ring::OpenRing(GetParam());
    ASSERT_TRUE(opened.ok()) << opened.status();
    ring_ = std::move(opened->ring);
  }

  ClientOptions Options(std::vector<std::string> seeds, Mode mode) {
    ClientOptions options;
    options.seeds = std::move(seeds);
    options.mode = mode;
    options.user = test::kUser;
    options.password = test::kPassword;
    options.scripts = TestScripts();
    options.shards = 12;
    return options;
  }

  void Create(ClientOptions options) {
    ClusterClient::Environment environment;
    environment.ring = ring_.get();
    environment.listener = &recorder_;
    environment.now_ns = SteadyNs;
    environment.random = [this] { return random_(); };
    absl::StatusOr<std::unique_ptr<ClusterClient>> client =
        ClusterClient::Create(std::move(options), std::move(environment));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  // Runs ring and client until `done`; whether it came true within a minute.
  bool Turn(const std::function<bool()>& done) {
    const int64_t end = SteadyNs() + 60'000'000'000;
    while (!done()) {
      const int64_t now = SteadyNs();
      if (now >= end) return false;
      const int64_t wait = std::min<int64_t>(client_->NextDeadlineNs() - now, 20'000'000);
      if (!ring_->Wait(std::max<int64_t>(wait, 0)).ok()) return false;
      client_->Poll();
    }
    return true;
  }

  bool BecomesReady() {
    return Turn([&] { return client_->Ready(); });
  }

  uint64_t Call(uint32_t shard, ScriptId script, const std::string& argument = "x") {
    std::string args;
    AppendBulk(&args, argument);
    const uint64_t token = ++last_token_;
    recorder_.inside_call = true;
    client_->Call(shard, script, args, 1, token);
    recorder_.inside_call = false;
    return token;
  }

  uint64_t Ping(PrimaryIndex primary) {
    const uint64_t token = ++last_token_;
    recorder_.inside_call = true;
    client_->Ping(primary, token);
    recorder_.inside_call = false;
    return token;
  }

  const Recorder::Outcome& Finish(uint64_t token) {
    EXPECT_TRUE(Turn([&] { return recorder_.calls[token].times > 0; })) << "call " << token;
    return recorder_.calls[token];
  }
  // 2000 at once, over twelve shards, each with its own reply.
  void ExpectManyCallsEachAnsweredOnce() {
    std::vector<uint64_t> tokens;
    for (int i = 0; i < 2000; ++i) {
      tokens.push_back(Call(static_cast<uint32_t>(i % 12), kEcho, "value " + std::to_string(i)));
    }
    ASSERT_TRUE(Turn([&] { return client_->outstanding() == 0; }));
    for (int i = 0; i < 2000; ++i) {
      const Recorder::Outcome& outcome = recorder_.calls[tokens[static_cast<size_t>(i)]];
      ASSERT_EQ(1, outcome.times);
      ASSERT_EQ("value " + std::to_string(i), outcome.reply.text) << outcome.failure.message;
    }
  }
  const Recorder::Outcome& FinishPing(uint64_t token) {
    EXPECT_TRUE(Turn([&] { return recorder_.pongs[token].times > 0; })) << "ping " << token;
    return recorder_.pongs[token];
  }

  std::mt19937_64 random_{42};
  Recorder recorder_;
  std::unique_ptr<ring::Ring> ring_;
  std::unique_ptr<ClusterClient> client_;
  uint64_t last_token_ = 0;
};

inline std::string BackEndName(const testing::TestParamInfo<ring::RingChoice>& which) {
  return which.param == ring::RingChoice::kUring ? "IoUring" : "Epoll";
}

}  // namespace sluice::redis
