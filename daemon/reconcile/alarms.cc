// What a worker tells people: raised once, cleared once.
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/log.h"
#include "daemon/reconcile/worker.h"

namespace sluice::reconcile {
namespace {

constexpr std::string_view kDegradedAlarm = "degraded:";
constexpr std::string_view kHomeAlarm = "home:";
// Looks before a server counts as one that does not say who it is.
constexpr int kNamelessLooks = 10;

}  // namespace

void Worker::OnAlarm(const redis::Alarm& alarm) {
  SetAlarm(absl::StrCat("redis-", std::string(redis::AlarmName(alarm.kind)), ":", alarm.subject),
           alarm.raised, absl::StrCat(alarm.subject, ": ", alarm.text), alarm.mend);
}

// Raised once, cleared once, each with one line in the log.
void Worker::SetAlarm(const std::string& id, bool raised, std::string text, std::string mend) {
  const auto found = alarms_.find(id);
  if (!raised) {
    if (found == alarms_.end()) return;
    log::Info("alarm cleared: %s", found->second.text);
    alarms_.erase(found);
    return;
  }
  if (found != alarms_.end()) return;
  log::Error("alarm: %s%s%s", text, mend.empty() ? "" : "; mend: ", mend);
  alarms_[id] = {.id = id, .text = std::move(text), .mend = std::move(mend), .since_ns = Now()};
}

// A rule is degraded once a request was decided by its when_degraded; which shards are in emergency
// says nothing of a rule that has no buckets there.
void Worker::RaiseRuleAlarms() {
  const uint32_t shards = reconciler_->emergencies();
  SetAlarm("emergency", shards != 0, "shards are in emergency: their routes follow when_degraded",
           "look at redis.primaries in sluicectl status");
  if (rules_ == nullptr) return;
  const bool over = shards == 0 && !reconciler_->forces_rules();
  for (const config::CompiledRule& rule : rules_->rules()) {
    const auto totals = reconciler_->totals().find(rule.label);
    const uint64_t degraded = totals == reconciler_->totals().end() ? 0 : totals->second.degraded;
    uint64_t& before = degraded_before_[rule.label];
    if (over) before = degraded;
    if (!rule.alert || degraded == before) continue;
    SetAlarm(std::string(kDegradedAlarm) + rule.label, true,
             absl::StrCat("rule ", rule.label, " is degraded"), "Redis must come back");
  }
  ClearRuleAlarms(over);
}

// Those of rules that have recovered, are gone or alert no more.
void Worker::ClearRuleAlarms(bool over) {
  std::vector<std::string> ended;
  for (const auto& [id, alarm] : alarms_) {
    if (!id.starts_with(kDegradedAlarm)) continue;
    const config::CompiledRule* rule = rules_->Find(id.substr(kDegradedAlarm.size()));
    if (over || rule == nullptr || !rule->alert) ended.push_back(id);
  }
  for (const std::string& id : ended) SetAlarm(id, false, "", "");
}

// Strict rules need to know which server lends.
void Worker::RaiseNamelessAlarm() {
  std::string nameless;
  for (uint32_t i = 0; reconciler_->has_strict() && i < primary_count(); ++i) {
    const redis::PrimaryInfo info = client_->Primary(i);
    if (info.in_map && info.connected && !IsKnown(i)) nameless = info.address;
  }
  nameless_looks_ = nameless.empty() ? 0 : nameless_looks_ + 1;
  if (nameless_looks_ != 0 && nameless_looks_ < kNamelessLooks) return;
  SetAlarm("nameless", nameless_looks_ != 0,
           absl::StrCat(nameless, " does not say who it is: strict rules are lent nothing there"),
           "give the user of redis.username the right to INFO: ACL SETUSER ... +info");
}

// Maps of homes that are not those in force: nothing is lent under them.
void Worker::RaiseHomeAlarms() {
  if (reconciler_->homes() == nullptr || rules_ == nullptr) return;
  const auto& refused = reconciler_->homes()->refused();
  for (const auto& [label, why] : refused) {
    const bool is_late = why == lease::Away::kLaterMap;
    SetAlarm(std::string(kHomeAlarm) + label, true,
             absl::StrCat("rule ", label,
                          is_late ? " has a home of a later epoch on other hosts"
                                  : " has another home under this epoch on other "
                                    "hosts",
                          ": this one is lent nothing"),
             is_late ? "give this host the configuration of the others"
                     : "give all hosts one configuration, with a higher consistency.epoch");
  }
  std::vector<std::string> ended;
  for (const auto& [id, alarm] : alarms_) {
    if (id.starts_with(kHomeAlarm) && !refused.contains(id.substr(kHomeAlarm.size()))) {
      ended.push_back(id);
    }
  }
  for (const std::string& id : ended) SetAlarm(id, false, "", "");
}

void Worker::UpdateAlarms() {
  if (client_ == nullptr) return;
  RaiseRuleAlarms();
  RaiseNamelessAlarm();
  RaiseHomeAlarms();
  SetAlarm("given-up", reconciler_->stats().given_up != 0,
           "batches that Redis never answered were given up: their use is not counted there",
           "look for a Redis that has been cut off for 12 hours");
}

}  // namespace sluice::reconcile
