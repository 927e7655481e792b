#include "daemon/admin/global_buckets.h"

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
#include "daemon/admin/redis_node.h"
#include "daemon/config/parse.h"
#include "daemon/redis/slot.h"
#include "daemon/redis/tls_session.h"
#include "shm/bucket_name.h"
#include "shm/gcra.h"
#include "shm/window.h"

namespace sluice::admin {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxScanRounds = 100'000;  // a cursor that never ends is no cursor

// A pattern that matches names beginning with `prefix`, whatever is in it.
std::string GlobOf(const std::string& prefix) {
  std::string glob;
  for (const char c : prefix) {
    if (c == '*' || c == '?' || c == '[' || c == ']' || c == '\\' || c == '^') glob.push_back('\\');
    glob.push_back(c);
  }
  return glob + "*";
}

using Clock = std::chrono::steady_clock;

struct GlobalList {
  ordered_json buckets = ordered_json::array();
  uint64_t unreachable = 0;  // shards
  bool truncated = false;
};

class Lister {
 public:
  // `out`: what is there already counts for the query's limit.
  Lister(const BucketQuery& query, const config::RedisConfig& redis,
         const config::CompiledRules& rules, Clock::time_point end, GlobalList* out)
      : query_(query), redis_(redis), rules_(rules), end_(end), out_(out) {
    if (!redis.tls) return;
    tls_ = std::make_unique<redis::TlsContext>(redis::TlsOptions{
        config::FileOf(redis.tls->ca_file), config::FileOf(redis.tls->certificate_file),
        config::FileOf(redis.tls->key_file), redis.tls->server_name});
  }

  absl::Status Run(const std::vector<NodeAddress>& seeds) {
    const std::vector<std::string> keys = redis::ShardKeys(redis_.prefix, redis_.shards);
    if (tls_ != nullptr) {
      absl::Status status = tls_->Refresh();
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
    const std::vector<Family> families = Families();
    for (uint32_t shard = 0; shard < redis_.shards && !out_->truncated; ++shard) {
      if (IsLate()) {
        out_->truncated = true;
        break;
      }
      const bool is_whole = std::all_of(families.begin(), families.end(), [&](const Family& f) {
        return out_->truncated || ScanShard(shard, keys[shard], f);
      });
      if (!is_whole) ++out_->unreachable;
    }
    return absl::OkStatus();
  }

 private:
  // The hashes of one script.
  struct Family {
    std::string_view name;  // empty: lua/fold.lua's
    // Null: of lua/fold.lua.
    bool (*add)(const config::CompiledRule&, std::string_view field, int64_t now_us,
                ordered_json* out);
  };

  std::vector<Family> Families() const {
    std::vector<Family> families = {{"", nullptr}};
    const auto add_if = [&](const Family& family, bool (*is_of)(const config::CompiledRule&)) {
      const auto& all = rules_.rules();
      if (std::any_of(all.begin(), all.end(), is_of)) families.push_back(family);
    };
    add_if({"strict", AddLentState},
           [](const config::CompiledRule& rule) { return rule.kind == shm::Kind::kLease; });
    add_if({"places", AddLentPlaces}, [](const config::CompiledRule& rule) {
      return rule.kind == shm::Kind::kInFlight && rule.strict;
    });
    return families;
  }

  bool IsLate() const { return Clock::now() > end_; }

  Node* NodeAt(const std::string& address) {
    const auto found = nodes_.find(address);
    if (found != nodes_.end()) return found->second.get();
    if (IsLate()) return nullptr;
    const auto known = hostnames_.find(address);
    const NodeAddress at = {address, known == hostnames_.end() ? "" : known->second};
    return nodes_.emplace(address, Node::Open(at, redis_, tls_.get(), &problem_))
        .first->second.get();
  }

  bool ScanShard(uint32_t shard, const std::string& shard_key, const Family& family) {
    const std::string key = redis::FamilyKey(shard_key, family.name);
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
      for (size_t i = 0; i + 1 < pairs->elements && !out_->truncated; i += 2) {
        Add(shard, family, TextOf(pairs->element[i]), TextOf(pairs->element[i + 1]),
            node->now_us());
      }
      if (cursor == "0" || out_->truncated) return true;
    }
    return false;
  }

