// The rules and buckets of the features' torture test, and the board on which its clients write.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "client/include/sluice.hpp"
#include "tests/torture/features_ledger.h"

namespace sluice::torture {

// Each is also the name of its one descriptor. kPlaces is the first of the rules: so a request's
// first spend is its place.
enum Rule {
  kPlaces,
  kClasses,
  kLog,
  kClassDay,
  kLogin,
  kDay,
  kLevels,
  kGiven,
  kSpread,
  kTurns,
  kPriced,
  kPrivate,
  kStock,
  kBrink,
  kVerge,
  kShut,
  kRules
};
inline constexpr const char* kNames[kRules + 1] = {"places",
                                                   "classes",
                                                   "log",
                                                   "classday",
                                                   "login",
                                                   "day",
                                                   "levels",
                                                   "given",
                                                   "spread",
                                                   "turns",
                                                   "priced",
                                                   "private",
                                                   "stock",
                                                   "brink",
                                                   "verge",
                                                   "shut",
                                                   "classday>sheddable"};

inline bool IsTokenBucket(Rule rule) {
  return rule != kPlaces && rule != kLog && rule != kClassDay && rule != kDay && rule != kPriced;
}

// Keys of each rule.
inline constexpr int kKeys = 64;
enum Key {
  kExact = 0,     // by ways of which each admission's time is known
  kLoose = 1,     // by every way
  kQuiet = 2,     // asked for only in company that is denied
  kPeeked = 3,    // only looked at
  kLow = 4,       // only by the lowest class
  kReturned = 5,  // much of it is given back, some of it late
  kOwn = 8,       // .. + client: of that client alone
  kRolling = 16   // of quotas, which are used up: a while each
};
inline constexpr int kRollings = kKeys - kRolling;

inline int BookOf(Rule rule, int key) { return static_cast<int>(rule) * kKeys + key; }
// Of a quota with classes what the lowest one has used.
inline int LowestBookOf(int key) { return static_cast<int>(kRules) * kKeys + key; }
inline constexpr int kBooks = (static_cast<int>(kRules) + 1) * kKeys;
inline const char* NameOfBook(int book) { return kNames[book / kKeys]; }

inline constexpr uint64_t kMostCost = 3;

// Classes by rank: of a higher one less may be used.
inline constexpr uint64_t kRanks = 3;
inline constexpr const char* kClassOfRank[kRanks] = {"critical", "normal", "sheddable"};
inline constexpr uint64_t kLowest = 2;
// Of the lowest class, as test_features.py says it.
inline constexpr double kLowestPart = 0.5;
inline constexpr int kPlans = 4;
// 0: none is given. The last is above the rule's maximum.
inline constexpr const char* kPlanTexts[kPlans] = {"", "250", "1000", "50000"};
// Not used by anybody, only looked at.
inline constexpr const char* kPlanPeeked = "400";
// As test_features.py says it.
inline constexpr uint32_t kPlacesLimit = 12;
// Times in a log are kept in steps, and known to an eighth of a token's time.
inline constexpr uint64_t kLogStepNs = 100'000;

// A trace's number, and whose it is. `plan` is of kGiven alone.
struct TraceName {
  int trace;
  Rule rule;
  int key;
  int plan;
  bool is_classed;
  uint64_t token_ns;  // of its limit, as test_features.py says it
};
inline constexpr int kTraces = 15;
inline constexpr int kGivenTrace = 8;  // of the first plan
inline constexpr TraceName kTraceNames[kTraces] = {
    {0, kClasses, kExact, 0, true, 1'000'000}, {1, kClasses, kLow, 0, false, 1'000'000},
    {2, kLog, kExact, 0, true, 500'000},       {3, kLog, kLow, 0, false, 500'000},
    {4, kLogin, kExact, 0, false, 2'000'000},  {5, kLevels, kExact, 0, false, 100'000},
    {6, kSpread, kExact, 0, false, 500'000},   {7, kTurns, kExact, 0, false, 500'000},
    {8, kGiven, kExact, 0, false, 2'000'000},  {9, kGiven, kExact, 1, false, 4'000'000},
    {10, kGiven, kExact, 2, false, 1'000'000}, {11, kGiven, kExact, 3, false, 666'667},
    {12, kBrink, kReturned, 0, false, 50'000}, {13, kBrink, kExact, 0, false, 50'000},
    {14, kVerge, kExact, 0, false, 50'000}};
// The time of a request over several rules may be later than that of a bucket's charge, where it
// was not on a CPU in between; those that took longer than this part of a token's time are in no
// trace.
inline constexpr uint64_t kVaguePart = 8;

// The text of a key's value. A private rule's is of a kind that is found wherever it stands.
inline const std::string& ValueOf(Rule rule, int key) {
  static const auto values = [] {
    std::array<std::array<std::string, kKeys>, 2> v;
    for (int k = 0; k < kKeys; ++k) {
      v[0][static_cast<size_t>(k)] = "k" + std::to_string(k);
      v[1][static_cast<size_t>(k)] = "plain-secret-" + std::to_string(k);
    }
    return v;
  }();
  return values[rule == kPrivate ? 1 : 0][static_cast<size_t>(key)];
}

// One request over some rules.
struct Request {
  struct Bucket {
    Rule rule;
    int key;
    int trace;  // -1: none
  };

  std::vector<Descriptor> descriptors;
  std::vector<Bucket> buckets;
  uint64_t rank = kLowest;  // who names no class is of the lowest
  bool has_place = false;

  void Add(Rule rule, int key, int plan = 0) {
    descriptors.emplace_back(kNames[rule], ValueOf(rule, key));
    if (plan != 0) descriptors.emplace_back("plan", kPlanTexts[plan]);
    int trace = -1;
    for (const TraceName& t : kTraceNames) {
      if (t.rule == rule && t.key == key && t.plan == plan) trace = t.trace;
    }
    buckets.push_back({rule, key, trace});
  }
  // A place is in no book: who holds it stands in it.
  void AddPlace() {
    descriptors.emplace_back(kNames[kPlaces], ValueOf(kPlaces, kExact));
    has_place = true;
  }
  void AddClass(uint64_t of_rank) {
    rank = of_rank;
    descriptors.emplace_back("class", kClassOfRank[rank]);
  }
  bool is_alone() const { return buckets.size() == 1 && !has_place; }
  bool Has(Rule rule) const {
    for (const Bucket& b : buckets) {
      if (b.rule == rule) return true;
    }
    return false;
  }
};

struct Board {
  uint64_t begin_ns;
  Book books[kBooks];
  std::atomic<int64_t> unsure[kBooks];  // given back, perhaps
  UnderWay under_way[kClients];
  Trace traces[kTraces];
  Cell banned_until_ns[2];  // of kLogin's kExact and kLoose
  std::atomic<pid_t> owners[4096];

  Cell operations, admitted, together, denied, overflow, emergency, banned, bans, entered, waited,
      served, raced, settled, late, refunded, returned, reported, alone, near, soft, kept;

  Wrong denied_not_hard{"denied and not hard, or hard and not denied"};
  Wrong bad_level{"a level other than what remains says"};
  Wrong not_kept{"what is kept for a class is not there"};
  Wrong not_full{"spent by a look or in company that is denied"};
  Wrong not_denied{"admitted where a limit is used up"};
  Wrong holds_denied{"a place held by who was denied"};
  Wrong in_ban{"admitted while banned"};
  Wrong longer_ban{"a ban was lengthened"};
  Wrong too_late{"told a turn beyond the deadline, or back too late"};
  Wrong too_early{"back before its turn"};
  Wrong bad_spread{"told to come back too early, or too late"};
  Wrong not_alone{"denied when it came back as told, and alone"};
  Wrong two_in_place{"two in one place"};
  Wrong bad_given{"under another limit than was given"};
  Wrong bad_count{"corrected in another number of rules"};

  std::vector<std::pair<const char*, const Cell*>> seen() const {
    using Seen = std::pair<const char*, const Cell*>;
    return std::vector<Seen>{{"admitted", &admitted},   {"together", &together},
                             {"denied", &denied},       {"overflow", &overflow},
                             {"emergency", &emergency}, {"banned", &banned},
                             {"bans", &bans},           {"entered", &entered},
                             {"waited", &waited},       {"served", &served},
                             {"raced", &raced},         {"settled", &settled},
                             {"late", &late},           {"refunded", &refunded},
                             {"returned", &returned},   {"reported", &reported},
                             {"alone", &alone},         {"near", &near},
                             {"soft", &soft},           {"kept", &kept}};
  }
  std::vector<const Wrong*> wrongs() const {
    return {&denied_not_hard, &bad_level, &not_kept,     &not_full,  &not_denied,
            &holds_denied,    &in_ban,    &longer_ban,   &too_late,  &too_early,
            &bad_spread,      &not_alone, &two_in_place, &bad_given, &bad_count};
  }
};

inline Client Open(const char* runtime_dir) {
  return Client({.default_allowed = false, .runtime_dir = runtime_dir, .label = "torture"});
}

// Takes all of what later denies, whoever asks.
inline bool UseUp(Client& client) {
  Request request;
  request.Add(kShut, kExact);
  return client.check(request.descriptors) && !client.check(request.descriptors);
}

inline uint64_t PerTokenNs(const Decision& d) {
  return d.raw().period_ns / std::max<uint64_t>(d.limit(), 1);
}

}  // namespace sluice::torture
