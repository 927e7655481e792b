// A model of one Redis primary for tests in virtual time: the real Lua scripts run in the Lua 5.1
// library against hashes kept here. It knows the commands that the scripts use, expiry included,
// and TIME is the test's. Lost writes of a failover are a copy taken earlier.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/redis/reply.h"

struct lua_State;

namespace sluice::test {

class LuaRedis {
 public:
  using Hash = std::map<std::string, std::string>;
  using Data = std::map<std::string, Hash>;

  explicit LuaRedis(uint64_t seed = 1);
  ~LuaRedis();

  // Runs `script` with one key, as EVALSHA would. Errors come back as error replies.
  redis::Reply Eval(std::string_view script, const std::string& key,
                    const std::vector<std::string>& argv);

  uint64_t time_us = 1'700'000'000'000'000;
  Data data;                                   // copied and put back by tests that lose writes
  std::map<std::string, uint64_t> expires_us;  // by key; absent: never
  uint64_t calls = 0;

 private:
  static int Call(lua_State* lua);
  int Command(lua_State* lua, const std::vector<std::string>& words);
  std::vector<std::string> SomeFields(const Hash& hash, size_t want);
  int Expire(const std::vector<std::string>& words);
  void DropExpired(const std::string& key);
  bool Load(std::string_view script);

  lua_State* lua_;
  std::map<std::string, int, std::less<>> compiled_;  // by text; a place in Lua's registry
  std::mt19937_64 random_;
};

// Arguments of a call, as encoded for the wire ("$5\r\nhello\r\n..."), decoded.
std::vector<std::string> DecodeBulks(std::string_view encoded);

}  // namespace sluice::test