  void Add(uint32_t shard, const Family& family, std::string_view name, std::string_view value,
           int64_t now_us) {
    // The hash's own books: no rule's name is that short.
    if (name.size() > 1 && name[1] == ':') return;
    if (out_->buckets.size() >= query_.limit) {
      out_->truncated = true;
      return;
    }
    const std::string label(shm::LabelOf(name));
    ordered_json bucket = {{"name", std::string(name)}, {"rule", label}, {"shard", shard}};
    if (!redis_.region.empty()) bucket["region"] = redis_.region;
    if (family.add != nullptr) {
      const config::CompiledRule* const rule = rules_.Find(label);
      if (rule != nullptr) family.add(*rule, value, now_us, &bucket);
      out_->buckets.push_back(std::move(bucket));
      return;
    }
    const std::vector<std::string> parts = absl::StrSplit(std::string(value), ' ');
    int64_t tat_us = 0;
    int64_t tokens = 0;
    if (parts.size() >= 2 && absl::SimpleAtoi(parts[0], &tat_us) &&
        absl::SimpleAtoi(parts[1], &tokens)) {
      AddState(label, tat_us, tokens, now_us, parts, &bucket);
    }
    out_->buckets.push_back(std::move(bucket));
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
    const shm::Limit limit = rule->LimitOf(label);
    uint64_t remaining =
        shm::Remaining(limit, static_cast<uint64_t>(ahead_us) * 1000, 0, /*dearer_q16=*/0);
    if (shm::IsCountedInWindows(rule->kind)) {
      const auto used =
          static_cast<uint64_t>(std::max<int64_t>(UsedOfWindow(*rule, parts, now_us), 0));
      remaining = limit.limit - std::min(used, limit.limit);
    }
    if (rule->penalty.is_any()) {
      // Behind a mark, as lua/fold.lua keeps them: denials, since when, until when it is banned.
      int64_t until_us = 0;
      const bool has_ban = parts.size() >= 12 && parts[7] == "p" &&
                           absl::SimpleAtoi(parts[10], &until_us) && until_us > now_us;
      (*out)["banned_for_s"] = has_ban ? static_cast<double>(until_us - now_us) * 1e-6 : 0.0;
    }
    AddTerms(*rule, limit, remaining, out);
  }

  const BucketQuery& query_;
  const config::RedisConfig& redis_;
  const config::CompiledRules& rules_;
  std::unique_ptr<redis::TlsContext> tls_;              // null: plain TCP; outlives nodes_
  std::map<std::string, std::string> hostnames_;        // by address
  std::map<std::string, std::unique_ptr<Node>> nodes_;  // null: did not answer
  std::string home_;                                    // where the next shard is asked for first
  std::string problem_;
  const Clock::time_point end_;
  GlobalList* const out_;
};

// Where to begin in that cluster. Where there are regions, a primary's address begins with its own.
std::vector<NodeAddress> SeedsOf(const config::RedisConfig& redis,
                                 const std::vector<NodeAddress>& primaries) {
  std::vector<NodeAddress> seeds;
  const std::string mark = redis.region.empty() ? "" : redis.region + "/";
  for (const NodeAddress& primary : primaries) {
    if (primary.address.starts_with(mark)) {
      seeds.push_back({primary.address.substr(mark.size()), primary.hostname});
    }
  }
  // Sentinels hold no buckets.
  if (redis.mode != config::RedisMode::kSentinel) {
    for (const std::string& address : redis.addresses) seeds.push_back({address, ""});
  }
  return seeds;
}

}  // namespace

absl::StatusOr<ordered_json> GlobalBuckets(const BucketQuery& query,
                                           const config::RedisConfig& redis,
                                           const std::vector<NodeAddress>& primaries,
                                           const config::CompiledRules& rules) {
  std::vector<const config::RedisConfig*> clusters = {&redis};
  for (const config::RedisConfig& region : redis.regions) {
    if (region.region != redis.region) clusters.push_back(&region);
  }
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(kGlobalTotalMs);
  GlobalList list;
  absl::Status problem;
  size_t answered = 0;
  for (const config::RedisConfig* const cluster : clusters) {
    if (list.truncated) break;
    const absl::Status status =
        Lister(query, *cluster, rules, end, &list).Run(SeedsOf(*cluster, primaries));
    if (status.ok()) {
      ++answered;
    } else {
      list.unreachable += cluster->shards;
      problem.Update(status);
    }
  }
  if (answered == 0) return problem;
  return ordered_json{{"scope", "global"},
                      {"truncated", list.truncated},
                      {"unreachable_shards", list.unreachable},
                      {"buckets", std::move(list.buckets)}};
}

}  // namespace sluice::admin
