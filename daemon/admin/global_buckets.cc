#include "daemon/admin/global_buckets.h"

#include <hiredis/hiredis.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "daemon/admin/global_lease.h"
#include "daemon/config/parse.h"
#include "daemon/redis/codec.h"
#include "daemon/redis/slot.h"
#include "daemon/redis/tls_session.h"
#include "shm/clock.h"
#include "shm/gcra.h"
#include "shm/window.h"

namespace sluice::admin {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxScanRounds = 100'000;  // a cursor that never ends is no cursor

struct FreeContext {
  void operator()(redisContext* context) const { redisFree(context); }
};
struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

std::string_view TextOf(const redisReply* reply) {
  return reply != nullptr && reply->str != nullptr ? std::string_view(reply->str, reply->len)
                                                   : std::string_view();
}

// One blocking connection, logged in, with the distance of the node's clock.
class Node {
 public:
  // `tls` may be null: plain TCP.
  static std::unique_ptr<Node> Open(const NodeAddress& at, const config::RedisConfig& redis,
                                    const redis::TlsContext* tls, std::string* problem);

  // Null when the connection has failed: see error().
  Reply Command(const std::vector<std::string>& args);
  bool is_broken() const { return context_->err != 0; }
  std::string error() const { return tls_error_.empty() ? context_->errstr : tls_error_; }
  int64_t now_us() const {
    return offset_us_ + static_cast<int64_t>(shm::MonotonicClock::PreciseNs() / 1000);
  }

 private:
  bool LogIn(const config::RedisConfig& redis, std::string* problem);
  bool ShakeHands(const NodeAddress& at, const redis::TlsContext& tls);
  Reply TlsCommand(const std::string& command);

