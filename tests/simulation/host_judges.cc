// What must hold whenever one of a host's clients was answered.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "shm/log_row.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {
namespace {

// Of the entries of this tenancy, those that were taken less than a period ago.
uint32_t CountLogged(const shm::logs::Row<std::atomic<uint64_t>>& row, const shm::Limit& limit,
                     uint16_t gen, uint64_t now_ns) {
  uint32_t logged = 0;
  for (uint32_t i = 0; i < std::min<uint64_t>(limit.limit, row.size); ++i) {
    const uint64_t entry = row.entries[i].load();
    const int64_t age_us = shm::logs::AgeUs(entry, now_ns / kUs);
    logged += entry != 0 && shm::logs::Gen(entry) == gen && !shm::logs::IsGivenBack(entry) &&
              age_us < static_cast<int64_t>(limit.period_ns / kUs);
  }
  return logged;
}

}  // namespace

classes::Found Host::Look(const Asked& asked, uint32_t slot) const {
  const shm::MappedBuckets& b = buckets_.buckets();
  const shm::Slot& s = b.slots()[slot];
  const uint16_t gen = shm::key::Gen(s.key.load());
  const uint64_t second = b.second()[slot].load();
  classes::Found found{.kind = asked.rule->kind,
                       .limit = asked.whole,
                       .now_ns = NowNs(),
                       .word = s.word.load(),
                       .second = shm::window::second::Gen(second) == gen ? second : 0,
                       .aux = s.aux.load(),
                       .logged = 0};
  if (found.kind == shm::Kind::kSlidingLog && asked.part < 1) {
    found.logged = CountLogged(RowOf(slot), asked.whole, gen, found.now_ns);
  }
  return found;
}

void Host::JudgeClass(const Asked& asked, const classes::Found& found) {
  if (asked.part >= 1) return;
  classes_judged_ += asked.tokens;
  const double taken = classes::TakenOfOthers(found, asked.part, asked.tokens);
  if (taken <= classes::kRounding) return;
  options_.on_wrong(absl::StrCat("class: ", taken, " tokens of ", asked.text,
                                 " are kept for those above a part of ", asked.part));
}

// The rule's own word decides, with this host's part of the limit, and nothing else.
void Host::JudgeTried(const Asked& asked, const shm::Seen& seen, bool is_allowed) {
  ++tried_;
  const double share = std::max<double>(shm::aux::InvShare(seen.aux), shm::aux::kShareOne) /
                       static_cast<double>(shm::aux::kShareOne);
  const double tau_ns = static_cast<double>(asked.limit.tau_ns);
  const double cost_ns =
      std::min(share * asked.tokens * static_cast<double>(asked.limit.interval_ns), tau_ns);
  const uint64_t now_ns = NowNs();
  const auto debt_ns =
      static_cast<double>(seen.word_ns > now_ns ? seen.word_ns - now_ns : uint64_t{0});
  constexpr double kRoundingNs = 1000;
  const double over_ns = debt_ns + cost_ns - tau_ns;
  if (is_allowed ? over_ns < kRoundingNs : over_ns > -kRoundingNs) return;
  options_.on_wrong(absl::StrCat("candidate: ", asked.text, is_allowed ? " admitted" : " denied",
                                 ", and its own word says ", over_ns, " ns over"));
}

// The window that it was admitted in is the one that its word tells of.
void Host::JudgeQuota(const Asked& asked, const shm::Seen& seen) {
  const config::CalendarTable::Entry* const entry =
      asked.rule->calendar->Near(shm::window::TimeNs(seen.verdict.new_ns));
  if (entry == nullptr) return options_.on_wrong(absl::StrCat("quota: no window of ", asked.text));
  const int64_t over = quotas_.Spend({asked.text, entry->window.end_us}, asked.tokens) -
                       static_cast<int64_t>(asked.whole.limit);
  if (over <= 0) return;
  options_.on_wrong(absl::StrCat("quota: ", over, " tokens more than ", asked.whole.limit, " of ",
                                 asked.text, " by what host ", options_.number, " was told"));
}

// As the daemon's rule book does it.
void Host::RenewCalendars() {
  if (!calendars_.Renew(NowNs())) return;
  auto rules = std::make_shared<config::CompiledRules>(*rules_);
  rules->AddCalendars(calendars_.tables());
  rules_ = std::move(rules);
  worker_->SetRules(rules_);
}

}  // namespace sluice::simulation
