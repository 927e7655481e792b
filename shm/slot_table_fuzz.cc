// A bucket segment that anybody may have written, under all that reads and mends it: checks,
// claims, the daemon's take, fold and sweep. Whatever the bytes, each call comes to its end, and a
// burst time after the last of them a bucket admits its burst again, no token more or less. One key
// is of a token bucket, one of a fixed and one of a sliding window.
//
// An input is a list of steps, a letter each with its arguments; see Step. Digits are slots and
// values, so that seeds can be written by hand.
#include "shm/slot_table.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>

#include "shm/bucket.h"
#include "shm/fuzz_input.h"
#include "shm/hash.h"
#include "shm/take.h"
#include "shm/window_slot.h"

namespace sluice::shm {
namespace {

using Cell = std::atomic<uint64_t>;
using Table = SlotTable<Cell>;
using fuzz::Input;
using fuzz::Require;

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kStartNs = 100 * kSecondNs;
constexpr uint64_t kGraceNs = kSecondNs;
constexpr size_t kKeys = 3;          // that share both groups
constexpr size_t kMaxSteps = 256;    // of one input
constexpr int kChecksThatMend = 50;  // more than one mends whatever stands there
constexpr uint64_t kBurst = 10;

const Limit kTen = MakeLimit(10, kSecondNs, kBurst);
const Limit kTenInAWindow = window::MakeLimit(kBurst, kSecondNs);
const uint64_t kMaxDebtNs =
    std::max(kTen.tau_ns + kTen.debt_max_ns, kTenInAWindow.tau_ns + kTenInAWindow.debt_max_ns);
constexpr Kind kKinds[kKeys] = {Kind::kTokenBucket, Kind::kFixedWindow, Kind::kSlidingWindow};

struct FuzzClock {
  static inline uint64_t now_ns = kStartNs;
  static inline uint64_t lag_ns = 0;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns - lag_ns; }
};

// Keys of one neighbourhood, found once.
std::array<uint64_t, kKeys> MakeKeys() {
  const Table table(nullptr, kMinCapacity, nullptr);
  std::array<uint64_t, kKeys> keys{};
  uint64_t state = 1;
  keys[0] = SplitMix64(state);
  for (size_t found = 1; found < kKeys;) {
    const uint64_t h = SplitMix64(state);
    if (table.FirstGroup(h) != table.FirstGroup(keys[0])) continue;
    if (table.SecondGroup(h) == table.SecondGroup(keys[0])) keys[found++] = h;
  }
  return keys;
}

class Segment {
 public:
  Segment() : keys_(MakeKeys()), table_(slots_, kMinCapacity, counters_) {
    for (uint32_t i = 0; i < kGroupSlots; ++i) {
      places_[i] = table_.FirstGroup(keys_[0]) + i;
      places_[kGroupSlots + i] = table_.SecondGroup(keys_[0]) + i;
    }
  }

  void Reset() {
    for (Slot& slot : slots_) {
      slot.word = slot.key = slot.aux = 0;
      slot.used = used::Make(0, 0);
    }
    for (Cell& cell : denied_) cell = 0;
    for (Cell& cell : second_) cell = 0;
    dirty_ = 0;
    last_ = {};
    FuzzClock::now_ns = kStartNs;
    FuzzClock::lag_ns = 0;
  }

  void Step(Input* input);
  void ExpectRightAgain(uint64_t hash);
  uint64_t key(size_t i) const { return keys_[i]; }

 private:
  struct Spent {
    uint32_t slot = kNoSlot;
    uint64_t fp = 0;
    Seen seen{};
  };