  std::unique_ptr<redisContext, FreeContext> context_;
  std::unique_ptr<redis::TlsSession> tls_;  // null: plain TCP
  std::string tls_error_;
  int64_t offset_us_ = 0;  // of its TIME beyond our CLOCK_MONOTONIC
};

// Without its port and brackets.
std::string HostOf(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

redisContext* Connect(const std::string& address) {
  const timeval timeout = {kGlobalCommandMs / 1000, kGlobalCommandMs % 1000 * 1000};
  if (address.starts_with("unix:")) {
    return redisConnectUnixWithTimeout(address.substr(5).c_str(), timeout);
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return nullptr;
  }
  return redisConnectWithTimeout(HostOf(address).c_str(), port, timeout);
}

Reply Node::Command(const std::vector<std::string>& args) {
  if (tls_ != nullptr) {
    std::string command;
    redis::AppendArrayHead(&command, args.size());
    for (const std::string& arg : args) redis::AppendBulk(&command, arg);
    return TlsCommand(command);
  }
  std::vector<const char*> parts;
  std::vector<size_t> sizes;
  for (const std::string& arg : args) {
    parts.push_back(arg.data());
    sizes.push_back(arg.size());
  }
  return Reply(static_cast<redisReply*>(redisCommandArgv(
      context_.get(), static_cast<int>(parts.size()), parts.data(), sizes.data())));
}

// The socket's own time-outs bound each write and read.
Reply Node::TlsCommand(const std::string& command) {
  SSL* const ssl = tls_->get();
  void* reply = nullptr;
  bool alive = SSL_write(ssl, command.data(), static_cast<int>(command.size())) > 0;
  while (alive && reply == nullptr) {
    char bytes[16 * 1024];
    const int got = SSL_read(ssl, bytes, sizeof bytes);
    alive = got > 0 &&
            redisReaderFeed(context_->reader, bytes, static_cast<size_t>(got)) == REDIS_OK &&
            redisReaderGetReply(context_->reader, &reply) == REDIS_OK;
  }
  if (!alive) tls_error_ = "the connection was lost, or Redis answered too late";
  return Reply(static_cast<redisReply*>(reply));
}

bool Node::ShakeHands(const NodeAddress& at, const redis::TlsContext& tls) {
  absl::StatusOr<std::unique_ptr<redis::TlsSession>> session =
      redis::TlsSession::New(tls, at.hostname.empty() ? HostOf(at.address) : at.hostname);
  if (!session.ok()) {
    tls_error_ = std::string(session.status().message());
    return false;
  }
  tls_ = *std::move(session);
  if (SSL_set_fd(tls_->get(), context_->fd) == 1 && SSL_do_handshake(tls_->get()) == 1) return true;
  tls_error_ = absl::StrCat("TLS handshake: ", tls_->TakeTrouble().what);
  return false;
}

std::unique_ptr<Node> Node::Open(const NodeAddress& at, const config::RedisConfig& redis,
                                 const redis::TlsContext* tls, std::string* problem) {
  const std::string& address = at.address;
  auto node = std::make_unique<Node>();
  node->context_.reset(Connect(address));
  if (node->context_ == nullptr || node->is_broken()) {
    *problem = absl::StrCat(address, ": ", node->context_ ? node->error() : "no address");
    return nullptr;
  }
  const timeval timeout = {kGlobalCommandMs / 1000, kGlobalCommandMs % 1000 * 1000};
  redisSetTimeout(node->context_.get(), timeout);
  if (tls != nullptr && !node->ShakeHands(at, *tls)) {
    *problem = absl::StrCat(address, ": ", node->error());
    return nullptr;
  }
  std::string why;
  if (!node->LogIn(redis, &why)) {
    *problem = absl::StrCat(address, ": ", why);
    return nullptr;
  }
  return node;
}

bool Node::LogIn(const config::RedisConfig& redis, std::string* problem) {
  const absl::StatusOr<std::string> password = config::ReadPassword(redis);
  if (!password.ok()) {
    *problem = std::string(password.status().message());
    return false;
  }
  if (!password->empty()) {
    std::vector<std::string> auth = {"AUTH"};
    if (!redis.username.empty()) auth.push_back(redis.username);
    auth.push_back(*password);
    const Reply reply = Command(auth);
    if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) {
      *problem = reply == nullptr ? error() : std::string(TextOf(reply.get()));
      return false;
    }
  }
  const Reply time = Command({"TIME"});
  int64_t seconds = 0;
  int64_t micros = 0;
  if (time == nullptr || time->type != REDIS_REPLY_ARRAY || time->elements != 2 ||
      !absl::SimpleAtoi(std::string(TextOf(time->element[0])), &seconds) ||
      !absl::SimpleAtoi(std::string(TextOf(time->element[1])), &micros)) {
    *problem = time == nullptr ? error() : absl::StrCat("TIME: ", std::string(TextOf(time.get())));
    return false;
  }
  offset_us_ =
      seconds * 1'000'000 + micros - static_cast<int64_t>(shm::MonotonicClock::PreciseNs() / 1000);
  return true;
}

// A pattern that matches names beginning with `prefix`, whatever is in it.
std::string GlobOf(const std::string& prefix) {
  std::string glob;
  for (const char c : prefix) {
    if (c == '*' || c == '?' || c == '[' || c == ']' || c == '\\' || c == '^') glob.push_back('\\');
    glob.push_back(c);
  }
  return glob + "*";
}

class Lister {
 public:
  Lister(const BucketQuery& query, const config::RedisConfig& redis,
         const config::CompiledRules& rules)
      : query_(query), redis_(redis), rules_(rules) {
    if (!redis.tls) return;
    tls_ = std::make_unique<redis::TlsContext>(redis::TlsOptions{
        config::FileOf(redis.tls->ca_file), config::FileOf(redis.tls->certificate_file),
        config::FileOf(redis.tls->key_file), redis.tls->server_name});
  }

