// One Redis node: its data, what it believes of the cluster, and the commands that a daemon sends,
// answered as Redis 7.0 does. The scripts are the real ones, run by the real Lua.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tests/simulation/lineage.h"
#include "tests/simulation/network.h"
#include "tests/support/lua_redis.h"

namespace sluice::simulation {

inline constexpr int kNobody = -1;

// Who owns what, as the whole cluster or one node of it believes. Of each shard's range of slots
// the one slot that holds the shard's hash may move by itself.
struct Config {
  uint64_t version = 1;
  std::vector<int> slot_owner;   // by shard: of the hash's slot
  std::vector<int> range_owner;  // by shard: of the other slots of its range
  std::vector<int> primary_of;   // by node; kNobody: it is a primary
};

// What is the same for all nodes of a run.
struct Shards {
  std::vector<std::string> keys;
  // What is lent, in the same slots: places of requests in flight, and tokens of strict rules.
  std::vector<std::string> places, strict;
  std::vector<uint32_t> slots;

  std::vector<std::string> AllOf(uint32_t shard) const {
    return {keys[shard], places[shard], strict[shard]};
  }
};

// A call of lua/places.lua, or of lua/lease.lua (`is_strict`).
struct Loan {
  uint32_t shard;
  bool is_strict;
  const std::vector<std::string>& argv;
  const redis::Reply& reply;
};

struct Copy {
  test::LuaRedis::Hash fields;
  uint64_t expires_us = 0;  // 0: never
  const Applied* head = nullptr;
};
using Data = std::map<std::string, Copy>;

class Node {
 public:
  struct Parts {
    Timeline* timeline;
    Network* network;
    Trace* trace;
    test::LuaRedis* lua;
    Lineage* lineage;
    const Shards* shards;
    std::string password;
    // A key changed: to be replicated. Null: it is gone.
    std::function<void(int node, const std::string& key)> on_write;
    // A script that lends was run.
    std::function<void(int node, const Loan& loan)> on_loan;
    std::function<void(const std::string& what)> on_violation;
  };
  Node(int index, const Parts& parts, Random random, Config config);

  // As the network sees it.
  Servers::Answer OnConnect(WireId wire);
  void OnRequest(WireId wire, std::string bytes);
  void OnHangUp(WireId wire);

  // What happens to it.
  void Kill(bool silent);
  void Restart(Data data, uint64_t loading_ns);
  void Pause() { paused_ = true; }
  void Resume();

  bool alive() const { return alive_; }
  bool paused() const { return paused_; }
  bool IsLoading() const { return parts_.timeline->now_ns() < loading_until_ns_; }
  bool IsPrimary() const { return config.primary_of[static_cast<size_t>(index_)] == kNobody; }
  uint64_t run_id() const { return run_id_; }  // another one after each start
  uint64_t TimeUs() const;
  std::string id() const;  // 40 hex digits

  Config config;  // as it believes
  Data data;
  bool cluster_down = false;
  std::map<uint32_t, int> migrating;  // shard: to
  std::map<uint32_t, int> importing;  // shard: from
  int64_t clock_offset_us = 0;
  uint64_t slow_ns = 0;  // most that a command takes
  std::string says_no;   // what every script call is answered with
  std::set<std::string> scripts;
  uint64_t calls = 0;    // of scripts
  bool bus_cut = false;  // cut off from the other nodes

 private:
  struct Session {
    std::string input;
    bool authenticated = false;
    bool asking = false;
  };
  using Words = std::vector<std::string>;

  void Pump();
  void Serve(WireId wire, const std::string& bytes);
  std::string Answer(Session& session, const Words& words);
  std::string Greet(Session& session, const Words& words);
  std::string Slots() const;
  std::string Script(Session& session, const Words& words, bool by_text);
  // Empty: the key is to be served here.
  std::string Redirect(const Session& session, uint32_t shard, const std::string& key) const;
  std::string Run(const std::string& text, uint32_t shard, const std::string& key,
                  const Words& argv);
  void Record(uint32_t shard, const Words& argv, const redis::Reply& reply, Copy& copy);

  const int index_;
  const Parts parts_;
  Random random_;
  bool alive_ = true;
  bool paused_ = false;
  uint64_t loading_until_ns_ = 0;
  uint64_t run_id_ = 1;
  std::map<WireId, Session> sessions_;
  std::deque<std::pair<WireId, std::string>> inbox_;
  bool pumping_ = false;
};

}  // namespace sluice::simulation
