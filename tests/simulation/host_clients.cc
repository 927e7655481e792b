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

void Host::Check() {
  ++checks_;
  const Asked asked = Draw();
  const Death death =
      random_.Chance(kill_chance_) ? static_cast<Death>(random_.Between(1, 3)) : Death::kNone;
  killed_clients_ += death != Death::kNone ? 1 : 0;
  if (asked.rule->kind == shm::Kind::kInFlight) {
    return Enter(*asked.rule, asked.value, asked.hash, asked.tokens, death != Death::kNone);
  }
  std::vector<Spent> spends;
  if (std::optional<Spent> spent = Take(asked, death)) spends.push_back(*std::move(spent));
  if (asked.rule->candidate != shm::kNoRule && death == Death::kNone) {
    if (std::optional<Spent> spent = Try(asked)) spends.push_back(*std::move(spent));
  }
  if (!spends.empty() && asked.rule->calendar == nullptr && random_.Chance(options_.corrected)) {
    timeline_->After(random_.Below(kCorrectMostNs),
                     [this, spends = std::move(spends)] { Correct(spends); });
  }
}

// As a client makes it, but for the modes of an emergency; it may be killed on the way.
std::optional<Host::Spent> Host::Take(const Asked& asked, Death death) {
  const config::CompiledRule& rule = *asked.rule;
  const uint32_t tokens = asked.tokens;
  HostClock::now_ns = NowNs();
  const shm::MappedBuckets& b = buckets_.buckets();
  shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
  const bool is_lent = rule.kind == shm::Kind::kLease;
  const bool is_log = rule.kind == shm::Kind::kSlidingLog;
  if (is_log) {
    table = table.OfLogs(b.slots(), kLogs, b.counters(), b.log_entries(),
                         shm::logs::TermsOf(rule.limit));
  }
  const shm::Charge charge{.cost_ns = shm::CostNs(tokens, asked.whole.period_ns, asked.whole.limit),
                           .tau_ns = asked.limit.tau_ns,
                           .debt_max_ns = asked.limit.debt_max_ns,
                           .tokens = tokens,
                           .dearer_q16 = 0,
                           .admit_always = false,
                           .commit = true,
                           .kind = rule.kind,
                           .floor_q16 = asked.floor_q16,
                           .limit = &asked.limit,
                           .ends = rule.calendar_place == 0
                                       ? nullptr
                                       : control_.header().calendar_ends[rule.calendar_place - 1]};
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    bool claimed = false;
    const uint32_t slot =
        table.FindOrClaim(asked.hash, rule.kind, 0, {NowNs(), kGraceNs, MaxDebtNs()}, &claimed);
    if (slot == shm::kNoSlot) return {};
    if (claimed) ++tenancies_[rule.label];
    if (claimed && death == Death::kBeforeText) return {};
    if (claimed) StoreName(slot, asked.label, asked.value);
    const classes::Found found = Look(asked, slot);
    shm::RequestTime<HostClock> time(false, 0);
    shm::Seen seen;
    const uint64_t fp = shm::FingerprintOf(asked.hash);
    const shm::Outcome outcome =
        is_lent
            ? shm::credits::CheckLease(b.slots()[slot], b.second()[slot], fp, charge, time, &seen)
        : is_log ? shm::logs::CheckLog(table, slot, asked.hash, &b.second()[slot], charge,
                                       /*brief=*/true, time, &seen)
        : shm::IsWindow(rule.kind)
            ? shm::window::CheckWindow(b.slots()[slot], &b.second()[slot], fp, charge, time, table,
                                       &seen)
            : shm::CheckSlot(b.slots()[slot], fp, charge, time, table, &seen);
    if (outcome == shm::Outcome::kLost) continue;
    const bool is_allowed = outcome == shm::Outcome::kAllowed;
    if (rule.candidate != shm::kNoRule) JudgeTried(asked, seen, is_allowed);
    if (!is_allowed) {
      if (is_lent) {
        shm::AddWanted(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, tokens);
        return {};
      }
      ++denied_[asked.text];
      shm::AddDenied(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, 1);
      return {};
    }
    JudgeClass(asked, found);
    if (is_lent) options_.on_spent(asked.text, tokens);
    if (death == Death::kBeforeUse) return {};
    // What is lent is not counted by the books of the others.
    if (!is_lent) admitted_[asked.text] += tokens;
    if (rule.calendar != nullptr) JudgeQuota(asked, seen);
    if (death == Death::kBeforeMark) {
      shm::CountUse(b.slots()[slot], tokens);
      return {};
    }
    const uint64_t aux = shm::AddUse(b.slots()[slot], b.dirty(), slot, tokens);
    if ((aux & shm::aux::kTextWanted) != 0) StoreName(slot, asked.label, asked.value);
    if (is_lent) return {};
    return Spent{rule.kind, asked.whole,         slot,           tokens,
                 seen.gen,  seen.verdict.new_ns, charge.cost_ns, asked.text};
  }
  return {};
}

// The request turns out to cost less (nothing: a refund), as much, or more. What it spent in a
// candidate is corrected with it.
void Host::Correct(const std::vector<Spent>& spends) {
  if (!checking_ || is_paused()) return;
  const auto actual = static_cast<uint32_t>(random_.Below(2 * spends[0].tokens + 1));
  for (const Spent& spent : spends) {
    if (actual < spent.tokens) GiveBack(spent, spent.tokens - actual);
    if (actual > spent.tokens) ChargeMore(spent, actual - spent.tokens);
  }
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
