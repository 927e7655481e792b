// Hosts that lend tokens of one bucket, in virtual time: the daemon's state machine and
// lua/lease.lua as they are, a network that loses and delays, clocks that differ.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/lease/lease.h"
#include "daemon/lease/session.h"
#include "tests/accuracy/meter.h"
#include "tests/accuracy/scenario.h"
#include "tests/support/lua_redis.h"

namespace sluice::accuracy {

struct Result {
  double over_1s_percent = 0;
  double over_10s_percent = 0;
  uint64_t over_tokens = 0;  // in a window of any length
  double used_percent = 0;   // of what one perfect bucket admits
  double calls_per_s_host = 0;
  uint64_t admitted = 0;
  uint64_t executed = 0;  // calls that Redis ran
  std::string fault;      // what is wrong with the run itself; empty: nothing
};

class Fleet {
 public:
  Fleet(const Scenario& scenario, uint64_t seed, std::string script);
  Result Run();

 private:
  struct Host {
    double clock_rate = 1;
    uint64_t clock_offset_ns = 0;
    uint32_t incarnation = 0;
    bool dead = false;
    uint64_t wake_ns = UINT64_MAX;  // true time
    std::optional<lease::Lease> lease;
    std::optional<lease::Session> session;
  };
  enum class Kind : uint8_t { kWake, kRequest, kReply, kCrash, kReturn, kCopy, kFailover };
  struct Message {
    uint32_t incarnation;
    uint64_t seq;
    std::shared_ptr<std::vector<std::string>> args;
    redis::Reply reply;
  };
  struct Event {
    uint64_t at_ns;
    uint64_t order;  // equal times in the order in which they were made
    Kind kind;
    uint32_t host;
    std::unique_ptr<Message> message;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at_ns != b.at_ns ? a.at_ns > b.at_ns : a.order > b.order;
    }
  };

  uint64_t LocalNs(const Host& host) const;
  uint64_t TrueNs(const Host& host, uint64_t local_ns) const;
  void Push(uint64_t at_ns, Kind kind, uint32_t host, std::unique_ptr<Message> message = nullptr);
  void Happen(Event& event);
  void Boot(Host& host);
  void Arrive(const Arrival& arrival);
  void Admit(uint64_t cost);
  void Poll(uint32_t index);
  void Send(uint32_t index);
  void Transmit(Kind kind, uint32_t host, std::unique_ptr<Message> message);
  void Execute(uint32_t index, Message& message);
  void Receive(uint32_t index, const Message& message);
  void StartFull();
  uint64_t RedisBackNs() const;
  void FailOver();
  redis::Reply Eval(std::vector<std::string>* args);

  const Scenario scenario_;
  const std::string script_;
  simulation::Random random_;
  lease::Terms terms_;
  test::LuaRedis redis_;
  test::LuaRedis::Data copy_;
  uint64_t down_until_ns_ = 0;
  uint64_t primary_ = 1;
  uint64_t now_ns_ = 0;
  uint64_t order_ = 0;
  std::vector<Host> hosts_;
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  std::unordered_map<uint64_t, uint64_t> waiting_;  // cost by ticket
  uint64_t tickets_ = 0;
  uint64_t sent_ = 0;
  Bucket perfect_;
  Bucket shadow_;
  Window second_{kSecondNs};
  Window ten_seconds_{10 * kSecondNs};
  uint64_t perfect_admitted_ = 0;
  Result result_;
};

}  // namespace sluice::accuracy
