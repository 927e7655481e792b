// Hosts in virtual time: each has real segments, the production reconciler and clients that check
// through the production slot code; all share one LuaRedis through a transport whose messages can
// be delayed and lost. One thread, one clock, every run repeatable by its seed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "daemon/config/calendars.h"
#include "daemon/config/compile.h"
#include "daemon/reconcile/reconciler.h"
#include "lua_scripts.h"
#include "shm/bucket.h"
#include "shm/bucket_name.h"
#include "shm/key_text.h"
#include "shm/log_slot.h"
#include "shm/segment.h"
#include "shm/take.h"
#include "shm/window_slot.h"
#include "tests/support/lua_redis.h"

namespace sluice::test {

inline constexpr uint64_t kSecond = 1'000'000'000;
inline constexpr uint64_t kMs = 1'000'000;

struct VirtualClock {
  static inline uint64_t now_ns = 1000 * kSecond;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

struct Network {
  uint64_t one_way_ns = kMs / 2;
  double lose_request = 0;
  double lose_reply = 0;
  bool cut = false;   // nothing comes through; callers see time-outs
  bool busy = false;  // Redis answers every batch with an error, and applies nothing
  uint64_t timeout_ns = 50 * kMs;
};

struct HostOptions {
  uint64_t capacity = 1024;
  uint32_t shards = 4;
  uint64_t flush_interval_ns = 100 * kMs;
  uint32_t regions = 1;  // others are told to Host::far
  uint64_t exchange_ns = kSecond;
  reconcile::QuotaStore* quotas = nullptr;
  bool has_redis = true;
};

// Another region's Redis, and the way there.
struct Far {
  LuaRedis* redis;
  Network* network;
};

class Host : public reconcile::Transport {
 public:
  Host(int number, const config::Config& config, LuaRedis* redis, Network* network,
       const HostOptions& options = {})
      : options_(options),
        redis_(redis),
        network_(network),
        random_(static_cast<uint64_t>(number) + 100) {
    const shm::LogShape logs = config::LogsFor(config);
    CheckOk(control_.Create({.capacity = options_.capacity,
                             .logs = logs,
                             .shard_count = options_.shards,
                             .grace_ns = 2 * kSecond,
                             .reconciling = true},
                            VirtualClock::now_ns));
    CheckOk(buckets_.Create(options_.capacity, logs));
    SetConfig(config, 1);
    StartReconciler(static_cast<uint64_t>(number) + 1, VirtualClock::now_ns);
  }

  // Another one on the same segments, as a daemon's that was started anew.
  void StartReconciler(uint64_t instance_number, uint64_t use_since_ns) {
    char instance[33];
    snprintf(instance, sizeof instance, "%032llx",
             static_cast<unsigned long long>(instance_number));
    reconciler_ = std::make_unique<reconcile::Reconciler>(
        reconcile::ReconcilerOptions{.shard_count = options_.shards,
                                     .region_count = options_.regions,
                                     .exchange_ns = options_.exchange_ns,
                                     .flush_interval_ns = options_.flush_interval_ns,
                                     .instance = instance,
                                     .use_since_ns = use_since_ns,
                                     .has_redis = options_.has_redis,
                                     .quotas = options_.quotas},
        &buckets_.buckets(), &control_, this,
        [this] { return std::uniform_real_distribution<double>(0, 1)(random_); });
    reconciler_->SetRules(rules_, VirtualClock::now_ns);
  }

  void SetConfig(const config::Config& config, uint64_t seq) {
    absl::StatusOr<std::string> bytes = config::Compile(config, control_.info().hash_key, seq);
    if (!bytes.ok()) abort();
    CheckOk(control_.PublishPolicy(*bytes, VirtualClock::now_ns, nullptr));
    absl::StatusOr<config::CompiledRules> rules = config::CompiledRules::Load(*bytes);
    if (!rules.ok()) abort();
    rules->AddRegions(config);
    rules->AddPrivacy(config);
    rules->AddPenalties(config);
    if (!calendars_.Set(config, VirtualClock::now_ns).ok()) abort();
    rules->AddCalendars(calendars_.tables());
    rules_ = std::make_shared<config::CompiledRules>(*std::move(rules));
    if (reconciler_ != nullptr) reconciler_->SetRules(rules_, VirtualClock::now_ns);
  }

  // By how much Unix time is ahead of the virtual clock from now on, microseconds.
  void SetWallOffset(int64_t offset_us) {
    wall_offset_us_ = offset_us;
    RenewCalendars();
  }
  void RenewCalendars() {
    if (!calendars_.Renew(VirtualClock::now_ns)) return;
    auto rules = std::make_shared<config::CompiledRules>(*rules_);
    rules->AddCalendars(calendars_.tables());
    rules_ = std::move(rules);
    reconciler_->SetRules(rules_, VirtualClock::now_ns);
  }

