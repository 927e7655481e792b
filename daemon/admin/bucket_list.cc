#include "daemon/admin/bucket_list.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <string_view>
#include <utility>

#include "shm/bucket_name.h"
#include "shm/clock.h"
#include "shm/gcra.h"
#include "shm/key_text.h"
#include "shm/layout.h"
#include "shm/lease_slot.h"
#include "shm/lent_places.h"
#include "shm/log_row.h"
#include "shm/places.h"
#include "shm/slot_table.h"
#include "shm/window.h"

namespace sluice::admin {
namespace {

using nlohmann::ordered_json;

// Longer names are cut: 120 bytes of parts, each escaped to three bytes at worst.
constexpr size_t kMaxNameBytes = 512;
constexpr uint64_t kSlotsPerClockRead = 4096;

// What a slot held at one moment; false when it holds no bucket whose name can be told.
struct Seen {
  uint64_t word = 0;
  uint64_t key = 0;
  char parts[shm::kKeyTextBytes];
  shm::ParsedName name;
};

// The key after the word, whose acquire load pairs with step 4's CAS.
bool Read(const shm::MappedBuckets& buckets, uint64_t slot, Seen* seen) {
  const shm::Slot& s = buckets.slots()[slot];
  seen->word = s.word.load(std::memory_order_acquire);
  seen->key = s.key.load(std::memory_order_acquire);
  if (shm::key::Fp(seen->key) == 0 || shm::word::IsDead(seen->word)) return false;
  return shm::LoadText(buckets.texts()[slot], seen->key, seen->parts) &&
         shm::ParseParts(seen->parts, &seen->name);
}

// What a sliding log's entries leave, and until when they count.
void AddLog(const shm::MappedBuckets& buckets, uint64_t slot, uint16_t gen, const shm::Limit& limit,
            uint64_t now_ns, uint64_t* remaining, uint64_t* reset_ns) {
  const shm::LogShape logs = buckets.geometry().logs;
  shm::logs::Terms terms = shm::logs::TermsOf(limit);
  terms.limit = std::min(terms.limit, logs.entries);
  if (slot >= logs.rows) return;
  const shm::logs::Row<std::atomic<uint64_t>> row = {buckets.log_entries() + slot * logs.entries,
                                                     logs.entries};
  const shm::logs::Tally tally =
      shm::logs::Look(row, terms, gen, now_ns, /*start=*/0, /*enough=*/~0u);
  *remaining = tally.free;
  *reset_ns =
      tally.free == terms.limit ? 0 : shm::logs::FreeAfterNs(terms, tally.newest_us, now_ns);
}

// How many places are held, and by the processes of which pids: of at most so many of these. For
// people: orders nothing.
constexpr size_t kMaxHoldersListed = 16;
void AddPlaces(const shm::MappedBuckets& buckets, uint64_t slot, uint16_t gen,
               const shm::HolderCell* holders, uint64_t* remaining, ordered_json* out) {
  const shm::LogShape shape = buckets.geometry().logs;
  const uint64_t limit = *remaining;
  uint64_t held = 0;
  std::map<uint32_t, uint64_t> by_pid;
  for (uint32_t i = 0; slot < shape.rows && i < shape.entries; ++i) {
    const uint64_t e =
        buckets.log_entries()[slot * shape.entries + i].load(std::memory_order_relaxed);
    if (shm::places::IsFree(e, gen)) continue;
    ++held;
    if (holders == nullptr) continue;  // the load orders nothing
    const uint64_t owner = holders[shm::places::Holder(e)].owner.load(std::memory_order_relaxed);
    ++by_pid[static_cast<uint32_t>(owner)];
  }
  *remaining = limit - std::min(held, limit);
  ordered_json list = ordered_json::array();
  for (const auto& [pid, places] : by_pid) {
    if (list.size() < kMaxHoldersListed) list.push_back({{"pid", pid}, {"places", places}});
  }
  (*out)["held"] = held;
  (*out)["holders"] = std::move(list);
}

// At its end one request's cost has come back. The flag is for people: orders nothing.
double BanLeftS(const shm::Slot& slot, uint64_t word, const config::CompiledRule& rule,
                uint64_t now_ns) {
  const shm::Limit& limit = rule.limit;
  const uint64_t aux = slot.aux.load(std::memory_order_relaxed);
  const uint64_t unit_ns = shm::SharedCostNs(shm::CostNs(rule.cost, limit.period_ns, limit.limit),
                                             shm::aux::InvShare(aux), limit.tau_ns);
  const uint64_t end_ns = word - std::min(word, limit.tau_ns - std::min(limit.tau_ns, unit_ns));
  const bool is_banned = (aux & shm::aux::kBanned) != 0;
  if (!is_banned || end_ns <= now_ns) return 0.0;
  // The limit alone may deny for longer.
  return static_cast<double>(std::min(end_ns - now_ns, rule.penalty.for_ns)) * 1e-9;
}

// Of a limit that holds over all hosts: what this one was lent, and what of it is free.
void AddLent(const shm::MappedBuckets& buckets, uint64_t slot, uint16_t gen, uint64_t second,
             uint64_t now_ns, uint64_t* remaining, ordered_json* out) {
  const uint32_t row_size = buckets.geometry().logs.entries;
  if (slot >= buckets.geometry().logs.rows) return;
  const shm::logs::Row<std::atomic<uint64_t>> row = {buckets.log_entries() + slot * row_size,
                                                     row_size};
  const shm::places::Stock stock =
      shm::places::LookAt(row, gen, shm::places::cap::Places(second, gen, now_ns));
  (*out)["lent"] = stock.counted();
  *remaining = std::min<uint64_t>(*remaining, stock.counted() - stock.held);
}

// Counts for people: orders nothing.
void AddState(const shm::MappedBuckets& buckets, uint64_t slot, const Seen& seen,
              const config::CompiledRule& rule, const shm::HolderCell* holders, uint64_t now_ns,
              ordered_json* out) {
  const shm::Limit limit = rule.LimitOf(seen.name.label);
  const uint64_t used = buckets.slots()[slot].used.load(std::memory_order_relaxed);
  const uint64_t denied = buckets.denied()[slot].load(std::memory_order_relaxed);
  const uint16_t gen = shm::key::Gen(seen.key);
  uint64_t remaining = shm::Remaining(limit, seen.word, now_ns, /*dearer_q16=*/0);
  uint64_t reset_ns = shm::ResetAfterNs(seen.word, now_ns);
  uint64_t pending = shm::denied::Gen(denied) == gen ? shm::denied::Count(denied) : 0;
  const uint64_t second = buckets.second()[slot].load(std::memory_order_relaxed);
  if (shm::IsWindow(rule.kind)) {
    shm::window::Terms terms = shm::window::TermsOf(rule.kind, limit.limit, limit.period_ns);
    std::atomic<uint64_t> ends[shm::kCalendarEnds] = {};
    if (rule.calendar != nullptr) {
      const auto& entries = rule.calendar->entries();
      for (size_t i = 1; i < entries.size() && i <= shm::kCalendarEnds; ++i) {
        ends[i - 1] = entries[i].end_ns;
      }
      terms.ends = ends;
    }
    const shm::window::Measured m =
        shm::window::Measure(rule.kind, terms, seen.word, second,
                             /*has_second=*/true, gen, now_ns, /*tokens=*/0, /*dearer_q16=*/0);
    remaining = m.remaining;
    reset_ns = m.reset_after_ns;
  } else if (rule.kind == shm::Kind::kSlidingLog) {
    AddLog(buckets, slot, gen, limit, now_ns, &remaining, &reset_ns);
  } else if (rule.kind == shm::Kind::kInFlight) {
    remaining = limit.limit;
    reset_ns = 0;
    AddPlaces(buckets, slot, gen, holders, &remaining, out);
    if (rule.strict) AddLent(buckets, slot, gen, second, now_ns, &remaining, out);
  } else if (rule.kind == shm::Kind::kLease) {
    const shm::credits::Measured m =
        shm::credits::Measure(seen.word, second, gen, now_ns, /*tokens=*/0, limit);
    remaining = m.remaining;
    reset_ns = m.reset_after_ns;
    pending = shm::wanted::Tokens(pending);
    const uint64_t end_ns = shm::credits::ExpiryNs(seen.word);
    const uint64_t more_ns = shm::credits::second::TimeNs(second, gen);
    (*out)["consistency"] = rule.strict ? "strict" : "overdraft";
    (*out)["held_for_s"] =
        m.remaining == 0 || end_ns < now_ns ? 0.0 : static_cast<double>(end_ns - now_ns) * 1e-9;
    (*out)["more_in_s"] = more_ns <= now_ns ? 0.0 : static_cast<double>(more_ns - now_ns) * 1e-9;
  }
  if (rule.penalty.is_any()) {
    (*out)["banned_for_s"] = BanLeftS(buckets.slots()[slot], seen.word, rule, now_ns);
  }
  AddTerms(rule, limit, remaining, out);
  (*out)["reset_after_s"] = static_cast<double>(reset_ns) * 1e-9;
  (*out)["unreconciled_tokens"] = shm::used::Gen(used) == gen ? shm::used::Count(used) : 0;
  (*out)["denied_pending"] = pending;
}

}  // namespace

void AddTerms(const config::CompiledRule& rule, const shm::Limit& limit, uint64_t remaining,
              ordered_json* out) {
  (*out)["algorithm"] = config::AlgorithmName(rule.kind, rule.max_delay_ns);
  (*out)["remaining"] = remaining;
  (*out)["limit"] = limit.limit;
  (*out)["period_ns"] = rule.kind == shm::Kind::kInFlight ? 0 : limit.period_ns;
  (*out)["burst"] = limit.burst;
  (*out)["denying"] = remaining < rule.cost;
}

ordered_json LocalBuckets(const BucketQuery& query, const shm::MappedBuckets& buckets,
                          const shm::SegmentInfo& info, const shm::HolderCell* holders,
                          const config::CompiledRules& rules, uint64_t now_ns) {
  ordered_json list = ordered_json::array();
  bool truncated = false;
  for (uint64_t slot = 0; slot < buckets.capacity(); ++slot) {
    if (slot % kSlotsPerClockRead == 0 &&
        shm::MonotonicClock::PreciseNs() > now_ns + kBucketScanNs) {
      truncated = true;
      break;
    }
    Seen seen;
    if (!Read(buckets, slot, &seen)) continue;
    const config::CompiledRule* rule = rules.Find(seen.name.label);
    // A text that does not hash to its slot's fingerprint was written by nobody in order.
    if (rule != nullptr &&
        shm::FingerprintOf(rule->HashOf(seen.name, info.hash_key)) != shm::key::Fp(seen.key)) {
      continue;
    }
    char text[kMaxNameBytes];
    const size_t n =
        shm::WriteNameText(seen.name.label, seen.name.values, seen.name.count, text, sizeof text);
    const std::string_view plain(text, std::min(n, sizeof text));
    const bool is_private = rule != nullptr && rule->privacy != nullptr;
    const std::string name =
        is_private ? config::OuterName(seen.name, *rule->privacy, 0) : std::string(plain);
    // Whoever knows the value finds the bucket by it.
    if (!name.starts_with(query.prefix) && !plain.starts_with(query.prefix)) continue;
    if (list.size() >= query.limit) {
      truncated = true;
      break;
    }
    ordered_json bucket = {{"name", name},
                           {"rule", std::string(seen.name.label)},
                           {"shard", shm::ShardOf(plain, info.shard_count)}};
    if (rule != nullptr) AddState(buckets, slot, seen, *rule, holders, now_ns, &bucket);
    list.push_back(std::move(bucket));
  }
  return {{"scope", "local"}, {"truncated", truncated}, {"buckets", list}};
}

}  // namespace sluice::admin
