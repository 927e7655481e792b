#include "tests/simulation/node.h"

#include <algorithm>
#include <utility>

#include "daemon/redis/codec.h"
#include "daemon/redis/sha1.h"
#include "daemon/redis/slot.h"
#include "lua_scripts.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kCommandNs = 20 * kUs;

std::string Bulk(std::string_view text) {
  std::string out;
  redis::AppendBulk(&out, text);
  return out;
}

std::string Number(int64_t n) { return ":" + std::to_string(n) + "\r\n"; }
std::string Array(size_t n) { return "*" + std::to_string(n) + "\r\n"; }
std::string Error(const std::string& text) { return "-" + text + "\r\n"; }

std::string Encode(const redis::Reply& reply) {
  switch (reply.kind) {
    case redis::Reply::Kind::kInteger:
      return Number(reply.integer);
    case redis::Reply::Kind::kString:
      return Bulk(reply.text);
    case redis::Reply::Kind::kStatus:
      return "+" + reply.text + "\r\n";
    case redis::Reply::Kind::kError:
      return Error(reply.text);
    case redis::Reply::Kind::kNil:
      return "$-1\r\n";
    case redis::Reply::Kind::kArray:
      break;
  }
  std::string out = Array(reply.elements.size());
  for (const redis::Reply& element : reply.elements) out += Encode(element);
  return out;
}

// Of the scripts that daemons run here; empty: of none.
std::string_view TextOf(const std::string& sha) {
  static const std::map<std::string, std::string_view> texts = {
      {redis::Sha1Hex(lua::kFold), lua::kFold},
      {redis::Sha1Hex(lua::kProbe), lua::kProbe},
      {redis::Sha1Hex(lua::kPlaces), lua::kPlaces},
      {redis::Sha1Hex(lua::kLease), lua::kLease}};
  const auto text = texts.find(sha);
  return text != texts.end() ? text->second : std::string_view();
}

// The tokens that a hash says it has counted.
int64_t SumOf(const test::LuaRedis& lua, const std::string& key) {
  const auto hash = lua.data.find(key);
  if (hash == lua.data.end()) return 0;
  const auto sum = hash->second.find("s:");
  return sum != hash->second.end() ? strtoll(sum->second.c_str(), nullptr, 10) : 0;
}

// Takes one whole command off the front; false while bytes are missing.
bool TakeCommand(std::string* input, std::vector<std::string>* words) {
  words->clear();
  size_t at = input->find("\r\n");
  if (at == std::string::npos || (*input)[0] != '*') return false;
  const size_t count = strtoul(input->c_str() + 1, nullptr, 10);
  at += 2;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = input->find("\r\n", at);
    if (end == std::string::npos) return false;
    const size_t n = strtoul(input->c_str() + at + 1, nullptr, 10);
    if (input->size() < end + 2 + n + 2) return false;
    words->push_back(input->substr(end + 2, n));
    at = end + 2 + n + 2;
  }
  input->erase(0, at);
  return true;
}

}  // namespace

Node::Node(int index, const Parts& parts, Random random, Config initial)
    : config(std::move(initial)), index_(index), parts_(parts), random_(random) {}

uint64_t Node::TimeUs() const {
  return static_cast<uint64_t>(static_cast<int64_t>(kEpochUs + parts_.timeline->now_ns() / kUs) +
                               clock_offset_us);
}

std::string Node::id() const { return redis::Sha1Hex("node " + std::to_string(index_)); }

Servers::Answer Node::OnConnect(WireId wire) {
  if (!alive_) return Servers::Answer::kRefuse;
  sessions_[wire].authenticated = parts_.password.empty();
  return Servers::Answer::kAccept;  // a stopped process too: the kernel does it
}

void Node::OnRequest(WireId wire, std::string bytes) {
  inbox_.emplace_back(wire, std::move(bytes));
  Pump();
}

void Node::OnHangUp(WireId wire) {
  // What it has read before is executed all the same.
  inbox_.emplace_back(wire, "");
  Pump();
}

void Node::Kill(bool silent) {
  alive_ = paused_ = false;
  sessions_.clear();
  inbox_.clear();
  scripts.clear();
  migrating.clear();
  importing.clear();
  ++run_id_;
  parts_.network->DropNode(index_, silent);
}

void Node::Restart(Data kept, uint64_t loading_ns) {
  alive_ = true;
  data = std::move(kept);
  loading_until_ns_ = parts_.timeline->now_ns() + loading_ns;
}

void Node::Resume() {
  paused_ = false;
  Pump();
}

