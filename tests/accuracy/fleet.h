// Hosts that share the limits of some keys, in virtual time: the daemon's state machines and Lua
// scripts as they are, a network that loses and delays, clocks that differ, a Redis that stands
// still, is slow, or is another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/accuracy/judge.h"
#include "tests/accuracy/member.h"
#include "tests/accuracy/network.h"
#include "tests/accuracy/scenario.h"
#include "tests/support/lua_redis.h"

namespace sluice::accuracy {

inline constexpr uint64_t kBinNs = 50 * kMilliNs;

// Tokens in one kBinNs.
struct Bin {
  uint64_t asked = 0;
  uint64_t admitted = 0;
  uint64_t perfect = 0;
};

struct Result {
  double over_1s_percent = 0;  // of the worst key
  double over_10s_percent = 0;
  uint64_t over_tokens = 0;  // in a window of any length
  double used_percent = 0;   // of what perfect buckets admit
  double calls_per_s_host = 0;
  uint64_t admitted = 0;
  uint64_t executed = 0;        // calls that Redis ran
  uint64_t set_forward_ns = 0;  // of Redis' clock, in all
  std::vector<Bin> bins;        // of all keys
  std::string fault;            // what is wrong with the run itself; empty: nothing
};

class Fleet : private Wire {
 public:
  // `script`: of the scheme, as it is or as a test has it.
  Fleet(const Scenario& scenario, Scheme scheme, uint64_t seed, std::string script);
  Result Run();

 private:
  struct Host {
    double clock_rate = 1;
    uint64_t clock_offset_ns = 0;
    uint32_t incarnation = 0;
    double late = 0;                // of Scenario::late_ns
    bool dead = false;              // the whole host: nobody asks
    uint64_t wake_ns = UINT64_MAX;  // true time
    std::unique_ptr<Member> member;
  };
  enum class Kind : uint8_t {
    kWake,
    kRequest,
    kRun,
    kReply,
    kCrash,
    kReturn,
    kCopy,
    kFailover,
    kJump
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
  struct Waiter {
    uint32_t key;
    uint64_t cost;
  };

  bool IsJudged() const { return now_ns_ >= scenario_.warm_ns; }
  uint64_t LocalNs(const Host& host) const;
  uint64_t TrueNs(const Host& host, uint64_t local_ns) const;
  void Push(uint64_t at_ns, Kind kind, uint32_t host, std::unique_ptr<Message> message = nullptr);
  void Happen(Event& event);
  void HappenUntil(uint64_t at_ns);
  void Boot(uint32_t index);
  void Arrive(const Arrival& arrival);
  void Admit(uint32_t key, uint64_t cost);
  void Poll(uint32_t index);
  void Send(uint32_t host, const Message& message) override;
  void Receive(uint32_t index, const Message& message);
  void Transmit(Kind kind, Way way, uint32_t host, std::unique_ptr<Message> message);
  void Execute(uint32_t index, std::unique_ptr<Message> message);
  void StartFull();
  uint64_t RedisBackNs(const Host& host) const;
  void FailOver();
  void Crash();
  void JumpClock();
  redis::Reply Eval(std::vector<std::string>* args);
  // The last one for callers that still wait when the run is over.
  Bin& BinNow() {
    return result_.bins[std::min<uint64_t>(now_ns_ / kBinNs, result_.bins.size() - 1)];
  }
  Result Sum();

  const Scenario scenario_;
  const Scheme scheme_;
  const Backend backend_;
  simulation::Random random_;
  Network network_;
  lease::Terms terms_;
  test::LuaRedis redis_;
  test::LuaRedis::Data copy_;
  uint64_t down_until_ns_ = 0;
  uint64_t busy_until_ns_ = 0;  // Redis, with calls that came before
  int64_t jumped_us_ = 0;       // its clock
  uint64_t primary_ = 1;
  uint64_t now_ns_ = 0;
  uint64_t order_ = 0;
  std::vector<Host> hosts_;
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  std::unordered_map<uint64_t, Waiter> waiting_;  // by ticket
  uint64_t tickets_ = 0;
  uint64_t sent_ = 0;
  std::vector<Judge> judges_;  // by key
  Result result_;
};

}  // namespace sluice::accuracy
