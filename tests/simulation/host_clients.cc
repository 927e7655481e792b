// A host's clients: what they do with its slots, as the client library does it.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "shm/bucket.h"
#include "shm/bucket_name.h"
#include "shm/key_text.h"
#include "shm/lease_slot.h"
#include "shm/log_slot.h"
#include "shm/take.h"
#include "shm/window_slot.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kCorrectMostNs = 2 * kSecond;
constexpr uint64_t kRefundLookNs = kSecond;

}  // namespace

void Host::CheckLater(int client) {
  timeline_->After(1 + random_.Below(2 * options_.check_gap_ns), [this, client] {
    if (!checking_) return;
    if (!is_paused()) Check();
    CheckLater(client);
  });
}

// As a client makes it, but for the modes of an emergency; it may be killed on the way.
void Host::Check() {
  ++checks_;
  const std::vector<config::CompiledRule>& rules = rules_->rules();
  const config::CompiledRule& rule = options_.favoured > 0 && random_.Chance(options_.favoured)
                                         ? rules.back()
                                         : rules[random_.Below(rules.size())];
  // Half of the checks meet at one key.
  const uint64_t key =
      random_.Chance(0.5) ? 0 : random_.Below(static_cast<uint64_t>(options_.keys));
  const std::string value = absl::StrCat("k", key);
  const std::string_view values[] = {value};
  const auto tokens = static_cast<uint32_t>(random_.Between(1, 3));
  const Death death =
      random_.Chance(kill_chance_) ? static_cast<Death>(random_.Between(1, 3)) : Death::kNone;
  killed_clients_ += death != Death::kNone ? 1 : 0;
  HostClock::now_ns = NowNs();
  const uint64_t hash = shm::HashOfKind(
      shm::ShortNameHash(control_.info().hash_key, rule.hash_seed, values, 1), rule.kind);
  if (rule.kind == shm::Kind::kInFlight) {
    return Enter(rule, value, hash, tokens, death != Death::kNone);
  }
  const shm::MappedBuckets& b = buckets_.buckets();
  shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
  const bool is_lent = rule.kind == shm::Kind::kLease;
  const bool is_log = rule.kind == shm::Kind::kSlidingLog;
  if (is_log) {
    table = table.OfLogs(b.slots(), kLogs, b.counters(), b.log_entries(),
                         shm::logs::TermsOf(rule.limit));
  }
  // Each fourth is of a class that leaves three eighths of the bucket.
  const bool is_floored = checks_ % 4 == 0;
  const shm::Limit floored = shm::Floored(rule.limit, is_floored ? 0x6000 : 0, rule.kind);
  const shm::Charge charge{.cost_ns = shm::CostNs(tokens, rule.limit.period_ns, rule.limit.limit),
                           .tau_ns = floored.tau_ns,
                           .debt_max_ns = floored.debt_max_ns,
                           .tokens = tokens,
                           .dearer_q16 = 0,
                           .admit_always = false,
                           .commit = true,
                           .kind = rule.kind,
                           .floor_q16 = is_floored ? uint16_t{0x6000} : uint16_t{0},
                           .limit = &floored};
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    bool claimed = false;
    const uint32_t slot =
        table.FindOrClaim(hash, rule.kind, 0, {NowNs(), kGraceNs, MaxDebtNs()}, &claimed);
    if (slot == shm::kNoSlot) return;
    if (claimed && death == Death::kBeforeText) return;
    if (claimed) StoreName(slot, rule.label, value);
    shm::RequestTime<HostClock> time(false, 0);
    shm::Seen seen;
    const uint64_t fp = shm::FingerprintOf(hash);
    const shm::Outcome outcome =
        is_lent
            ? shm::credits::CheckLease(b.slots()[slot], b.second()[slot], fp, charge, time, &seen)
        : is_log ? shm::logs::CheckLog(table, slot, hash, &b.second()[slot], charge,
                                       /*brief=*/true, time, &seen)
        : shm::IsWindow(rule.kind)
            ? shm::window::CheckWindow(b.slots()[slot], &b.second()[slot], fp, charge, time, table,
                                       &seen)
            : shm::CheckSlot(b.slots()[slot], fp, charge, time, table, &seen);
    if (outcome == shm::Outcome::kLost) continue;
    std::string text = absl::StrCat(rule.label, ":", value);
    if (outcome != shm::Outcome::kAllowed) {
      if (is_lent) {
        shm::AddWanted(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, tokens);
        return;
      }
      ++denied_[text];
      shm::AddDenied(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, 1);
      return;
    }
    if (is_lent) options_.on_spent(text, tokens);
    if (death == Death::kBeforeUse) return;
    // What is lent is not counted by the books of the others.
    if (!is_lent) admitted_[text] += tokens;
    if (death == Death::kBeforeMark) {
      shm::CountUse(b.slots()[slot], tokens);
      return;
    }
    const uint64_t aux = shm::AddUse(b.slots()[slot], b.dirty(), slot, tokens);
    if ((aux & shm::aux::kTextWanted) != 0) StoreName(slot, rule.label, value);
    if (!is_lent && random_.Chance(options_.corrected)) {
      timeline_->After(
          random_.Below(kCorrectMostNs),
          [this, spent = Spent{rule.kind, rule.limit, slot, tokens, seen.gen, seen.verdict.new_ns,
                               charge.cost_ns, std::move(text)}] { Correct(spent); });
    }
    return;
  }
}