// One thread: a command that takes its time holds up those behind it.
void Node::Pump() {
  if (pumping_ || paused_ || !alive_ || inbox_.empty()) return;
  pumping_ = true;
  const uint64_t takes_ns = kCommandNs + random_.Below(slow_ns + 1);
  parts_.timeline->After(takes_ns, [this, run = run_id_] {
    pumping_ = false;
    if (run != run_id_ || paused_ || inbox_.empty()) return Pump();
    auto [wire, bytes] = std::move(inbox_.front());
    inbox_.pop_front();
    if (bytes.empty()) {
      sessions_.erase(wire);
    } else {
      Serve(wire, bytes);
    }
    Pump();
  });
}

void Node::Serve(WireId wire, const std::string& bytes) {
  const auto found = sessions_.find(wire);
  if (found == sessions_.end()) return;
  Session& session = found->second;
  session.input += bytes;
  std::string replies;
  for (Words words; TakeCommand(&session.input, &words);) replies += Answer(session, words);
  parts_.network->Reply(wire, std::move(replies));
}

std::string Node::Answer(Session& session, const Words& words) {
  const std::string& name = words[0];
  if (name == "HELLO") return Greet(session, words);
  if (!session.authenticated) return Error("NOAUTH Authentication required.");
  const bool asking = std::exchange(session.asking, false);
  if (name == "ASKING") {
    session.asking = true;
    return "+OK\r\n";
  }
  if (name == "CLUSTER") return Slots();
  if (IsLoading()) return Error("LOADING Redis is loading the dataset in memory");
  if (name == "PING") return "+PONG\r\n";
  if (name == "INFO") {
    return Bulk("# Server\r\nrun_id:" + std::to_string(index_) + "." + std::to_string(run_id_) +
                "\r\n");
  }
  if (name == "SCRIPT") {
    const std::string sha = redis::Sha1Hex(words[2]);
    scripts.insert(sha);
    return Bulk(sha);
  }
  if (name == "EVALSHA" || name == "EVAL") {
    session.asking = asking;
    std::string reply = Script(session, words, name == "EVAL");
    session.asking = false;
    return reply;
  }
  return Error("ERR unknown command '" + name + "'");
}

std::string Node::Greet(Session& session, const Words& words) {
  if (words.size() < 4 || words[1] != "2") return Error("NOPROTO unsupported protocol version");
  const bool gives = words[2] == "AUTH";
  if (gives && words[4] != parts_.password) {
    return Error("WRONGPASS invalid username-password pair or user is disabled.");
  }
  session.authenticated = session.authenticated || gives;
  if (!session.authenticated)
    return Error(
        "NOAUTH HELLO must be called with the client already"
        " authenticated");
  return Array(4) + Bulk("server") + Bulk("redis") + Bulk("proto") + Number(2);
}

// Each shard's range in up to three parts: before its hash's slot, that slot, and after it.
std::string Node::Slots() const {
  struct Range {
    uint32_t first, last;
    int owner;
  };
  std::vector<Range> ranges;
  const auto add = [&ranges](uint32_t first, uint32_t last, int owner) {
    if (first > last || owner == kNobody) return;
    if (!ranges.empty() && ranges.back().owner == owner && ranges.back().last + 1 == first) {
      ranges.back().last = last;
    } else {
      ranges.push_back({first, last, owner});
    }
  };
  const auto count = static_cast<uint32_t>(parts_.shards->slots.size());
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t first = i * redis::kSlots / count;
    const uint32_t end = (i + 1) * redis::kSlots / count;
    const uint32_t slot = parts_.shards->slots[i];
    if (slot > first) add(first, slot - 1, config.range_owner[i]);
    add(slot, slot, config.slot_owner[i]);
    add(slot + 1, end - 1, config.range_owner[i]);
  }
  const auto node = [](int n) {
    return Array(4) + Bulk(NodeHost(n)) + Number(kNodePort) +
           Bulk(redis::Sha1Hex("node " + std::to_string(n))) + Array(0);
  };
  std::string out = Array(ranges.size());
  for (const Range& range : ranges) {
    std::string nodes = node(range.owner);
    size_t n = 3;
    for (int i = 0; i < static_cast<int>(config.primary_of.size()); ++i) {
      if (config.primary_of[static_cast<size_t>(i)] != range.owner) continue;
      nodes += node(i);
      ++n;
    }
    out += Array(n) + Number(range.first) + Number(range.last) + nodes;
  }
  return out;
}

std::string Node::Redirect(const Session& session, uint32_t shard, const std::string& key) const {
  if (cluster_down) return Error("CLUSTERDOWN The cluster is down");
  const std::string slot = std::to_string(parts_.shards->slots[shard]);
  const auto to = [&slot](const char* how, int node) {
    return Error(std::string(how) + " " + slot + " " + NodeHost(node) + ":" +
                 std::to_string(kNodePort));
  };
  const int owner = config.slot_owner[shard];
  if (owner == index_) {
    const auto moving = migrating.find(shard);
    if (moving != migrating.end() && !data.contains(key)) {
      return to("ASK", moving->second);
    }
    return "";
  }
  if (session.asking && importing.contains(shard)) return "";
  if (owner == kNobody) return Error("CLUSTERDOWN Hash slot not served");
  return to("MOVED", owner);
}