  Table::Env Env() const { return {FuzzClock::now_ns, kGraceNs, kMaxDebtNs}; }
  uint32_t PlaceOf(Input* input) const { return places_[input->Number() % places_.size()]; }
  uint64_t KeyOf(Input* input) const { return keys_[input->Number() % kKeys]; }
  Kind KindOf(uint64_t hash) const {
    return kKinds[std::find(keys_.begin(), keys_.end(), hash) - keys_.begin()];
  }
  uint64_t Word(Input* input) const;
  uint64_t KeyWord(Input* input) const;
  uint64_t Used(Input* input) const;
  Outcome Spend(uint64_t hash, uint64_t tokens, uint32_t dearer_q16, bool admit_always);
  void Resolve(uint64_t hash);
  void Fold(uint32_t place, Input* input);
  void FoldWindow(uint32_t place, Input* input);
  void Sweep();

  const std::array<uint64_t, kKeys> keys_;
  std::array<uint32_t, 2 * kGroupSlots> places_{};  // the keys' neighbourhood
  Slot slots_[kMinCapacity];
  Cell denied_[kMinCapacity];
  Cell second_[kMinCapacity];
  Cell counters_[kCounters];
  Cell dirty_;
  Table table_;
  Spent last_;
};

// '0' and up: what a hostile client would choose first; any other byte: the next eight as they are.
uint64_t Segment::Word(Input* input) const {
  const uint64_t now = FuzzClock::now_ns;
  const uint64_t edges[] = {0,
                            now,
                            now + kTen.tau_ns,
                            now + kMaxDebtNs,
                            now + kMaxDebtNs + 1,
                            now + (1ull << 61),
                            (1ull << 63) - 1,
                            word::Dead(0, 0),
                            word::Dead(0xffff, word::kDeadTimeMask),
                            word::Dead(7, now / 1000)};
  const size_t at = static_cast<size_t>(input->Number() - '0');
  return at < std::size(edges) ? edges[at] : input->Number<uint64_t>();
}

uint64_t Segment::KeyWord(Input* input) const {
  const size_t at = static_cast<size_t>(input->Number() - '0');
  if (at >= kKeys + 1) return input->Number<uint64_t>();
  const uint64_t fp = at == kKeys ? 0 : FingerprintOf(keys_[at]);
  const auto gen = static_cast<uint16_t>(input->Number() - '0');  // '/': the one before 0
  return key::Make(fp, at == kKeys ? Kind::kTokenBucket : kKinds[at], gen);
}

uint64_t Segment::Used(Input* input) const {
  const uint64_t edges[] = {used::Make(0, 0), used::Make(7, -1), used::Make(0xffff, 1 << 30), ~0ull,
                            1ull << 63};
  const size_t at = static_cast<size_t>(input->Number() - '0');
  return at < std::size(edges) ? edges[at] : input->Number<uint64_t>();
}

// As clients check: what stands dead in the key's slot is settled, a slot that was lost found
// again.
Outcome Segment::Spend(uint64_t hash, uint64_t tokens, uint32_t dearer_q16, bool admit_always) {
  const Kind kind = KindOf(hash);
  const Charge charge{.cost_ns = CostNs(tokens, kTen.period_ns, kTen.limit),
                      .tau_ns = kTen.tau_ns,
                      .debt_max_ns = kTen.debt_max_ns,
                      .tokens = static_cast<uint32_t>(tokens),
                      .dearer_q16 = dearer_q16,
                      .admit_always = admit_always,
                      .commit = true,
                      .kind = kind,
                      .limit = &kTenInAWindow};
  Outcome outcome = Outcome::kLost;
  for (int restart = 0; restart < kMaxRestarts && outcome == Outcome::kLost; ++restart) {
    const uint32_t found = table_.Find(hash);
    const uint64_t w = found == kNoSlot ? 0 : slots_[found].word.load();
    if (word::IsDead(w)) table_.Settle(found, w, FuzzClock::now_ns);
    bool claimed = false;
    const uint32_t i = table_.FindOrClaim(hash, kind, 0, Env(), &claimed);
    if (i == kNoSlot) return Outcome::kGaveUp;  // its overflow bucket answers
    RequestTime<FuzzClock> time(FuzzClock::lag_ns != 0 && !IsWindow(kind), FuzzClock::lag_ns);
    Seen seen;
    outcome = IsWindow(kind)
                  ? window::CheckWindow(slots_[i], &second_[i], FingerprintOf(hash), charge, time,
                                        table_, &seen)
                  : CheckSlot(slots_[i], FingerprintOf(hash), charge, time, table_, &seen);
    Require(outcome != Outcome::kGaveUp, "nobody else changes the slot");
    if (outcome == Outcome::kAllowed) {
      AddUse(slots_[i], &dirty_, i, charge.tokens);
      last_ = {i, FingerprintOf(hash), seen};
    } else if (outcome == Outcome::kDenied) {
      AddDenied(slots_[i], denied_[i], &dirty_, i, seen.gen, 1);
    }
  }
  Require(outcome != Outcome::kLost, "nobody else takes the slot");
  return outcome;
}

void Segment::Resolve(uint64_t hash) {
  const uint32_t winner = table_.ResolveDuplicates(hash, Env());
  int holders = 0;
  for (const uint32_t i : places_) {
    holders += key::Fp(slots_[i].key.load()) == FingerprintOf(hash) ? 1 : 0;
  }
  Require(holders == (winner == kNoSlot ? 0 : 1), "a key stands in one slot");
}

void Segment::Fold(uint32_t place, Input* input) {
  Slot& slot = slots_[place];
  const uint64_t k = slot.key.load();
  const uint64_t now = FuzzClock::now_ns;
  const uint64_t base_ns = now + input->Number<uint32_t>() - (1ull << 30);
  const int64_t unreported = static_cast<int64_t>(input->Number<uint8_t>()) - 128;
  SetAux(slot, k, input->Number<uint32_t>(), 0, 0);
  const bool folded =
      FoldWord(slot, k, now, base_ns, unreported, kMaxDebtNs, [](uint64_t tokens) -> uint64_t {
        const unsigned __int128 ns = static_cast<unsigned __int128>(tokens) * kTen.interval_ns;
        return ns > kMaxSpanNs ? kMaxSpanNs : static_cast<uint64_t>(ns);
      });
  Require(!folded || slot.word.load() <= now + kMaxDebtNs, "a folded word is within its ceiling");
}

void Segment::FoldWindow(uint32_t place, Input* input) {
  Slot& slot = slots_[place];
  const uint64_t k = slot.key.load();
  SetAux(slot, k, input->Number<uint32_t>(), 0, 0);
  const window::Global global{.left_ns = input->Number<uint64_t>(),
                              .current = input->Number<int32_t>(),
                              .closed = input->Number<int32_t>(),
                              .on_the_way = input->Number<int16_t>()};
  const bool folded = window::FoldWindow(
      slot, second_[place], k, window::TermsOf(key::KindOf(k), kBurst, kSecondNs),
      FuzzClock::now_ns, global,
      {.tokens = input->Number<int16_t>(), .end_ns = FuzzClock::now_ns + input->Number<uint32_t>()},
      aux::InvShare(slot.aux.load()));
  Require(!folded || global.left_ns == 0 || slot.word.load() <= FuzzClock::now_ns + kMaxDebtNs,
          "a folded window ends in time");
}

// As the daemon's: what stands dead is settled, use and denials are taken once.
void Segment::Sweep() {
  dirty_ = 0;
  for (const uint32_t i : places_) {
    Slot& slot = slots_[i];
    for (int attempt = 0; attempt < kMaxRestarts && word::IsDead(slot.word.load()); ++attempt) {
      table_.Settle(i, slot.word.load(), FuzzClock::now_ns);
    }
    Require(!word::IsDead(slot.word.load()), "a dead word is settled by whoever meets it");
    ClearDirty(slot);
    const uint64_t k = slot.key.load();
    TakeUse(slot, k);
    Require(TakeUse(slot, k) == 0, "use is taken once");
    TakeDenied(denied_[i], k);
    Require(TakeDenied(denied_[i], k) == 0, "denials are taken once");
  }
}

void Segment::Step(Input* input) {
  switch (input->Number()) {
    case 'w':  // slot, word
      slots_[PlaceOf(input)].word = Word(input);
      break;
    case 'k':  // slot, key
      slots_[PlaceOf(input)].key = KeyWord(input);
      break;
    case 'u':  // slot, use
      slots_[PlaceOf(input)].used = Used(input);
      break;
    case 'a':  // slot, eight bytes
      slots_[PlaceOf(input)].aux = input->Number<uint64_t>();
      break;
    case 'd':  // slot, eight bytes
      denied_[PlaceOf(input)] = input->Number<uint64_t>();
      break;
    case 's':  // key, tokens
      Spend(KeyOf(input), input->Number() % 16u, 0, false);
      break;
    case 'e':  // key, 1/factor: in an emergency
      Spend(KeyOf(input), 1, input->Number<uint32_t>(), false);
      break;
    case 'o':  // key: in an emergency, fail open
      Spend(KeyOf(input), 1, 0, true);
      break;
    case 'b':  // the last spend, back
      if (last_.slot == kNoSlot) break;
      RefundSlot(slots_[last_.slot], last_.fp, last_.seen.gen, last_.seen.verdict.new_ns,
                 last_.seen.cost_ns, FuzzClock::now_ns);
      window::RefundWindow(slots_[last_.slot], &second_[last_.slot], last_.fp, last_.seen.gen,
                           last_.seen.verdict.new_ns, 1, window::ScaleIndexOf(kBurst),
                           FuzzClock::now_ns);
      break;
    case 'x':  // slot, eight bytes: the second word
      second_[PlaceOf(input)] = input->Number<uint64_t>();
      break;
    case 'g': {  // slot, 1/share, time left, tokens: a window's fold
      const uint32_t place = PlaceOf(input);
      FoldWindow(place, input);
      break;
    }
    case 'z': {  // slot, word: a reader that met a dead word, maybe long ago
      const uint32_t place = PlaceOf(input);
      table_.Settle(place, Word(input) | word::kDeadBit, FuzzClock::now_ns);
      break;
    }
    case 'r':  // key
      Resolve(KeyOf(input));
      break;
    case 'f': {  // slot, debt, unreported, 1/share
      const uint32_t place = PlaceOf(input);
      Fold(place, input);
      break;
    }
    case 'm':
      Sweep();
      break;
    case 'l':  // ms: a coarse clock that lags
      FuzzClock::lag_ns = input->Number() % 8u * 1'000'000;
      break;
    case 'p':  // tenths of a second pass
      FuzzClock::now_ns += input->Number() * (kSecondNs / 10);
      break;
    default:
      break;
  }
}

void Segment::ExpectRightAgain(uint64_t hash) {
  FuzzClock::lag_ns = 0;
  for (int i = 0; i < kChecksThatMend; ++i) Spend(hash, 1, 0, false);
  FuzzClock::now_ns += kMaxDebtNs + kGraceNs;  // the longest debt that may stand, then reusable
  uint32_t place = table_.Find(hash);
  if (place != kNoSlot) {
    SetAux(slots_[place], slots_[place].key.load(), aux::kShareOne, 0, 0);  // the daemon's to say
  }
  uint64_t admitted = 0;
  while (admitted <= kBurst && Spend(hash, 1, 0, false) == Outcome::kAllowed) ++admitted;
  Require(admitted == kBurst, "a bucket admits its burst again");
}

}  // namespace
}  // namespace sluice::shm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using sluice::shm::Segment;
  static Segment* const segment = new Segment;
  segment->Reset();
  sluice::fuzz::Input input(data, size);
  for (size_t i = 0; i < sluice::shm::kMaxSteps && !input.empty(); ++i) segment->Step(&input);
  for (size_t i = 0; i < sluice::shm::kKeys; ++i) segment->ExpectRightAgain(segment->key(i));
  return 0;
}
