// The daemon's way from dirty slots to packed batches, without the network: the reconciler's ticks,
// while of a million live buckets 100,000 are used in each second, once. Beside it a loop that
// takes as much use and writes arguments of the same form, and knows nothing of rules, outages or
// other hosts.
#include <benchmark/benchmark.h>

#include <bit>
#include <charconv>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/paired.h"
#include "bench/stage.h"
#include "daemon/reconcile/reconciler.h"
#include "shm/bucket_name.h"
#include "shm/clock.h"
#include "shm/key_text.h"
#include "shm/take.h"

namespace sluice::bench {
namespace {

constexpr uint64_t kBuckets = 1'000'000;
constexpr uint64_t kSlots = 1 << 21;
constexpr uint64_t kUsedPerS = 100'000;
constexpr uint64_t kPerTick = kUsedPerS / (1'000'000'000 / reconcile::kTickNs);
constexpr uint64_t kIntervalNs = 100'000'000;
// A bucket owes a minute after each use: none takes another's slot.
constexpr char kRule[] = "rules:\n  - {name: live, key: [id], limit: 1 per 60s, burst: 100000}\n";
static_assert(kBuckets % kPerTick == 0);

// A client that uses each bucket once per round, in an order that is new in each round: else those
// that are used together would stand together in the daemon's books.
class Users {
 public:
  explicit Users(const std::string& runtime_dir) : client_(OpenClient(runtime_dir, "harvest")) {
    Require(sluice_rule_bind(client_, "live", &rule_) == 0, "no rule");
    names_.resize(kBuckets, std::string(kKey, kKeyBytes));
    for (uint64_t i = 0; i < kBuckets; ++i) {
      const std::string number = std::to_string(1'000'000 + i);
      names_[i].replace(0, number.size(), number);
    }
    for (const std::string& name : names_) keys_.push_back({name.data(), name.size()});
  }
  ~Users() {
    sluice_rule_free(rule_);
    sluice_close(client_);
  }
  Users(const Users&) = delete;
  Users& operator=(const Users&) = delete;

  void UseSome() {
    if (at_ == 0) std::shuffle(keys_.begin(), keys_.end(), random_);
    sluice_rule_check_many(rule_, &keys_[at_], kPerTick, 1, results_, nullptr);
    at_ = (at_ + kPerTick) % kBuckets;
  }

 private:
  sluice_t* const client_;
  sluice_rule_t* rule_ = nullptr;
  std::vector<std::string> names_;
  std::vector<sluice_key_t> keys_;
  int results_[kPerTick];
  std::mt19937_64 random_{1};  // the same order in each run
  uint64_t at_ = 0;
};

// Takes batches as the real one does, by copy, and answers when it is told to.
class Packed : public reconcile::Transport {
 public:
  void Call(uint32_t shard, std::string_view args, uint32_t arg_count, uint64_t token) override {
    out_.append(args);
    calls_.push_back({shard, (arg_count - kHeadArgs) / 8, token});
  }
  void Ping(uint32_t, uint64_t) override { pinged_ = true; }
  uint32_t PrimaryOf(uint32_t) const override { return 0; }
  uint32_t primary_count() const override { return 1; }

  // As fold.lua answers a host that is alone.
  void Answer(reconcile::Reconciler& reconciler, uint64_t now_ns) {
    out_.clear();
    for (const auto& [shard, count, token] : std::exchange(calls_, {})) {
      reply_.elements.assign(4 + 3 * count, Number(0));
      reply_.elements[0] = Number(1);
      reply_.elements[1] = Number(static_cast<int64_t>(token));
      reply_.elements[2] = Number(static_cast<int64_t>(now_ns / 1000));
      for (size_t i = 0; i < count; ++i) {
        reply_.elements[4 + 3 * i] = Number(kDebtUs);
        reply_.elements[4 + 3 * i + 2] = Number(1);
      }
      reconciler.OnReply(shard, token, reply_, 0, now_ns);
    }
    if (std::exchange(pinged_, false)) reconciler.OnPong(0, true, false, now_ns);
  }

 private:
  static constexpr int64_t kDebtUs = 60'000'000;
  static constexpr uint32_t kHeadArgs = 10;  // one limit: see batch.cc
  struct Sent {
    uint32_t shard;
    uint32_t count;
    uint64_t token;
  };
  static redis::Reply Number(int64_t value) {
    return {.kind = redis::Reply::Kind::kInteger, .integer = value, .text = {}, .elements = {}};
  }

  std::string out_;  // where the connection's buffer would be
  std::vector<Sent> calls_;
  redis::Reply reply_ = {
      .kind = redis::Reply::Kind::kArray, .integer = 0, .text = {}, .elements = {}};
  bool pinged_ = false;
};

// The floor: one line of books per slot, its text included, and one growing string per shard.
class Floor {
 public:
  Floor(const shm::MappedBuckets& buckets, uint32_t shards, uint64_t cost_ns)
      : buckets_(buckets), cost_ns_(cost_ns), lines_(buckets.capacity()), packed_(shards) {
    for (uint32_t slot = 0; slot < buckets.capacity(); ++slot) Learn(slot);
  }

  // Returns how many buckets it took.
  uint64_t Run(uint64_t now_ns) {
    uint64_t taken = 0;
    for (uint64_t w = 0; w < buckets_.dirty_words(); ++w) {
      uint64_t bits = shm::TakeDirty(buckets_.dirty()[w]);
      for (uint64_t left = bits; left != 0; left &= left - 1) {
        const uint64_t slot = w * 64 + static_cast<uint64_t>(std::countr_zero(left));
        __builtin_prefetch(&buckets_.slots()[slot], 1);
        __builtin_prefetch(&buckets_.denied()[slot]);
        __builtin_prefetch(&lines_[slot], 1);
      }
      for (; bits != 0; bits &= bits - 1, ++taken) {
        Take(static_cast<uint32_t>(w * 64 + static_cast<uint64_t>(std::countr_zero(bits))), now_ns);
      }
    }
    out_.clear();
    for (std::string& packed : packed_) {
      out_.append(packed);  // onto the connection
      packed.clear();
    }
    return taken;
  }

 private:
  struct alignas(64) Line {
    uint64_t key;
    uint32_t taken_ms;
    uint32_t said_milli;
    uint16_t shard;
    uint16_t text_bytes;
    char text[44];
  };
  static_assert(sizeof(Line) == 64);

  void Learn(uint32_t slot) {
    const uint64_t key = buckets_.slots()[slot].key.load(std::memory_order_acquire);
    char parts[shm::kKeyTextBytes];
    shm::ParsedName name;
    if (shm::key::Fp(key) == 0 || !shm::LoadText(buckets_.texts()[slot], key, parts) ||
        !shm::ParseParts(parts, &name)) {
      return;
    }
    Line& line = lines_[slot];
    const size_t n = shm::WriteNameText(name.label, name.values, name.count, line.text, 44);
    Require(n <= sizeof line.text, "a name too long for the floor");
    line.key = key;
    line.text_bytes = static_cast<uint16_t>(n);
    line.shard =
        static_cast<uint16_t>(shm::ShardOf({line.text, n}, static_cast<uint32_t>(packed_.size())));
  }

  void Take(uint32_t slot, uint64_t now_ns) {
    shm::Slot& s = buckets_.slots()[slot];
    Line& line = lines_[slot];
    shm::ClearDirty(s);
    const int64_t tokens = shm::TakeUse(s, line.key);
    const uint64_t denied = shm::TakeDenied(buckets_.denied()[slot], line.key);
    if (tokens == 0 && denied == 0) return;
    const uint64_t attempts = static_cast<uint64_t>(tokens) + denied;
    const auto now_ms = static_cast<uint32_t>(now_ns / 1'000'000);
    const uint32_t demand_milli =
        static_cast<uint32_t>(attempts * 1'000'000 / std::max(now_ms - line.taken_ms, 1u));
    // At most the text and 6 numbers of up to 20 digits, each with its length.
    char text[256];
    char* at = Bulk(text, {line.text, line.text_bytes});
    at = Put(at, "$1\r\n1\r\n");  // which limit
    at = BulkNumber(at, static_cast<uint64_t>(tokens) * cost_ns_ / 1000);
    at = BulkNumber(at, static_cast<uint64_t>(tokens));
    at = Put(at, "$1\r\n0\r\n");  // fresh
    at = BulkNumber(at, demand_milli);
    at = BulkNumber(at, line.said_milli);
    at = Put(at, "$1\r\n0\r\n");  // the generation
    packed_[line.shard].append(text, static_cast<size_t>(at - text));
    line.taken_ms = now_ms;
    line.said_milli = demand_milli;
  }

  static char* Put(char* at, std::string_view bytes) {
    std::memcpy(at, bytes.data(), bytes.size());
    return at + bytes.size();
  }
  static char* Bulk(char* at, std::string_view bytes) {
    *at++ = '$';
    at = std::to_chars(at, at + 20, bytes.size()).ptr;
    return Put(Put(Put(at, "\r\n"), bytes), "\r\n");
  }
  static char* BulkNumber(char* at, uint64_t value) {
    char digits[20];
    const char* const end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    return Bulk(at, {digits, static_cast<size_t>(end - digits)});
  }

  const shm::MappedBuckets& buckets_;
  const uint64_t cost_ns_;
  std::vector<Line> lines_;          // by slot
  std::vector<std::string> packed_;  // by shard
  std::string out_;
};

// A host whose daemon's time goes on by a tick at each harvest, whatever that took.
class Host {
 public:
  Host()
      : served_(kRule, {.capacity = kSlots, .reconciling = true}),
        users_(served_.dir()),
        reconciler_({.shard_count = served_.control().info().shard_count,
                     .flush_interval_ns = kIntervalNs,
                     .instance = std::string(32, 'b'),
                     .use_since_ns = now_ns_},
                    &served_.buckets(), &served_.control(), &packed_, [] { return 0.5; }) {
    reconciler_.SetRules(std::make_shared<const config::CompiledRules>(served_.rules()), now_ns_);
    for (uint64_t i = 0; i < kBuckets / kPerTick; ++i) Harvest();  // all buckets are known
    floor_ = std::make_unique<Floor>(served_.buckets(), served_.control().info().shard_count,
                                     served_.rules().Find("live")->limit.interval_ns);
  }

  // The tick's CPU time per bucket, in ns.
  double Harvest() {
    users_.UseSome();
    now_ns_ += reconcile::kTickNs;
    const uint64_t used = reconciler_.stats().harvested_tokens;
    const uint64_t begin_ns = ThreadCpuNs();
    reconciler_.Tick(now_ns_);
    const uint64_t took_ns = ThreadCpuNs() - begin_ns;
    packed_.Answer(reconciler_, now_ns_);
    return PerBucket(took_ns, reconciler_.stats().harvested_tokens - used);
  }
  double HarvestFloor() {
    users_.UseSome();
    const uint64_t begin_ns = ThreadCpuNs();
    const uint64_t taken = floor_->Run(now_ns_);
    const uint64_t took_ns = ThreadCpuNs() - begin_ns;
    return PerBucket(took_ns, taken);
  }
  uint64_t batched() const { return reconciler_.stats().batched_buckets; }

 private:
  // A handful of keys finds all eight of its slots taken, and is answered by the rule's overflow.
  static double PerBucket(uint64_t took_ns, uint64_t buckets) {
    Require(buckets <= kPerTick && buckets >= kPerTick - kPerTick / 100, "use was not harvested");
    return static_cast<double>(took_ns) / static_cast<double>(buckets);
  }

  uint64_t now_ns_ = shm::MonotonicClock::PreciseNs();
  test::ServedSegments served_;
  Users users_;
  Packed packed_;
  reconcile::Reconciler reconciler_;
  std::unique_ptr<Floor> floor_;
};

void Harvest(benchmark::State& state) {
  static Host* const host = new Host;
  const uint64_t batched = host->batched();
  std::vector<double> ns;
  std::vector<double> floor_ns;
  for ([[maybe_unused]] auto _ : state) {
    ns.push_back(host->Harvest());
    floor_ns.push_back(host->HarvestFloor());
    state.SetIterationTime(ns.back() * kPerTick * 1e-9);
  }
  // What waits for the next tick is less than a batch of each shard.
  const uint64_t due = ns.size() * (kPerTick - kPerTick / 100);
  Require(host->batched() - batched + 16 * reconcile::kFlushBuckets >= due,
          "harvested buckets were not packed");
  state.counters["ns"] = Median(std::move(ns));
  state.counters["floor_ns"] = Median(std::move(floor_ns));
}

BENCHMARK(Harvest)->Name("harvest")->UseManualTime();

}  // namespace
}  // namespace sluice::bench