// The request turns out to cost less (nothing: a refund), as much, or more.
void Host::Correct(const Spent& spent) {
  if (!checking_ || is_paused()) return;
  const auto actual = static_cast<uint32_t>(random_.Below(2 * spent.tokens + 1));
  if (actual < spent.tokens) GiveBack(spent, spent.tokens - actual);
  if (actual > spent.tokens) ChargeMore(spent, actual - spent.tokens);
}

// As sluice_settle does it: without asking, into debt; the word first, then the use.
void Host::ChargeMore(const Spent& spent, uint32_t tokens) {
  const shm::MappedBuckets& b = buckets_.buckets();
  shm::Slot& slot = b.slots()[spent.slot];
  const uint64_t key = slot.key.load();
  if (shm::word::IsDead(slot.word.load()) || shm::key::Gen(key) != spent.gen) return;
  HostClock::now_ns = NowNs();
  const shm::Charge charge{.cost_ns = spent.cost_ns / spent.tokens * tokens,
                           .tau_ns = spent.limit.tau_ns,
                           .debt_max_ns = spent.limit.debt_max_ns,
                           .tokens = tokens,
                           .dearer_q16 = 0,
                           .admit_always = true,
                           .commit = true,
                           .kind = spent.kind,
                           .limit = &spent.limit};
  shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
  shm::RequestTime<HostClock> time(false, 0);
  shm::Seen seen;
  const uint64_t fp = shm::key::Fp(key);
  if (spent.kind == shm::Kind::kSlidingLog) {
    shm::logs::Fill(slot, RowOf(spent.slot), shm::logs::TermsOf(spent.limit), spent.gen,
                    HostClock::now_ns, tokens);
  } else if (const shm::Outcome outcome =
                 shm::IsWindow(spent.kind)
                     ? shm::window::CheckWindow(slot, &b.second()[spent.slot], fp, charge, time,
                                                table, &seen)
                     : shm::CheckSlot(slot, fp, charge, time, table, &seen);
             outcome != shm::Outcome::kAllowed) {
    return;
  }
  if (random_.Chance(kill_chance_)) {
    ++killed_clients_;
    return;
  }
  admitted_[spent.text] += tokens;
  shm::AddUse(slot, b.dirty(), spent.slot, tokens);
}

// As sluice_refund does it: the word first, then the use; the client may be killed between the two.
void Host::GiveBack(const Spent& spent, uint32_t tokens) {
  const shm::MappedBuckets& b = buckets_.buckets();
  shm::Slot& slot = b.slots()[spent.slot];
  const bool is_back =
      spent.kind == shm::Kind::kSlidingLog
          ? shm::logs::RefundLog(slot, RowOf(spent.slot), 0, spent.gen, spent.new_ns, tokens,
                                 spent.limit.period_ns, NowNs())
      : shm::IsWindow(spent.kind)
          ? shm::window::RefundWindow(slot, &b.second()[spent.slot], 0, spent.gen, spent.new_ns,
                                      tokens, shm::window::ScaleIndexOf(spent.limit.limit), NowNs())
          : shm::RefundSlot(slot, 0, spent.gen, spent.new_ns, spent.cost_ns / spent.tokens * tokens,
                            NowNs());
  if (!is_back) return;
  if (random_.Chance(kill_chance_)) {
    ++killed_clients_;
    return;
  }
  if (shm::TakeBackUse(slot, b.dirty(), spent.slot, spent.gen, tokens)) {
    given_back_[spent.text] += tokens;
    LookAfterRefund(spent, tokens, timeline_->now_ns());
  }
}

// Until a daemon has come by, or the slot is another's.
void Host::LookAfterRefund(const Spent& spent, uint32_t tokens, uint64_t at_ns) {
  timeline_->After(kRefundLookNs, [this, spent, tokens, at_ns] {
    if (shm::key::Gen(buckets_.buckets().slots()[spent.slot].key.load()) != spent.gen) {
      refunds_abandoned_[spent.text] += tokens;
    } else if (!is_running() || is_paused() || turned_ns_ < at_ns + kRefundLookNs / 2) {
      LookAfterRefund(spent, tokens, at_ns);
    }
  });
}

void Host::StoreName(uint32_t slot, const std::string& label, const std::string& value) {
  const std::string_view values[] = {value};
  char parts[shm::kKeyTextBytes];
  shm::WriteParts(label, values, 1, false, parts);
  shm::Slot& s = buckets_.buckets().slots()[slot];
  shm::StoreText(buckets_.buckets().texts()[slot], parts, s.key);
  s.aux.fetch_and(~shm::aux::kTextWanted);
}

}  // namespace sluice::simulation
