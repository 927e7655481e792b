#include "daemon/harvest/harvester.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "shm/key_text.h"
#include "shm/log.h"
#include "shm/take.h"

namespace sluice::harvest {
namespace {

// Percent-encoding may triple a value.
constexpr size_t kMaxTextBytes = 3 * shm::kKeyTextBytes + shm::kMaxLabelBytes + 16;
constexpr uint64_t kSecondNs = 1'000'000'000;
// Denials by class are for people, and looked at no more often.
constexpr uint64_t kClassesNs = 100'000'000;
// What is asked for ahead fits the first cache: some five lines for each.
constexpr size_t kTakenTogether = 64;
constexpr uint64_t kLineWords = 8;

// The most that a bucket can have admitted in `elapsed_ns`, debt included; never less than 1. Of a
// window a limit for each length that has passed, and for one that had begun and one that has not
// ended: its debt_max is two lengths.
int64_t MaxTokens(const config::CompiledRule& rule, uint64_t elapsed_ns) {
  const shm::Limit& limit = rule.most;
  const uint64_t span_ns = limit.tau_ns + limit.debt_max_ns + elapsed_ns;
  // What comes in single tokens takes the interval, which is rounded up; what comes in one, less.
  const unsigned __int128 at_once = static_cast<unsigned __int128>(span_ns) * limit.limit /
                                    std::max<uint64_t>(limit.period_ns, 1);
  const uint64_t by_rate =
      std::max(span_ns / std::max<uint64_t>(limit.interval_ns, 1),
               static_cast<uint64_t>(std::min<unsigned __int128>(at_once, uint64_t{1} << 46))) +
      1;
  const bool open =
      rule.mode == shm::DegradedMode::kOpen || rule.then_mode == shm::DegradedMode::kOpen;
  const uint64_t by_clients =
      open ? kMaxOpenTokensPerSecond * (elapsed_ns / kSecondNs + 1) : uint64_t{0};
  return static_cast<int64_t>(std::min<uint64_t>(std::max(by_rate, by_clients), uint64_t{1} << 46));
}

}  // namespace

Harvester::Harvester(const shm::MappedBuckets* buckets, const shm::HashKey& hash_key,
                     uint32_t shard_count, uint64_t use_since_ns)
    : buckets_(buckets),
      hash_key_(hash_key),
      shard_count_(shard_count),
      known_(buckets->capacity()),
      use_since_ns_(use_since_ns),
      sweep_ns_(
          std::clamp(buckets->capacity() / kSweepSlots * kSweepNs, kSweepNs, kLongestSweepNs)) {}

void Harvester::SetRules(std::shared_ptr<const config::CompiledRules> rules) {
  rules_ = std::move(rules);
  for (Known& known : known_) known.key = 0;
}

size_t Harvester::Harvest(uint64_t now_ns, Sink& sink) {
  if (rules_ == nullptr) return 0;
  if (started_ns_ == 0) started_ns_ = now_ns;
  std::atomic<uint64_t>* const dirty = buckets_->dirty();
  uint32_t slots[kTakenTogether];
  size_t n = 0;
  size_t taken = 0;
  const uint64_t words = buckets_->dirty_words();
  for (uint64_t w = 0; w < words; ++w) {
    // At rest nearly all is clean: a line of the bitmap at a time.
    if (w % kLineWords == 0 && w + kLineWords <= words && !shm::IsAnyDirty(&dirty[w], kLineWords)) {
      w += kLineWords - 1;
      continue;
    }
    for (uint64_t bits = shm::TakeDirty(dirty[w]); bits != 0; bits &= bits - 1) {
      slots[n] = static_cast<uint32_t>(w * 64 + static_cast<uint64_t>(std::countr_zero(bits)));
      Ask(slots[n]);
      if (++n < kTakenTogether) continue;
      TakeSlots(slots, now_ns, sink);
      taken += std::exchange(n, 0);
    }
  }
  TakeSlots({slots, n}, now_ns, sink);
  TakeClasses(now_ns, sink);
  return taken + n;
}

// With many buckets each take would wait for four lines, one after the other. So the lines of many
// slots are asked for first, however far apart these stand; then those of the books, whose place
// only the first lines tell; then the slots are taken from.
void Harvester::Ask(uint32_t slot) const {
  __builtin_prefetch(&known_[slot]);
  __builtin_prefetch(&buckets_->slots()[slot], 1);
  __builtin_prefetch(&buckets_->denied()[slot]);
}

void Harvester::TakeSlots(std::span<const uint32_t> slots, uint64_t now_ns, Sink& sink) {
  for (const uint32_t slot : slots) {
    if (known_[slot].key != 0) sink.Expect(known_[slot].bucket);
  }
  for (const uint32_t slot : slots) {
    shm::ClearDirty(buckets_->slots()[slot]);
    TakeSlot(slot, now_ns, sink);
  }
}

// The key's load pairs with step 3's CAS, or what marked the slot dirty has handed it on. The wish
// for a text orders nothing.
void Harvester::TakeSlot(uint32_t slot, uint64_t now_ns, Sink& sink) {
  shm::Slot& s = buckets_->slots()[slot];
  const uint64_t key = s.key.load(std::memory_order_acquire);
  if (shm::key::Fp(key) == 0) return;
  if (known_[slot].key != key && !Resolve(slot, key, now_ns, sink)) {
    // Its use stays where it is; the next check of the key writes the text and marks it dirty.
    s.aux.fetch_or(shm::aux::kTextWanted, std::memory_order_relaxed);
    return;
  }
  Known& known = known_[slot];
  const config::CompiledRule* rule = rules_->ById(known.rule);
  if (rule == nullptr) return;
  const uint64_t elapsed_ns = now_ns - std::min(known.taken_ns, now_ns);
  int64_t tokens = shm::TakeUse(s, key);
  if (tokens > 1 || tokens < -1) {  // one token is always believed, and spares the divisions
    const int64_t most = MaxTokens(*rule, elapsed_ns);
    tokens = std::clamp(tokens, -most, most);
  }
  uint64_t denied = shm::TakeDenied(buckets_->denied()[slot], key);
  uint64_t need = 1;
  if (rule->is_lent()) {
    need = std::clamp<uint64_t>(shm::wanted::Largest(denied), 1, rule->limit.burst);
    denied = shm::wanted::Tokens(denied);
  }
  if (denied > kMaxOpenTokensPerSecond) {
    denied = std::min(denied, kMaxOpenTokensPerSecond * (elapsed_ns / kSecondNs + 1));
  }
  if (tokens == 0 && denied == 0) return;
  was_used_ = is_used_ = true;
  known.taken_ns = now_ns;
  sink.OnUse(known.bucket, tokens, denied, need);
}

bool Harvester::ReadName(uint32_t slot, uint64_t key, char (&parts)[shm::kKeyTextBytes],
                         shm::ParsedName* name) const {
  return shm::LoadText(buckets_->texts()[slot], key, parts) && shm::ParseParts(parts, name);
}

bool Harvester::Resolve(uint32_t slot, uint64_t key, uint64_t now_ns, Sink& sink) {
  char parts[shm::kKeyTextBytes];
  shm::ParsedName name;
  if (!ReadName(slot, key, parts, &name)) return false;
  const config::CompiledRule* rule = rules_->Find(name.label);
  if (rule == nullptr) return false;  // of a rule that is gone: it expires where it stands
  if (!name.is_folded && name.count != rule->key_count) return false;
  if (shm::FingerprintOf(rule->HashOf(name, hash_key_)) != shm::key::Fp(key)) return false;
  char text[kMaxTextBytes];
  const size_t n = shm::WriteNameText(name.label, name.values, name.count, text, sizeof text);
  Named named;
  named.text.assign(text, std::min(n, sizeof text));
  named.shard = shm::ShardOf(named.text, shard_count_);
  named.rule = rule;
  if (rule->privacy != nullptr) named.wire = config::WireName(name, *rule->privacy);
  Known& known = known_[slot];
  // What a tenancy met for the first time may have admitted: at the start all that came while no
  // daemon ran, later what came since the last whole sweep.
  if (known.taken_ns == 0) {
    const uint64_t longest_ns = kIdleSweeps * sweep_ns_;
    known.taken_ns = now_ns - std::min(now_ns, longest_ns);
    if (now_ns < started_ns_ + longest_ns) known.taken_ns = std::min(known.taken_ns, use_since_ns_);
  }
  known.rule = rule->id;
  known.bucket = sink.OnBucket({slot, key}, std::move(named));
  known.key = key;
  return true;
}

void Harvester::Sweep(uint64_t now_ns, const shm::SlotTable<std::atomic<uint64_t>>::Env& env,
                      Sink& sink) {
  if (rules_ == nullptr) return;
  const uint64_t capacity = buckets_->capacity();
  if (swept_ns_ == 0) swept_ns_ = now_ns;
  const uint64_t sweep_ns = was_used_ ? sweep_ns_ : kIdleSweeps * sweep_ns_;
  const uint64_t elapsed_ns = std::min(now_ns - std::min(now_ns, swept_ns_), sweep_ns);
  uint64_t due =
      static_cast<uint64_t>(static_cast<double>(capacity) * static_cast<double>(elapsed_ns) /
                            static_cast<double>(sweep_ns));
  if (due == 0) return;
  swept_ns_ = now_ns;
  for (; due > 0; --due) {
    SweepSlot(static_cast<uint32_t>(sweep_at_), env, sink);
    if (++sweep_at_ < capacity) continue;
    sweep_at_ = 0;
    live_buckets_ = std::exchange(live_seen_, 0);
    was_used_ = std::exchange(is_used_, false);
    SweepOverflow(sink);
  }
}

// The key after the word, whose acquire load pairs with step 4's CAS. What is relaxed only says
// where to look, and orders nothing: TakeUse looks again.
void Harvester::SweepSlot(uint32_t slot, const shm::SlotTable<std::atomic<uint64_t>>::Env& env,
                          Sink& sink) {
  shm::Slot& s = buckets_->slots()[slot];
  shm::SlotTable<std::atomic<uint64_t>> table(buckets_->slots(), buckets_->capacity(),
                                              buckets_->counters());
  const uint64_t w = s.word.load(std::memory_order_acquire);
  if (shm::word::IsDead(w)) {
    // A time in the future was made by nobody in order: settled at once.
    const uint64_t dead_ns = shm::word::DeadTimeUs(w) * 1000;
    if (dead_ns + kStalledClaimNs < env.now_ns || dead_ns > env.now_ns + env.max_debt_ns) {
      table.Settle(slot, w, env.now_ns);
    }
    return;
  }
  const uint64_t key = s.key.load(std::memory_order_acquire);
  if (shm::key::Fp(key) == 0) return;
  const bool expired = w + env.grace_ns <= env.now_ns || w > env.now_ns + env.max_debt_ns;
  if (!expired) ++live_seen_;
  const uint64_t u = s.used.load(std::memory_order_relaxed);
  const uint64_t d = buckets_->denied()[slot].load(std::memory_order_relaxed);
  const bool left = (shm::used::Gen(u) == shm::key::Gen(key) && shm::used::Count(u) != 0) ||
                    (shm::denied::Gen(d) == shm::key::Gen(key) && shm::denied::Count(d) != 0);
  if (left && (s.aux.load(std::memory_order_seq_cst) & shm::aux::kDirty) == 0) {
    TakeSlot(slot, env.now_ns, sink);
  } else if (left && (buckets_->dirty()[slot / 64].load(std::memory_order_relaxed) >> (slot % 64) &
                      1) == 0) {
    shm::ClearDirty(s);  // the flag without its bit: a client was killed between the two
    TakeSlot(slot, env.now_ns, sink);
  }
  uint16_t& alone_gen = known_[slot].alone_gen;
  if (!expired && alone_gen != shm::key::Gen(key) && ResolveDuplicates(slot, key, env)) {
    alone_gen = shm::key::Gen(key);
  }
}

// False where the slot's name cannot be read (yet).
bool Harvester::ResolveDuplicates(uint32_t slot, uint64_t key,
                                  const shm::SlotTable<std::atomic<uint64_t>>::Env& env) {
  char parts[shm::kKeyTextBytes];
  shm::ParsedName name;
  if (!ReadName(slot, key, parts, &name)) return false;
  const config::CompiledRule* rule = rules_->Find(name.label);
  if (rule == nullptr) return false;
  const uint64_t hash = rule->HashOf(name, hash_key_);
  using Table = shm::SlotTable<std::atomic<uint64_t>>;
  Table table(buckets_->slots(), buckets_->capacity(), buckets_->counters());
  if (rule->kind == shm::Kind::kSlidingLog && buckets_->geometry().logs.rows != 0) {
    table = Table::OfLogs(buckets_->slots(), buckets_->geometry().logs, buckets_->counters(),
                          buckets_->log_entries(), shm::logs::TermsOf(rule->limit));
  } else if (rule->kind == shm::Kind::kInFlight && buckets_->geometry().logs.rows != 0) {
    table = Table::OfPlaces(buckets_->slots(), buckets_->geometry().logs, buckets_->counters(),
                            buckets_->log_entries(), rule->limit.limit);
  }
  if (shm::FingerprintOf(hash) == shm::key::Fp(key) && table.Find(hash) != slot) {
    table.ResolveDuplicates(hash, env);
  }
  return true;
}

// The look at a cell that is empty orders nothing: what it misses is taken next time.
void Harvester::TakeClasses(uint64_t now_ns, Sink& sink) {
  if (now_ns < classes_taken_ns_ + kClassesNs) return;
  const uint64_t elapsed_ns = now_ns - std::exchange(classes_taken_ns_, now_ns);
  const uint64_t most = kMaxOpenTokensPerSecond * (std::min(elapsed_ns, kSweepNs) / kSecondNs + 1);
  for (const config::CompiledClass& c : rules_->classes()) {
    std::atomic<uint64_t>& cell = buckets_->class_denied()[c.cell];
    if (shm::denied::Count(cell.load(std::memory_order_relaxed)) == 0) continue;
    const uint64_t denied = shm::TakeDenied(cell, c.tag);
    if (denied != 0) sink.OnClassDenied(c, std::min(denied, most));
  }
}

void Harvester::SweepOverflow(Sink& sink) {
  // These slots have no claims; the load orders nothing.
  for (uint32_t i = 0; i < rules_->rules().size() && i < shm::kMaxRules; ++i) {
    shm::Slot& s = buckets_->overflow()[i];
    const uint64_t key = s.key.load(std::memory_order_acquire);
    const int64_t tokens = shm::TakeUse(s, key);
    if (tokens > 0) sink.OnOverflow(static_cast<uint16_t>(i), tokens);
  }
}

}  // namespace sluice::harvest
