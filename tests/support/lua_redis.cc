#include "tests/support/lua_redis.h"

#include <cstdio>
#include <cstdlib>
#include <lua.hpp>

namespace sluice::test {
namespace {

constexpr char kSelf[] = "sluice.redis";

redis::Reply Integer(int64_t n) {
  redis::Reply r;
  r.kind = redis::Reply::Kind::kInteger;
  r.integer = n;
  return r;
}

// What Redis makes of a script's result: numbers lose their fraction, arrays end at nil.
redis::Reply ToReply(lua_State* lua, int index) {
  redis::Reply r;
  switch (lua_type(lua, index)) {
    case LUA_TNUMBER:
      return Integer(static_cast<int64_t>(lua_tonumber(lua, index)));
    case LUA_TSTRING:
      r.kind = redis::Reply::Kind::kString;
      r.text = lua_tostring(lua, index);
      return r;
    case LUA_TBOOLEAN:
      return lua_toboolean(lua, index) != 0 ? Integer(1) : r;
    case LUA_TTABLE:
      r.kind = redis::Reply::Kind::kArray;
      for (int i = 1;; ++i) {
        lua_rawgeti(lua, index, i);
        if (lua_isnil(lua, -1)) {
          lua_pop(lua, 1);
          return r;
        }
        r.elements.push_back(ToReply(lua, lua_gettop(lua)));
        lua_pop(lua, 1);
      }
    default:
      return r;
  }
}

void PushStrings(lua_State* lua, const std::vector<std::string>& strings) {
  lua_newtable(lua);
  for (size_t i = 0; i < strings.size(); ++i) {
    lua_pushlstring(lua, strings[i].data(), strings[i].size());
    lua_rawseti(lua, -2, static_cast<int>(i + 1));
  }
}

}  // namespace

LuaRedis::LuaRedis(uint64_t seed) : lua_(luaL_newstate()), random_(seed) {
  luaL_openlibs(lua_);
  lua_pushlightuserdata(lua_, this);
  lua_setfield(lua_, LUA_REGISTRYINDEX, kSelf);
  lua_newtable(lua_);
  lua_pushcfunction(lua_, &LuaRedis::Call);
  lua_setfield(lua_, -2, "call");
  lua_setglobal(lua_, "redis");
}

LuaRedis::~LuaRedis() { lua_close(lua_); }

redis::Reply LuaRedis::Eval(std::string_view script, const std::string& key,
                            const std::vector<std::string>& argv) {
  ++calls;
  PushStrings(lua_, {key});
  lua_setglobal(lua_, "KEYS");
  PushStrings(lua_, argv);
  lua_setglobal(lua_, "ARGV");
  redis::Reply reply;
  DropExpired(key);
  if (!Load(script) || lua_pcall(lua_, 0, 1, 0) != 0) {
    reply.kind = redis::Reply::Kind::kError;
    reply.text = std::string("ERR ") + lua_tostring(lua_, -1);
  } else {
    reply = ToReply(lua_, lua_gettop(lua_));
  }
  lua_settop(lua_, 0);
  return reply;
}

// Pushes the compiled script, or what is wrong with it.
bool LuaRedis::Load(std::string_view script) {
  const auto found = compiled_.find(script);
  if (found != compiled_.end()) {
    lua_rawgeti(lua_, LUA_REGISTRYINDEX, found->second);
    return true;
  }
  if (luaL_loadbuffer(lua_, script.data(), script.size(), "script") != 0) return false;
  lua_pushvalue(lua_, -1);
  compiled_.emplace(script, luaL_ref(lua_, LUA_REGISTRYINDEX));
  return true;
}

void LuaRedis::DropExpired(const std::string& key) {
  const auto found = expires_us.find(key);
  if (found == expires_us.end() || time_us < found->second) return;
  expires_us.erase(found);
  data.erase(key);
}

// PEXPIRE key ms NX|GT: NX starts an expiry, GT lengthens one; a key without one never expires.
int LuaRedis::Expire(const std::vector<std::string>& words) {
  const std::string& key = words[1];
  if (words.size() != 4 || !data.contains(key)) return 0;
  const uint64_t at_us = time_us + strtoull(words[2].c_str(), nullptr, 10) * 1000;
  const auto found = expires_us.find(key);
  const bool has = found != expires_us.end();
  if (words[3] == "NX" ? has : (!has || at_us <= found->second)) return 0;
  expires_us[key] = at_us;
  return 1;
}

int LuaRedis::Call(lua_State* lua) {
  lua_getfield(lua, LUA_REGISTRYINDEX, kSelf);
  auto* const self = static_cast<LuaRedis*>(lua_touserdata(lua, -1));
  lua_pop(lua, 1);
  std::vector<std::string> words;
  for (int i = 1; i <= lua_gettop(lua); ++i) {
    size_t n = 0;
    const char* word = lua_tolstring(lua, i, &n);
    if (word == nullptr) return luaL_error(lua, "a command's arguments must be strings or numbers");
    words.emplace_back(word, n);
  }
  return self->Command(lua, words);
}

// Distinct fields with their values. Of a large hash: neighbours at a place that is random where
// names are, since to list all of it for each call would take most of a run's time.
std::vector<std::string> LuaRedis::SomeFields(const Hash& hash, size_t want) {
  constexpr size_t kLarge = 300;
  std::vector<std::string> out;
  if (hash.size() > kLarge && want < kLarge) {
    char place[24];
    snprintf(place, sizeof place, "h:%016llx", static_cast<unsigned long long>(random_()));
    auto at = hash.lower_bound(place);
    for (size_t i = 0; i < want; ++i, ++at) {
      if (at == hash.end()) at = hash.begin();
      out.insert(out.end(), {at->first, at->second});
    }
    return out;
  }
  std::vector<const std::pair<const std::string, std::string>*> fields;
  for (const auto& field : hash) fields.push_back(&field);
  want = std::min(want, fields.size());
  for (size_t i = 0; i < want; ++i) {
    std::swap(fields[i], fields[i + random_() % (fields.size() - i)]);
    out.insert(out.end(), {fields[i]->first, fields[i]->second});
  }
  return out;
}

int LuaRedis::Command(lua_State* lua, const std::vector<std::string>& words) {
  const std::string& name = words[0];
  if (name == "TIME") {
    PushStrings(lua, {std::to_string(time_us / 1'000'000), std::to_string(time_us % 1'000'000)});
    return 1;
  }
  if (words.size() < 2) return luaL_error(lua, "a key is missing");
  const std::string& key = words[1];
  if (name == "EXISTS") {
    lua_pushnumber(lua, data.contains(key) ? 1 : 0);
  } else if (name == "HMGET") {
    static const Hash kNone;
    const auto at = data.find(key);
    const Hash& hash = at != data.end() ? at->second : kNone;
    lua_newtable(lua);
    for (size_t i = 2; i < words.size(); ++i) {
      const auto found = hash.find(words[i]);
      if (found == hash.end()) {
        lua_pushboolean(lua, 0);
      } else {
        lua_pushlstring(lua, found->second.data(), found->second.size());
      }
      lua_rawseti(lua, -2, static_cast<int>(i - 1));
    }
  } else if (name == "HSET") {
    for (size_t i = 2; i + 1 < words.size(); i += 2) data[key][words[i]] = words[i + 1];
    lua_pushnumber(lua, static_cast<double>(words.size()));
  } else if (name == "HDEL") {
    for (size_t i = 2; i < words.size(); ++i) data[key].erase(words[i]);
    lua_pushnumber(lua, 1);
  } else if (name == "HRANDFIELD") {  // distinct fields, with values
    PushStrings(lua, SomeFields(data[key], strtoul(words[2].c_str(), nullptr, 10)));
  } else if (name == "PEXPIRE") {
    lua_pushnumber(lua, Expire(words));
  } else {
    return luaL_error(lua, "the model does not know %s", name.c_str());
  }
  return 1;
}

std::vector<std::string> DecodeBulks(std::string_view encoded) {
  std::vector<std::string> out;
  while (!encoded.empty() && encoded[0] == '$') {
    const size_t end = encoded.find("\r\n");
    const size_t n = strtoul(std::string(encoded.substr(1, end - 1)).c_str(), nullptr, 10);
    out.emplace_back(encoded.substr(end + 2, n));
    encoded.remove_prefix(end + 2 + n + 2);
  }
  return out;
}

}  // namespace sluice::test