  // One check of `label` with key `value`, as a client makes it for a class with that floor; in an
  // emergency only where `degraded` says so.
  bool Check(const std::string& label, const std::string& value, uint32_t tokens = 1,
             bool degraded = false, uint16_t floor_q16 = 0) {
    const config::CompiledRule& rule = *rules_->Find(label);
    const shm::Limit limit = shm::Floored(rule.limit, floor_q16, rule.kind);
    const std::string_view values[] = {value};
    const shm::HashKey& key = control_.info().hash_key;
    const uint64_t hash =
        shm::HashOfKind(shm::ShortNameHash(key, rule.hash_seed, values, 1), rule.kind);
    const shm::MappedBuckets& b = buckets_.buckets();
    shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
    const bool is_log = rule.kind == shm::Kind::kSlidingLog;
    if (is_log) {
      table = table.OfLogs(b.slots(), b.geometry().logs, b.counters(), b.log_entries(),
                           shm::logs::TermsOf(rule.limit));
    }
    shm::Charge charge{.cost_ns = shm::CostNs(tokens, rule.limit.period_ns, rule.limit.limit),
                       .tau_ns = limit.tau_ns,
                       .debt_max_ns = limit.debt_max_ns,
                       .tokens = tokens,
                       .dearer_q16 = degraded ? rule.factor_q16 : 0,
                       .commit = true,
                       .kind = rule.kind,
                       .limit = &limit};
    if (rule.calendar_place != 0) {
      charge.ends = control_.header().calendar_ends[rule.calendar_place - 1];
    }
    for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
      bool claimed = false;
      const uint32_t slot =
          table.FindOrClaim(hash, rule.kind, 0,
                            {VirtualClock::now_ns, control_.header().grace_ns.load(),
                             std::max(10 * kSecond, rules_->max_debt_ns())},
                            &claimed);
      if (claimed) {
        char parts[shm::kKeyTextBytes];
        shm::WriteParts(label, values, 1, false, parts);
        shm::StoreText(b.texts()[slot], parts, b.slots()[slot].key);
      }
      shm::RequestTime<VirtualClock> time(false, 0);
      shm::Seen seen;
      const shm::Outcome outcome =
          is_log ? shm::logs::CheckLog(table, slot, hash, &b.second()[slot], charge, /*brief=*/true,
                                       time, &seen)
          : shm::IsWindow(rule.kind)
              ? shm::window::CheckWindow(b.slots()[slot], &b.second()[slot],
                                         shm::FingerprintOf(hash), charge, time, table, &seen)
              : shm::CheckSlot(b.slots()[slot], shm::FingerprintOf(hash), charge, time, table,
                               &seen);
      if (outcome == shm::Outcome::kLost) continue;
      if (outcome == shm::Outcome::kAllowed) {
        const uint64_t delay_ns = rule.max_delay_ns == 0
                                      ? 0
                                      : shm::DelayNs(seen.verdict.new_ns, VirtualClock::now_ns,
                                                     rule.limit.tau_ns, rule.max_delay_ns);
        longest_delay_ns = std::max(longest_delay_ns, delay_ns);
        shm::AddUse(b.slots()[slot], b.dirty(), slot, tokens);
        admitted += tokens;
        return true;
      }
      shm::AddDenied(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, 1);
      return false;
    }
    return false;
  }

  // Delivers what is due, ticks every 10 ms.
  void Advance() {
    const uint64_t now = VirtualClock::now_ns;
    for (size_t i = 0; i < events_.size();) {
      if (events_[i].at_ns > now) {
        ++i;
        continue;
      }
      const Event event = std::move(events_[i]);
      events_.erase(events_.begin() + static_cast<std::ptrdiff_t>(i));
      event.run();
      i = 0;
    }
    if (now >= next_tick_ns_) {
      next_tick_ns_ = now + reconcile::kTickNs;
      RenewCalendars();
      reconciler_->Tick(now);
    }
  }