  absl::StatusOr<ordered_json> Run(const std::vector<NodeAddress>& seeds) {
    const std::vector<std::string> keys = redis::ShardKeys(redis_.prefix, redis_.shards);
    if (tls_ != nullptr) {
      const absl::Status status = tls_->Refresh();
      if (!status.ok()) return status;
    }
    for (const NodeAddress& seed : seeds) hostnames_.emplace(seed.address, seed.hostname);
    for (const NodeAddress& seed : seeds) {
      if (NodeAt(seed.address) != nullptr) {
        home_ = seed.address;
        break;
      }
    }
    if (home_.empty()) {
      return absl::UnavailableError(absl::StrCat("no primary of Redis answers: ", problem_));
    }
    const auto& all = rules_.rules();
    const bool has_strict = std::any_of(
        all.begin(), all.end(), [](const auto& rule) { return rule.kind == shm::Kind::kLease; });
    uint64_t unreachable = 0;
    for (uint32_t shard = 0; shard < redis_.shards && !truncated_; ++shard) {
      if (IsLate()) {
        truncated_ = true;
      } else if (!ScanShard(shard, keys[shard], /*is_lent=*/false) ||
                 (has_strict && !truncated_ &&
                  !ScanShard(shard, redis::FamilyKey(keys[shard], "strict"), /*is_lent=*/true))) {
        ++unreachable;
      }
    }
    return ordered_json{{"scope", "global"},
                        {"truncated", truncated_},
                        {"unreachable_shards", unreachable},
                        {"buckets", list_}};
  }

 private:
  bool IsLate() const { return std::chrono::steady_clock::now() > end_; }

  Node* NodeAt(const std::string& address) {
    const auto found = nodes_.find(address);
    if (found != nodes_.end()) return found->second.get();
    if (IsLate()) return nullptr;
    const auto known = hostnames_.find(address);
    const NodeAddress at = {address, known == hostnames_.end() ? "" : known->second};
    return nodes_.emplace(address, Node::Open(at, redis_, tls_.get(), &problem_))
        .first->second.get();
  }

  // `is_lent`: the hash is lua/lease.lua's, else lua/fold.lua's.
  bool ScanShard(uint32_t shard, const std::string& key, bool is_lent) {
    std::string cursor = "0";
    int redirects = 0;
    for (size_t round = 0; round < kMaxScanRounds; ++round) {
      if (IsLate()) return false;
      Node* node = NodeAt(home_);
      if (node == nullptr) return false;
      const Reply reply =
          node->Command({"HSCAN", key, cursor, "MATCH", GlobOf(query_.prefix), "COUNT", "500"});
      if (reply == nullptr) {
        nodes_[home_] = nullptr;
        return false;
      }
      if (reply->type == REDIS_REPLY_ERROR) {
        // "MOVED slot host:port"; neighbouring shards mostly live on one node, so it stays home.
        const std::vector<std::string> words =
            absl::StrSplit(std::string(TextOf(reply.get())), ' ');
        if (words.size() != 3 || words[0] != "MOVED" || ++redirects > kGlobalRedirects) {
          return false;
        }
        home_ = words[2];
        continue;
      }
      if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2) return false;
      cursor = std::string(TextOf(reply->element[0]));
      const redisReply* pairs = reply->element[1];
      for (size_t i = 0; i + 1 < pairs->elements && !truncated_; i += 2) {
        Add(shard, is_lent, TextOf(pairs->element[i]), TextOf(pairs->element[i + 1]),
            node->now_us());
      }
      if (cursor == "0" || truncated_) return true;
    }
    return false;
  }

  void Add(uint32_t shard, bool is_lent, std::string_view name, std::string_view value,
           int64_t now_us) {
    // The hash's own books: no rule's name is that short.
    if (name.size() > 1 && name[1] == ':') return;
    if (list_.size() >= query_.limit) {
      truncated_ = true;
      return;
    }
    const std::string label(name.substr(0, name.find(':')));
    ordered_json bucket = {{"name", std::string(name)}, {"rule", label}, {"shard", shard}};
    if (is_lent) {
      const config::CompiledRule* const rule = rules_.Find(label);
      if (rule != nullptr) AddLentState(*rule, value, now_us, &bucket);
      list_.push_back(std::move(bucket));
      return;
    }
    const std::vector<std::string> parts = absl::StrSplit(std::string(value), ' ');
    int64_t tat_us = 0;
    int64_t tokens = 0;
    if (parts.size() >= 2 && absl::SimpleAtoi(parts[0], &tat_us) &&
        absl::SimpleAtoi(parts[1], &tokens)) {
      AddState(label, tat_us, tokens, now_us, parts, &bucket);
    }
    list_.push_back(std::move(bucket));
  }