// EVALSHA sha 1 key args..., or EVAL with the text.
std::string Node::Script(Session& session, const Words& words, bool by_text) {
  const std::string key = words.size() > 3 ? words[3] : "";
  uint32_t shard = 0;
  const auto count = static_cast<uint32_t>(parts_.shards->keys.size());
  for (; shard < count; ++shard) {
    const Words all = parts_.shards->AllOf(shard);
    if (std::find(all.begin(), all.end(), key) != all.end()) break;
  }
  if (shard == count) return Error("ERR a key that no daemon should know");
  if (std::string elsewhere = Redirect(session, shard, key); !elsewhere.empty()) return elsewhere;
  if (!says_no.empty()) return Error(says_no);
  const Words argv(words.begin() + 4, words.end());
  if (by_text) {
    scripts.insert(redis::Sha1Hex(words[1]));
    return Run(words[1], shard, key, argv);
  }
  if (!scripts.contains(words[1])) return Error("NOSCRIPT No matching script.");
  const std::string_view text = TextOf(words[1]);
  if (text.empty()) return Error("ERR a script that no daemon should know");
  return Run(std::string(text), shard, key, argv);
}

std::string Node::Run(const std::string& text, uint32_t shard, const std::string& key,
                      const Words& argv) {
  ++calls;
  const bool lends = key != parts_.shards->keys[shard];
  test::LuaRedis& lua = *parts_.lua;
  lua.data.clear();
  lua.expires_us.clear();
  lua.time_us = TimeUs();
  const Applied* head = nullptr;
  if (const auto found = data.find(key); found != data.end()) {
    lua.data[key] = found->second.fields;
    if (found->second.expires_us != 0) lua.expires_us[key] = found->second.expires_us;
    head = found->second.head;
  }
  const bool expired = lua.expires_us.contains(key) && lua.expires_us[key] <= lua.time_us;
  const int64_t sum_before = expired ? 0 : SumOf(lua, key);
  const redis::Reply reply = lua.Eval(text, key, argv);
  if (!argv.empty()) {
    const int64_t counted = SumOf(lua, key) - sum_before;
    if (lua.data.contains(key)) {
      Copy& copy = data[key];
      copy.fields = std::move(lua.data[key]);
      const auto expires = lua.expires_us.find(key);
      copy.expires_us = expires != lua.expires_us.end() ? expires->second : 0;
      copy.head = head;  // of an expired hash too: its use was counted
      if (lends) {
        if (reply.is_error()) parts_.on_violation("the script failed: " + reply.text);
        parts_.on_loan(index_, {shard, key == parts_.shards->strict[shard], argv, reply});
      } else {
        Record(shard, argv, reply, copy);
      }
      if (counted !=
          (copy.head != nullptr ? copy.head->sum : 0) - (head != nullptr ? head->sum : 0)) {
        parts_.on_violation("the hash counts other than the batch said");
      }
    } else {
      data.erase(key);
    }
    parts_.on_write(index_, key);
  }
  return Encode(reply);
}

// What the fold script was told, as lua/fold.lua states it, and whether it counted.
void Node::Record(uint32_t shard, const Words& argv, const redis::Reply& reply, Copy& copy) {
  const auto number = [&argv](size_t i) { return strtoll(argv[i].c_str(), nullptr, 10); };
  if (reply.is_error()) return parts_.on_violation("the script failed: " + reply.text);
  const bool applied = reply.elements[0].integer == 1;
  if (applied) {
    Applied entry{.before = copy.head,
                  .shard = shard,
                  .instance = argv[2],
                  .seq = number(3),
                  .at_ns = parts_.timeline->now_ns(),
                  .node = index_,
                  .sum = copy.head != nullptr ? copy.head->sum : 0};
    const auto first = static_cast<size_t>(7 + 3 * number(6));
    for (size_t at = first; at + 8 <= argv.size(); at += 8) {
      // Of several names the first is the bucket's.
      entry.tokens.emplace_back(argv[at].c_str(), number(at + 3));
      entry.sum += number(at + 3);
    }
    parts_.lineage->applied.push_back(std::move(entry));
    copy.head = &parts_.lineage->applied.back();
    parts_.trace->Note("applied", static_cast<uint64_t>(index_), shard,
                       static_cast<uint64_t>(number(3)), static_cast<uint64_t>(copy.head->sum));
  }
  parts_.lineage->asked.push_back({shard, argv[2], parts_.timeline->now_ns(), copy.head});
}

}  // namespace sluice::simulation