  // reconcile::Transport
  void Call(uint32_t shard, std::string_view args, uint32_t, uint64_t token) override {
    const std::vector<std::string> argv = DecodeBulks(args);
    const uint64_t now = VirtualClock::now_ns;
    const uint32_t region = PrimaryOf(shard);
    const auto [redis, network] = To(region);
    auto reply = std::make_shared<redis::Reply>();
    auto answered = std::make_shared<bool>(false);
    if (network->busy) {
      At(now + 2 * network->one_way_ns, [this, shard, token, region] {
        reconciler_->OnFailure(shard, token, reconcile::CallOutcome::kRetry, region,
                               VirtualClock::now_ns);
      });
      return;
    }
    const bool arrives = !network->cut && !Chance(network->lose_request);
    const bool returns = arrives && !Chance(network->lose_reply);
    if (arrives) {
      At(now + network->one_way_ns, [this, argv, shard, reply, redis = redis] {
        *reply =
            redis->Eval(lua::kFold, "rl:4:{" + std::to_string(shard % options_.shards) + "}", argv);
      });
    }
    if (returns) {
      At(now + 2 * network->one_way_ns, [this, shard, token, region, reply, answered] {
        *answered = true;
        reconciler_->OnReply(shard, token, *reply, region, VirtualClock::now_ns);
      });
    }
    At(now + network->timeout_ns, [this, shard, token, region, answered] {
      if (*answered) return;
      reconciler_->OnFailure(shard, token, reconcile::CallOutcome::kRetry, region,
                             VirtualClock::now_ns);
    });
  }
  void Ping(uint32_t primary, uint64_t) override {
    const Network* const network = To(primary).network;
    const bool well = !network->cut;
    At(VirtualClock::now_ns + (well ? 2 * network->one_way_ns : network->timeout_ns),
       [this, primary, well] { reconciler_->OnPong(primary, well, false, VirtualClock::now_ns); });
  }
  // One primary in each region.
  uint32_t PrimaryOf(uint32_t shard) const override { return shard / options_.shards; }
  uint32_t primary_count() const override { return options_.regions; }

  // The bucket's slot; null where it has none.
  shm::Slot* SlotOf(const std::string& label, const std::string& value) {
    const config::CompiledRule& rule = *rules_->Find(label);
    const std::string_view values[] = {value};
    const uint64_t hash =
        shm::ShortNameHash(control_.info().hash_key, rule.hash_seed, values, std::size(values));
    const shm::MappedBuckets& b = buckets_.buckets();
    shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
    const uint32_t slot = table.Find(shm::HashOfKind(hash, rule.kind));
    return slot == shm::kNoSlot ? nullptr : &b.slots()[slot];
  }

  reconcile::Reconciler& reconciler() { return *reconciler_; }
  shm::ShardMode Mode(uint32_t shard) const {
    return shm::shard_state::Mode(control_.shard(shard));
  }
  const shm::MappedBuckets& buckets() const { return buckets_.buckets(); }

  std::vector<Far> far;  // of regions 1 and on
  uint64_t admitted = 0;
  uint64_t longest_delay_ns = 0;

 private:
  Far To(uint32_t region) const { return region == 0 ? Far{redis_, network_} : far[region - 1]; }
  struct Event {
    uint64_t at_ns;
    std::function<void()> run;
  };
  static void CheckOk(shm::SegmentStatus status) {
    if (!status.ok()) abort();
  }
  void At(uint64_t at_ns, std::function<void()> run) { events_.push_back({at_ns, std::move(run)}); }
  bool Chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }

  const HostOptions options_;
  LuaRedis* redis_;
  Network* network_;
  std::mt19937_64 random_;
  shm::ControlWriter control_;
  int64_t wall_offset_us_ = 0;
  config::Calendars calendars_{&control_, [this] { return wall_offset_us_; }};
  shm::BucketsOwner buckets_;
  std::shared_ptr<const config::CompiledRules> rules_;
  std::unique_ptr<reconcile::Reconciler> reconciler_;
  std::deque<Event> events_;
  uint64_t next_tick_ns_ = 0;
};

class Fleet {
 public:
  Fleet(int hosts, const config::Config& config) {
    VirtualClock::now_ns = 1000 * kSecond;
    for (int i = 0; i < hosts; ++i) {
      hosts_.push_back(std::make_unique<Host>(i, config, &redis, &network));
    }
  }

  // Runs for `ns` in steps of 1 ms; `step` makes the traffic.
  void Run(
      uint64_t ns, const std::function<void()>& step = [] {}) {
    const uint64_t end = VirtualClock::now_ns + ns;
    while (VirtualClock::now_ns < end) {
      VirtualClock::now_ns += kMs;
      redis.time_us += 1000;
      step();
      for (auto& host : hosts_) host->Advance();
    }
  }

  Host& host(size_t i) { return *hosts_[i]; }
  uint64_t Admitted() const {
    uint64_t n = 0;
    for (const auto& host : hosts_) n += host->admitted;
    return n;
  }
  // Tokens ever counted in Redis: the books' other side.
  int64_t Counted() const {
    int64_t n = 0;
    for (const auto& [key, hash] : redis.data) {
      const auto found = hash.find("s:");
      if (found != hash.end()) n += strtoll(found->second.c_str(), nullptr, 10);
    }
    return n;
  }

  LuaRedis redis;
  Network network;

 private:
  std::vector<std::unique_ptr<Host>> hosts_;
};

}  // namespace sluice::test
