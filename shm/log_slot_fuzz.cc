// A bucket segment with sliding logs that anybody may have written: words, keys, entries and what
// is told of other hosts. Whatever the bytes, each check, refund, claim and look comes to its end,
// no period of a log that nobody writes to holds more than the limit, and once all that stood there
// is over the limit is admitted again, no token more or less.
//
// An input is a list of steps, a letter each with its arguments; see Step. Digits are slots and
// values, so that seeds can be written by hand.
#include <algorithm>
#include <array>
#include <atomic>

#include "shm/bucket.h"
#include "shm/fuzz_input.h"
#include "shm/hash.h"
#include "shm/log_slot.h"
#include "shm/slot_table.h"
#include "shm/take.h"

namespace sluice::shm {
namespace {

using Cell = std::atomic<uint64_t>;
using Table = SlotTable<Cell>;
using fuzz::Input;
using fuzz::Require;

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kStartNs = 100 * kSecondNs;
constexpr uint64_t kGraceNs = kSecondNs;
constexpr uint32_t kRows = kMinLogRows;
constexpr uint32_t kEntries = 16;  // of a row
constexpr uint32_t kTokens = 10;   // the limit: the entries behind it are another's, or of before
constexpr size_t kKeys = 2;        // all rows are their neighbourhood
constexpr size_t kMaxSteps = 256;
constexpr int kChecksThatMend = 50;

const Limit kLimit = logs::MakeLimit(kTokens, kSecondNs);
const uint64_t kMaxDebtNs = kLimit.tau_ns + kLimit.debt_max_ns;

struct FuzzClock {
  static inline uint64_t now_ns = kStartNs;
  static uint64_t PreciseNs() { return now_ns; }
  static uint64_t CoarseNs() { return now_ns; }
};

class Segment {
 public:
  Segment()
      : table_(
            Table::OfLogs(slots_, {kRows, kEntries}, counters_, entries_, logs::TermsOf(kLimit))) {
    uint64_t state = 1;
    for (uint64_t& key : keys_) key = SplitMix64(state);
  }

  void Reset() {
    for (Slot& slot : slots_) {
      slot.word = slot.key = slot.aux = 0;
      slot.used = used::Make(0, 0);
    }
    for (Cell& cell : denied_) cell = 0;
    for (Cell& cell : second_) cell = 0;
    for (Cell& cell : entries_) cell = 0;
    dirty_ = 0;
    last_ = {};
    FuzzClock::now_ns = kStartNs;
  }

  void Step(Input* input);
  void ExpectRightAgain(uint64_t hash);
  uint64_t key(size_t i) const { return keys_[i]; }

 private:
  struct Spent {
    uint32_t slot = kNoSlot;
    uint64_t fp = 0;
    uint32_t tokens = 0;
    Seen seen{};
  };

  Table::Env Env() const { return {FuzzClock::now_ns, kGraceNs, kMaxDebtNs}; }
  static uint32_t PlaceOf(Input* input) { return input->Number() % kRows; }
  uint64_t KeyOf(Input* input) const { return keys_[input->Number() % kKeys]; }
  uint64_t Word(Input* input) const;
  uint64_t KeyWord(Input* input) const;
  uint64_t Entry(Input* input) const;
  Outcome Spend(uint64_t hash, uint32_t tokens, uint32_t dearer_q16, bool admit_always, bool brief);
  void Sweep();

