// A host's clients in flight: they enter, stay for a while, and leave or are killed.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "shm/bucket.h"
#include "shm/place_slot.h"
#include "tests/simulation/host.h"

namespace sluice::simulation {
namespace {

namespace places = shm::places;

constexpr uint64_t kGraceOfDeadNs = kSecond;  // in which a daemon that runs gives back
constexpr uint64_t kStayNs[] = {400 * kMs, 400 * kMs, 3 * kSecond, 20 * kSecond};

}  // namespace

std::string Host::Segments() const {
  return absl::StrFormat("%016x", control_.header().generation);
}

shm::logs::Row<std::atomic<uint64_t>> Host::RowOf(uint32_t slot) const {
  return {buckets_.buckets().log_entries() + uint64_t{slot} * kLogs.entries, kLogs.entries};
}

// `hash`: of the kind.
void Host::Enter(const config::CompiledRule& rule, const std::string& value, uint64_t hash,
                 uint32_t count, bool is_killed) {
  const shm::MappedBuckets& b = buckets_.buckets();
  HostClock::now_ns = NowNs();
  auto table = shm::SlotTable<std::atomic<uint64_t>>::OfPlaces(b.slots(), kLogs, b.counters(),
                                                               b.log_entries(), rule.limit.limit);
  for (int restart = 0; restart < shm::kMaxRestarts; ++restart) {
    bool claimed = false;
    const uint32_t slot =
        table.FindOrClaim(hash, rule.kind, 0, {NowNs(), kGraceNs, MaxDebtNs()}, &claimed);
    if (slot == shm::kNoSlot) return;
    if (claimed) ++tenancies_[rule.label];
    if (claimed) StoreName(slot, rule.label, value);
    shm::RequestTime<HostClock> time(false, 0);
    const shm::Charge charge{.cost_ns = 0,
                             .tau_ns = rule.limit.tau_ns,
                             .debt_max_ns = rule.limit.debt_max_ns,
                             .tokens = count,
                             .dearer_q16 = 0,
                             .admit_always = false,
                             .commit = true,
                             .kind = rule.kind,
                             .limit = &rule.limit};
    shm::Seen seen;
    const shm::Outcome outcome = places::Enter(
        table, slot, hash, charge, places::Lent<std::atomic<uint64_t>>{&b.second()[slot]},
        places::NameOf(1, ++nonce_), time, &seen);
    if (outcome == shm::Outcome::kLost) continue;
    if (outcome != shm::Outcome::kAllowed) {
      shm::AddWanted(b.slots()[slot], b.denied()[slot], b.dirty(), slot, seen.gen, count);
      return;
    }
    std::string text = absl::StrCat(rule.label, ":", value);
    in_flight_[text] += count;
    entered_ += count;
    options_.on_enter(text);
    const Stay stay = {slot, count, static_cast<uint32_t>(seen.cost_ns), seen.verdict.new_ns,
                       std::move(text)};
    if (is_killed) return GiveBackLater(stay);
    if ((shm::AddUse(b.slots()[slot], b.dirty(), slot, count) & shm::aux::kTextWanted) != 0) {
      StoreName(slot, rule.label, value);
    }
    const uint64_t most_ns = kStayNs[random_.Below(std::size(kStayNs))];
    timeline_->After(1 + random_.Below(most_ns), [this, stay] {
      if (random_.Chance(kill_chance_)) {
        ++killed_clients_;
        return GiveBackLater(stay);
      }
      Leave(stay);
    });
    return;
  }
}

void Host::Leave(const Stay& stay) {
  if (is_paused()) {
    return timeline_->After(1 + paused_until_ns_ - timeline_->now_ns(),
                            [this, stay] { Leave(stay); });
  }
  const uint32_t left = places::Leave(RowOf(stay.slot), stay.entry, stay.first, stay.count);
  if (left != stay.count) options_.on_wrong(absl::StrCat("held no more: ", stay.text));
  in_flight_[stay.text] -= stay.count;
}

// As admin::Holders does it, while a daemon runs.
void Host::GiveBackLater(const Stay& stay) {
  timeline_->After(1 + random_.Below(kGraceOfDeadNs), [this, stay] {
    if (!is_running() || is_paused()) return GiveBackLater(stay);
    Leave(stay);
  });
}

}  // namespace sluice::simulation
