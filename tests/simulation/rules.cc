#include "tests/simulation/rules.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

namespace sluice::simulation {
namespace {

constexpr double kInPart = 0.5;  // of the seeds a rule that is not in all is in so many

config::RuleConfig Rule(const std::string& name, uint64_t limit, uint64_t period_ns,
                        uint64_t burst) {
  config::RuleConfig rule;
  rule.name = name;
  rule.key = {{.descriptor = "user"}};
  rule.limit = config::LimitConfig{.limit = limit, .period_ns = period_ns, .burst = burst};
  return rule;
}

config::RuleConfig Window(const std::string& name, shm::Kind kind, uint64_t limit,
                          uint64_t period_ns) {
  config::RuleConfig rule = Rule(name, limit, period_ns, limit);
  rule.kind = kind;
  return rule;
}

config::RuleConfig InFlight(const std::string& name, uint32_t places) {
  config::RuleConfig rule = Rule(name, places, kSecond, places);
  rule.kind = shm::Kind::kInFlight;
  return rule;
}

config::RuleConfig Classed(config::RuleConfig rule) {
  rule.priority = config::PriorityConfig{.classes = {{.value = "high", .part = 1},
                                                     {.value = "low", .part = 0.625},
                                                     {.value = "least", .part = 0.3}}};
  return rule;
}

config::RuleConfig Strict(const std::string& name) {
  config::RuleConfig rule = Rule(name, kStrict, kSecond, kStrict);
  rule.strict = true;
  rule.degraded.mode = shm::DegradedMode::kClosed;
  return rule;
}

config::RuleConfig Guarded(config::RuleConfig rule) {
  rule.penalty = {.after = kBanAfter, .within_ns = 10 * kSecond, .for_ns = kBanNs};
  return rule;
}

// Its candidate denies most of what it admits.
config::RuleConfig Tried(config::RuleConfig rule) {
  rule.candidate = rule.limit;
  rule.candidate->limit = std::max<uint64_t>(rule.limit->limit / 10, 1);
  rule.candidate->burst = std::max<uint64_t>(rule.limit->burst / 10, 3);
  return rule;
}

// Days that begin a few seconds after a run.
config::RuleConfig Quota(const std::string& name, uint64_t limit, config::Config* config) {
  constexpr uint64_t kMinuteUs = 60'000'000;
  constexpr uint64_t kMinutes = 24 * 60;
  config->calendars = {{.minute = static_cast<int>((kEpochUs / kMinuteUs + 1) % kMinutes)}};
  config::RuleConfig rule = Window(name, shm::Kind::kFixedWindow, limit,
                                   config::CalendarPeriodNs(config::CalendarUnit::kDay));
  rule.limit->calendar = 1;
  return rule;
}

config::RuleConfig Given(config::RuleConfig rule) {
  rule.override = config::OverrideConfig{.descriptor = "given", .max = 3 * rule.limit->limit};
  return rule;
}

config::RuleConfig Private(config::RuleConfig rule) {
  rule.key[0].is_private = true;
  return rule;
}

}  // namespace

void DrawRules(Random* random, config::Config* config) {
  std::vector<config::RuleConfig>& rules = config->rules;
  rules = {Classed(Rule("per-user", 200, kSecond, 100)),
           Rule("per-org", 3000, 60 * kSecond, 300),
           Guarded(Rule("guarded", 1, kSecond, 4)),
           Rule("per-day", 100'000, 3600 * kSecond, 2000),
           Classed(Window("fixed", shm::Kind::kFixedWindow, 500, 2 * kSecond)),
           Classed(Window("sliding", shm::Kind::kSlidingWindow, 2000, 10 * kSecond)),
           Classed(Window("log", shm::Kind::kSlidingLog, 600, 4 * kSecond)),
           InFlight("seats", kSeats)};
  const auto add = [&](config::RuleConfig rule) {
    if (random->Chance(kInPart)) rules.push_back(std::move(rule));
  };
  // So small that classes are denied.
  add(Classed(Rule("classed", 10, kSecond, 20)));
  add(Classed(Window("classed-window", shm::Kind::kSlidingWindow, 20, 2 * kSecond)));
  add(Classed(Window("classed-log", shm::Kind::kSlidingLog, 20, 2 * kSecond)));
  add(Tried(Rule("tried", 20, kSecond, 40)));
  add(Quota("quota", 60, config));
  add(Given(Rule("given", 10, kSecond, 10)));
  add(Private(Rule("private", 50, kSecond, 20)));
  rules.push_back(Classed(Strict("strict")));
}

void DrawPrivateKeys(Random* random, config::Config* config) {
  std::string lines[] = {"a 000102030405060708090a0b0c0d0e0f\n",
                         "b 101112131415161718191a1b1c1d1e1f\n"};
  if (random->Chance(0.5)) std::swap(lines[0], lines[1]);
  absl::StatusOr<config::PrivateKeys> keys = config::PrivateKeys::Parse(lines[0] + lines[1]);
  if (!keys.ok()) abort();
  config->privacy.keys = std::make_shared<const config::PrivateKeys>(*std::move(keys));
}

}  // namespace sluice::simulation