  std::array<uint64_t, kKeys> keys_{};
  Slot slots_[kRows];
  Cell denied_[kRows];
  Cell second_[kRows];
  Cell entries_[size_t{kRows} * kEntries];
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
                            payload::Make(payload::Ceil(now + kSecondNs), 3),
                            payload::Make(payload::Ceil(now + kSecondNs), payload::kMask),
                            now + kMaxDebtNs + 1,
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
  const auto gen = static_cast<uint16_t>(input->Number() - '0');  // '/': the one before 0
  return key::Make(at == kKeys ? 0 : FingerprintOf(keys_[at]), Kind::kSlidingLog, gen);
}

uint64_t Segment::Entry(Input* input) const {
  const uint64_t now_us = logs::StampUs(FuzzClock::now_ns);
  const auto gen = static_cast<uint16_t>(input->Number() - '0');
  const uint64_t edges[] = {0,
                            logs::Make(gen, now_us),
                            logs::Make(gen, now_us) | logs::kGivenBack,
                            logs::Make(gen, now_us + 1'000'001),
                            logs::Make(gen, now_us - 1'000'000),
                            logs::Make(gen, now_us + logs::kAheadUs + 2),
                            logs::Make(gen, now_us + (1ull << 46)) | logs::kGivenBack};
  const size_t at = static_cast<size_t>(input->Number() - '0');
  return at < std::size(edges) ? edges[at] : input->Number<uint64_t>();
}

// As clients check: duplicates are resolved where the log says so, dead words settled.
Outcome Segment::Spend(uint64_t hash, uint32_t tokens, uint32_t dearer_q16, bool admit_always,
                       bool brief) {
  const Charge charge{.tau_ns = kLimit.tau_ns,
                      .debt_max_ns = kLimit.debt_max_ns,
                      .tokens = tokens,
                      .dearer_q16 = dearer_q16,
                      .admit_always = admit_always,
                      .commit = true,
                      .kind = Kind::kSlidingLog,
                      .limit = &kLimit};
  Outcome outcome = Outcome::kLost;
  for (int restart = 0; restart < kMaxRestarts && outcome == Outcome::kLost; ++restart) {
    if (restart != 0) table_.ResolveDuplicates(hash, Env());
    const uint32_t found = table_.Find(hash);
    const uint64_t w = found == kNoSlot ? 0 : slots_[found].word.load();
    if (word::IsDead(w)) table_.Settle(found, w, FuzzClock::now_ns);
    bool claimed = false;
    const uint32_t i = table_.FindOrClaim(hash, Kind::kSlidingLog, 0, Env(), &claimed);
    if (i == kNoSlot) return Outcome::kGaveUp;  // its overflow bucket answers
    RequestTime<FuzzClock> time(false, 0);
    Seen seen;
    outcome = logs::CheckLog(table_, i, hash, &second_[i], charge, brief, time, &seen);
    if (outcome == Outcome::kAllowed) {
      AddUse(slots_[i], &dirty_, i, tokens);
      last_ = {i, FingerprintOf(hash), tokens, seen};
    } else if (outcome == Outcome::kDenied) {
      AddDenied(slots_[i], denied_[i], &dirty_, i, seen.gen, 1);
    }
  }
  return outcome;
}

// As the daemon's: what stands dead is settled, use and denials are taken once.
void Segment::Sweep() {
  dirty_ = 0;
  for (uint32_t i = 0; i < kRows; ++i) {
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
    case 'a':  // slot, eight bytes
      slots_[PlaceOf(input)].aux = input->Number<uint64_t>();
      break;
    case 'x':  // slot, eight bytes: what the others took
      second_[PlaceOf(input)] = input->Number<uint64_t>();
      break;
    case 'n': {  // slot, place in its row, entry
      const uint32_t at = PlaceOf(input) * kEntries;
      entries_[at + input->Number() % kEntries] = Entry(input);
      break;
    }
    case 's':  // key, tokens
      Spend(KeyOf(input), input->Number() % 16u, 0, false, true);
      break;
    case 't':  // key, tokens: all is told
      Spend(KeyOf(input), input->Number() % 16u, 0, false, false);
      break;
    case 'e':  // key, 1/factor: in an emergency
      Spend(KeyOf(input), 1, input->Number<uint32_t>(), false, false);
      break;
    case 'o':  // key, tokens: in an emergency, fail open
      Spend(KeyOf(input), input->Number() % 16u, 0, true, true);
      break;
    case 'b':  // the last spend, back
      if (last_.slot == kNoSlot) break;
      logs::RefundLog(slots_[last_.slot], table_.log_rows().of(last_.slot), last_.fp,
                      last_.seen.gen, last_.seen.verdict.new_ns, last_.tokens, kSecondNs,
                      FuzzClock::now_ns);
      break;
    case 'q': {  // slot, gen, tokens: a debt that is known by now
      const uint32_t place = PlaceOf(input);
      const auto gen = static_cast<uint16_t>(input->Number() - '0');
      logs::Fill(slots_[place], table_.log_rows().of(place), logs::TermsOf(kLimit), gen,
                 FuzzClock::now_ns, input->Number());
      break;
    }
    case 'z': {  // slot, word: a reader that met a dead word, maybe long ago
      const uint32_t place = PlaceOf(input);
      table_.Settle(place, Word(input) | word::kDeadBit, FuzzClock::now_ns);
      break;
    }
    case 'r':  // key
      table_.ResolveDuplicates(KeyOf(input), Env());
      break;
    case 'm':
      Sweep();
      break;
    case 'p':  // tenths of a second pass
      FuzzClock::now_ns += input->Number() * (kSecondNs / 10);
      break;
    default:
      break;
  }
}

void Segment::ExpectRightAgain(uint64_t hash) {
  for (int i = 0; i < kChecksThatMend; ++i) Spend(hash, 1, 0, false, false);
  // The longest that a word may say; then its slot is reusable, and nothing in its row counts.
  FuzzClock::now_ns += kMaxDebtNs + kGraceNs + 2 * kSecondNs;
  Spend(hash, 1, 0, false, true);
  const uint32_t place = table_.Find(hash);
  Require(place != kNoSlot, "a key has a slot where all others are over");
  SetAux(slots_[place], slots_[place].key.load(), aux::kShareOne, 0, 0);  // the daemon's to say
  second_[place] = 0;
  FuzzClock::now_ns += 2 * kSecondNs;
  uint32_t admitted = 0;
  while (admitted <= kTokens && Spend(hash, 1, 0, false, true) == Outcome::kAllowed) {
    ++admitted;
    FuzzClock::now_ns += kSecondNs / 100;
  }
  Require(admitted == kTokens, "a log admits its limit again");
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