  // A window's fields as lua/fold.lua keeps them: its end, the tokens in it and in the one before.
  // Less than 0: they are not a window's.
  static int64_t UsedOfWindow(const config::CompiledRule& rule,
                              const std::vector<std::string>& parts, int64_t now_us) {
    int64_t end_us = 0;
    int64_t current = 0;
    int64_t closed = 0;
    if (parts.size() != 10 || !absl::SimpleAtoi(parts[7], &end_us) ||
        !absl::SimpleAtoi(parts[8], &current) || !absl::SimpleAtoi(parts[9], &closed)) {
      return -1;
    }
    const bool slides = rule.kind != shm::Kind::kFixedWindow;
    const auto length_us = static_cast<int64_t>(shm::window::LengthNs(rule.limit.period_ns) / 1000);
    if (slides && end_us <= now_us && now_us < end_us + length_us) {  // the next has begun
      closed = std::exchange(current, 0);
      end_us += length_us;
    }
    if (end_us <= now_us) return 0;
    const double left = static_cast<double>(end_us - now_us) / static_cast<double>(length_us);
    return current +
           (slides ? static_cast<int64_t>(static_cast<double>(closed) * std::min(left, 1.0)) : 0);
  }

  void AddState(const std::string& label, int64_t tat_us, int64_t tokens, int64_t now_us,
                const std::vector<std::string>& parts, ordered_json* out) const {
    (*out)["tokens"] = tokens;
    const int64_t ahead_us = std::max<int64_t>(0, tat_us - now_us);
    (*out)["reset_after_s"] = static_cast<double>(ahead_us) * 1e-6;
    const config::CompiledRule* rule = rules_.Find(label);
    if (rule == nullptr) return;
    const shm::Limit& limit = rule->limit;
    uint64_t remaining =
        shm::Remaining(static_cast<uint64_t>(ahead_us) * 1000, 0, limit.interval_ns, limit.tau_ns);
    if (shm::IsCountedInWindows(rule->kind)) {
      const auto used =
          static_cast<uint64_t>(std::max<int64_t>(UsedOfWindow(*rule, parts, now_us), 0));
      remaining = limit.limit - std::min(used, limit.limit);
    }
    (*out)["algorithm"] = config::AlgorithmName(rule->kind, rule->max_delay_ns);
    (*out)["remaining"] = remaining;
    (*out)["limit"] = limit.limit;
    (*out)["period_ns"] = limit.period_ns;
    (*out)["burst"] = limit.burst;
    (*out)["denying"] = remaining < rule->cost;
  }

  const BucketQuery& query_;
  const config::RedisConfig& redis_;
  const config::CompiledRules& rules_;
  std::unique_ptr<redis::TlsContext> tls_;              // null: plain TCP; outlives nodes_
  std::map<std::string, std::string> hostnames_;        // by address
  std::map<std::string, std::unique_ptr<Node>> nodes_;  // null: did not answer
  std::string home_;                                    // where the next shard is asked for first
  std::string problem_;
  const std::chrono::steady_clock::time_point end_ =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(kGlobalTotalMs);
  ordered_json list_ = ordered_json::array();
  bool truncated_ = false;
};

}  // namespace

absl::StatusOr<ordered_json> GlobalBuckets(const BucketQuery& query,
                                           const config::RedisConfig& redis,
                                           const std::vector<NodeAddress>& primaries,
                                           const config::CompiledRules& rules) {
  std::vector<NodeAddress> seeds = primaries;
  // Sentinels hold no buckets.
  if (redis.mode != config::RedisMode::kSentinel) {
    for (const std::string& address : redis.addresses) seeds.push_back({address, ""});
  }
  return Lister(query, redis, rules).Run(seeds);
}

}  // namespace sluice::admin
