#include "tests/weak/scenarios.h"

namespace sluice::weak {
namespace {

using Killed = std::vector<bool>;

Staged Stage(std::vector<uint32_t> open, unsigned about,
             const std::function<model::Scenario(World&)>& make) {
  Staged staged;
  staged.world = std::make_unique<World>(std::move(open), about);
  staged.scenario = make(*staged.world);
  return staged;
}

// I1, I2: B takes expired A's slot while A's handle spends there. A's spend must come before the
// claim, which then finds the slot not expired; after it, its CAS must fail.
Staged EvictionUnderASpender() {
  return Stage({2}, 0, [](World& w) {
    return w.In(
        [&w] { w.PutExpired(2, kKeyA, 0); },
        {[&w] { w.Check(2, kKeyA, &w.admitted_a_); }, [&w] { w.claimed_ = w.Claim(kKeyB); }},
        [&w](const Killed&) -> std::string {
          if (w.claimed_ && w.admitted_a_ > 0) return "A spent B's tokens";
          if (!w.claimed_ && w.admitted_a_ == 0) return "nobody got on";
          return "";
        });
  });
}

// I2, I4: A and B want the only open slot; one may be killed anywhere, the other settles its work.
Staged TwoClaimersOfOneSlot() {
  return Stage({3}, kUsed, [](World& w) {
    model::Scenario s = w.In(
        [] {}, {[&w] { w.Spend(kKeyA, &w.admitted_a_); }, [&w] { w.Spend(kKeyB, &w.admitted_b_); }},
        [&w](const Killed& killed) -> std::string {
          if (w.admitted_a_ + w.admitted_b_ > 1) return "both got the slot";
          if (w.IsLost(3)) return "the slot is lost for good";
          const World::Slot& slot = w.slots_[3];
          if (shm::used::Gen(slot.used.value) != shm::key::Gen(slot.key.value)) {
            return "use carries another tenant's gen";
          }
          const int64_t use = w.UseOf(kKeyA) + w.UseOf(kKeyB);
          if (use > w.admitted_a_ + w.admitted_b_) return "use of nobody";
          const bool all_lived = !killed[0] && !killed[1];
          return all_lived && use != w.admitted_a_ + w.admitted_b_ ? "use is lost" : "";
        });
    s.max_kills = 1;
    return s;
  });
}

// I3: the daemon takes A's use while B evicts A and spends.
Staged TakeDuringReuse() {
  return Stage({2}, kUsed, [](World& w) {
    return w.In([&w] { w.PutExpired(2, kKeyA, 5); },
                {[&w] { w.Take(w.slots_[2], w.slots_[2].key.load(std::memory_order_acquire)); },
                 [&w] { w.Spend(kKeyB, &w.admitted_b_); }},
                [&w](const Killed&) -> std::string {
                  const int64_t of_a = w.taken_ - (w.admitted_b_ - w.UseOf(kKeyB));
                  if (of_a != 0 && of_a != 5) return "took " + std::to_string(w.taken_);
                  return "";
                });
  });
}

// I3 and the dirty bit: use is taken, or its slot is dirty again.
std::string TakenOrDirty(World& w, int64_t left, int64_t taken, int64_t added) {
  if (taken + left != added) return "it does not add up";
  if (left != 0 && !w.IsDirty(2)) return "something is left in a clean slot";
  return "";
}
Staged TakeAgainstSpend() {
  return Stage({2}, kUsed | kAux | kDirtyBits, [](World& w) {
    return w.In(
        [&w] {
          w.PutTenant(2, kKeyA, kNow, 0);
          w.PutDirty(2);
        },
        {[&w] { w.Harvest(); }, [&w] { w.Check(2, kKeyA, &w.admitted_a_); }},
        [&w](const Killed&) { return TakenOrDirty(w, w.UseOf(kKeyA), w.taken_, w.admitted_a_); });
  });
}

// The same for denials, which have a cell of their own.
Staged TakeAgainstDenial() {
  return Stage({2}, kAux | kDirtyBits | kDenied, [](World& w) {
    return w.In(
        [&w] {
          w.PutTenant(2, kKeyA, kNow, 0);
          w.PutDirty(2);
        },
        {[&w] { w.Harvest(); },
         [&w] { shm::AddDenied(w.slots_[2], w.denied_, &w.dirty_, 2, 3, 7); }},
        [&w](const Killed&) {
          const int64_t left = static_cast<int64_t>(shm::denied::Count(w.denied_.value));
          return TakenOrDirty(w, left, w.denied_taken_, 7);
        });
  });
}

// A new tenancy's use is seen by the daemon although the slot was dirty from the one before.
Staged TakeFromANewTenant() {
  return Stage({2}, kUsed | kAux | kDirtyBits, [](World& w) {
    return w.In(
        [&w] {
          w.PutExpired(2, kKeyA, 0);
          w.PutDirty(2);
        },
        {[&w] { w.Harvest(); }, [&w] { w.Spend(kKeyB, &w.admitted_b_); }},
        [&w](const Killed&) { return TakenOrDirty(w, w.UseOf(kKeyB), w.taken_, w.admitted_b_); });
  });
}

// A thread of A's that stood still marks the slot dirty for B, which then does not.
Staged TakeAfterAForeignMark() {
  return Stage({2}, kUsed | kAux | kDirtyBits, [](World& w) {
    return w.In(
        [&w] { w.PutExpired(2, kKeyA, 0); },
        {[&w] { w.Harvest(); }, [&w] { w.Spend(kKeyB, &w.admitted_b_); },
         [&w] { shm::MarkDirty(w.slots_[2], &w.dirty_, 2); }},
        [&w](const Killed&) { return TakenOrDirty(w, w.UseOf(kKeyB), w.taken_, w.admitted_b_); });
  });
}

// I1, I2: what comes late for A while B takes its expired slot and spends.
Staged LateForA(const std::function<void(World&)>& late) {
  return Stage({2}, kUsed, [&late](World& w) {
    return w.In([&w] { w.PutExpired(2, kKeyA, 0); },
                {[&w, late] { late(w); }, [&w] { w.Spend(kKeyB, &w.admitted_b_); }},
                [&w](const Killed&) -> std::string {
                  if (w.admitted_b_ != 1) return "";
                  return w.slots_[2].word.value == kNow + kTwo.interval_ns ? ""
                                                                           : "B's word changed";
                });
  });
}
Staged LateRefund() {
  return LateForA([](World& w) {
    shm::RefundSlot(w.slots_[2], shm::FingerprintOf(kKeyA), 3, kNow + kSecond, kSecond, kNow);
  });
}
Staged LateFold() {
  return LateForA([](World& w) {
    shm::FoldWord(w.slots_[2], World::KeyAt3(kKeyA), kNow, kNow + 5 * kSecond, 0, 10 * kSecond,
                  [](uint64_t n) { return n * kSecond; });
  });
}

// I5: both insert the same key; two slots are open. Nobody is killed, so it ends in one.
Staged TwoClaimersOfOneKey() {
  return Stage({0, 5}, 0, [](World& w) {
    return w.In([] {}, {[&w] { w.Claim(kKeyA); }, [&w] { w.Claim(kKeyA); }},
                [&w](const Killed&) -> std::string {
                  const int places = w.Places(kKeyA);
                  return places == 1 ? "" : "the key stands in " + std::to_string(places);
                });
  });
}

// The same where both spend: what was spent in the slot that is emptied is owed in the other.
Staged TwoSpendersOfANewKey() {
  return Stage({0, 5}, 0, [](World& w) {
    return w.In(
        [] {}, {[&w] { w.Spend(kKeyA, &w.admitted_a_); }, [&w] { w.Spend(kKeyA, &w.admitted_b_); }},
        [&w](const Killed&) -> std::string {
          if (w.Places(kKeyA) != 1) return "the key stands in " + std::to_string(w.Places(kKeyA));
          const uint64_t admitted = static_cast<uint64_t>(w.admitted_a_ + w.admitted_b_);
          for (const World::Slot& slot : w.slots_) {
            if (shm::key::Fp(slot.key.value) != shm::FingerprintOf(kKeyA)) continue;
            if (slot.word.value < kNow + admitted * kTwo.interval_ns) return "debt was forgotten";
          }
          return "";
        });
  });
}

// I5: a key that stands twice is folded while another spends: all debt and use is kept.
Staged Duplicate() {
  return Stage({0, 5}, kUsed, [](World& w) {
    return w.In(
        [&w] {
          for (const uint32_t slot : {0u, 5u}) w.PutTenant(slot, kKeyA, kNow + kTwo.interval_ns, 1);
        },
        {[&w] { w.table().ResolveDuplicates(kKeyA, w.Env()); },
         [&w] { w.Check(5, kKeyA, &w.admitted_a_); }},
        [&w](const Killed&) -> std::string {
          if (w.UseOf(kKeyA) > 2 + w.admitted_a_) return "use was doubled";
          const uint64_t owed = static_cast<uint64_t>(2 + w.admitted_a_) * kTwo.interval_ns;
          return w.slots_[0].word.value == kNow + owed ? "" : "a duplicate's debt was forgotten";
        });
  });
}

// The text of a tenancy is read whole under its tag.
Staged TextUnderItsTag() {
  return Stage({2}, kText, [](World& w) {
    return w.In([&w] { w.PutTenant(2, kKeyA, kNow, 0); },
                {[&w] {
                   const char parts[shm::kKeyTextBytes] = "whole text 16 B";
                   shm::StoreText(w.text_, parts, w.slots_[2].key);
                 },
                 [&w] {
                   char parts[shm::kKeyTextBytes] = {};
                   if (shm::LoadText(w.text_, World::KeyAt3(kKeyA), parts)) {
                     w.claimed_ = std::string(parts) != "whole text 16 B";
                   }
                 }},
                [&w](const Killed&) -> std::string { return w.claimed_ ? "a torn text" : ""; });
  });
}

// W2: both begin the next window. Who sees its word sees what the last one counted.
Staged TwoBeginAWindow() {
  return Stage({2}, kSecondWord, [](World& w) {
    constexpr uint64_t kLimit = 4;
    return w.In([&w] { w.PutWindow(kLimit, 3, 0); },
                {[&w] { w.CheckWindow(kLimit, 1, &w.admitted_a_); },
                 [&w] { w.CheckWindow(kLimit, 1, &w.admitted_b_); }},
                [&w](const Killed&) -> std::string {
                  const int64_t admitted = w.admitted_a_ + w.admitted_b_;
                  if (shm::window::second::Closed(w.second_.value) != 3 << 8) {
                    return "the last window's count is lost";
                  }
                  return admitted == 1 ? "" : std::to_string(admitted) + " were admitted";
                });
  });
}

// W3: two pay from one purse.
Staged OnePurse() {
  return Stage({2}, kSecondWord, [](World& w) {
    constexpr uint64_t kLimit = 256 << 14;
    return w.In([&w] { w.PutWindow(kLimit, 512, 150); },
                {[&w] { w.CheckWindow(kLimit, 100, &w.admitted_a_); },
                 [&w] { w.CheckWindow(kLimit, 100, &w.admitted_b_); }},
                [&w](const Killed&) -> std::string {
                  const uint64_t used = shm::window::Count(w.slots_[2].word.value) * 256 -
                                        shm::window::second::Purse(w.second_.value);
                  const auto due = 512 - 150 + static_cast<uint64_t>(w.admitted_a_ + w.admitted_b_);
                  return used >= due ? "" : "more was admitted than paid";
                });
  });
}

// L3: one takes A's token in the slot that it has, another names a second one, moves there what the
// first has served, and takes there.
Staged DuplicateLog() {
  return Stage({2, 6}, kLog, [](World& w) {
    return w.In([&w] { w.PutLogs(); },
                {[&w] { w.CheckLog(6, &w.admitted_a_); },
                 [&w] {
                   w.NameLog();
                   w.CheckLog(2, &w.admitted_b_);
                 }},
                [&w](const Killed&) -> std::string {
                  return w.admitted_a_ + w.admitted_b_ <= 1 ? "" : "two slots served one limit";
                });
  });
}

}  // namespace

const std::vector<Named> kScenarios = {
    {"eviction under a spender", EvictionUnderASpender},
    {"two claimers of one slot", TwoClaimersOfOneSlot},
    {"take during reuse", TakeDuringReuse},
    {"take against spend", TakeAgainstSpend},
    {"take against denial", TakeAgainstDenial},
    {"take from a new tenant", TakeFromANewTenant},
    {"take after a foreign mark", TakeAfterAForeignMark},
    {"late refund", LateRefund},
    {"late fold", LateFold},
    {"two claimers of one key", TwoClaimersOfOneKey},
    {"two spenders of a new key", TwoSpendersOfANewKey},
    {"duplicate", Duplicate},
    {"text under its tag", TextUnderItsTag},
    {"two begin a window", TwoBeginAWindow},
    {"one purse", OnePurse},
    {"duplicate log", DuplicateLog},
};

}  // namespace sluice::weak
