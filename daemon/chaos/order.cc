#include "daemon/chaos/order.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/config/text.h"
#include "daemon/config/units.h"
#include "shm/layout.h"

namespace sluice::chaos {
namespace {

using config::Cat;

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kSecond = 1'000'000'000;

struct FaultSpec {
  std::string_view name;
  Fault fault;
  bool takes_share;
  uint64_t max_by_ns;  // 0: takes none
};
constexpr FaultSpec kFaults[] = {
    {"redis-delay", Fault::kRedisDelay, true, 10 * kSecond},
    {"redis-error", Fault::kRedisError, true, 0},
    {"redis-cut", Fault::kRedisCut, true, 0},
    {"daemon-pause", Fault::kDaemonPause, false, 0},
    {"clock-lag", Fault::kClockLag, false, kSecond},
    {"emergency", Fault::kEmergency, true, 0},
};

const FaultSpec& SpecOf(Fault fault) {
  return *std::find_if(std::begin(kFaults), std::end(kFaults),
                       [&](const FaultSpec& spec) { return spec.fault == fault; });
}

absl::StatusOr<uint64_t> ReadDuration(const std::string& name, const std::string& text,
                                      uint64_t min_ns, uint64_t max_ns) {
  const absl::StatusOr<uint64_t> ns = config::ParseDurationNs(text);
  if (ns.ok() && *ns >= min_ns && *ns <= max_ns) return *ns;
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": write a duration from ", config::FormatDuration(min_ns), " to ",
                   config::FormatDuration(max_ns), ", not \"", text, "\""));
}

// "10", "10%" or "2.5%" as a share.
absl::StatusOr<double> ReadShare(const std::string& text, double max) {
  char* end = nullptr;
  const double percent = std::strtod(text.c_str(), &end);
  const bool is_number = end != text.c_str() && (*end == '\0' || (*end == '%' && end[1] == '\0')) &&
                         std::isfinite(percent) && percent > 0;
  if (is_number && percent <= max * 100 + 1e-9) return std::min(percent / 100, 1.0);
  return absl::InvalidArgumentError(absl::StrFormat(
      "share: write a percentage above 0, up to the %g %% of daemon.chaos.max_share, not \"%s\"",
      max * 100, text));
}

absl::StatusOr<std::vector<std::string>> ReadRules(const std::string& text,
                                                   const config::Config& config) {
  std::vector<std::string> rules;
  for (const std::string_view part : config::Split(text, ',')) {
    const std::string label(config::Trim(part));
    const std::string name = config::RuleName(label);
    const auto found =
        std::find_if(config.rules.begin(), config.rules.end(),
                     [&](const config::RuleConfig& rule) { return rule.name == name; });
    if (found == config.rules.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("rules: there is no rule \"", label, "\"; sluicectl rules lists them"));
    }
    rules.push_back(label);
  }
  return rules;
}

absl::Status CheckAllowed(const config::Config& config) {
  if (!config.daemon.chaos.allow) {
    return absl::FailedPreconditionError(
        "chaos is off here: write daemon: {chaos: {allow: true}} and reload");
  }
  if (!config.redis.has_value()) {
    return absl::FailedPreconditionError(
        "there is no redis: section: this host limits by itself, and nothing can be cut off");
  }
  return absl::OkStatus();
}

// What the configuration restricts to some rules must not touch others.
absl::Status ReadAndCheckRules(const std::string* text, const config::Config& config,
                               Order* order) {
  const std::vector<std::string>& allowed = config.daemon.chaos.rules;
  if (text != nullptr) {
    if (order->fault != Fault::kEmergency) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rules: ", Cat(FaultName(order->fault)),
          " cannot be kept to some rules, since all of them share the batches; emergency can"));
    }
    absl::StatusOr<std::vector<std::string>> rules = ReadRules(*text, config);
    if (!rules.ok()) return rules.status();
    order->rules = *std::move(rules);
    // Their buckets are shown at a shard of their own.
    if (config.redis->shards > shm::kForcedShard) {
      return absl::FailedPreconditionError(
          absl::StrCat("rules: with ", shm::kMaxShards,
                       " redis.shards none is left to put them in emergency by"));
    }
  }
  if (allowed.empty()) return absl::OkStatus();
  if (order->rules.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "daemon.chaos.rules allows some rules only: run emergency with --rules and one of them"));
  }
  for (const std::string& label : order->rules) {
    const std::string name = config::RuleName(label);
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rules: daemon.chaos.rules does not have \"", name, "\""));
    }
  }
  return absl::OkStatus();
}

const FaultSpec* FindSpec(const std::string* name) {
  return std::find_if(std::begin(kFaults), std::end(kFaults),
                      [&](const FaultSpec& spec) { return name != nullptr && spec.name == *name; });
}

absl::Status UnknownFault() {
  std::string names;
  for (const FaultSpec& spec : kFaults) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", Cat(spec.name));
  }
  return absl::InvalidArgumentError(absl::StrCat("fault: write one of ", names));
}

absl::Status ReadBy(const std::string* text, const FaultSpec& spec, Order* order) {
  const std::string name = Cat(spec.name);
  if (text == nullptr && spec.max_by_ns == 0) return absl::OkStatus();
  if (text == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " needs a duration, as in ", name, " 200ms"));
  }
  if (spec.max_by_ns == 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, " takes no duration before --for"));
  }
  const auto ns = ReadDuration(name, *text, kMs, spec.max_by_ns);
  if (ns.ok()) order->by_ns = *ns;
  return ns.status();
}

absl::Status ReadFor(const std::string* text, const config::ChaosConfig& bounds, Order* order) {
  const uint64_t most_ns = order->fault == Fault::kDaemonPause
                               ? std::min(bounds.max_for_ns, kMaxPauseNs)
                               : bounds.max_for_ns;
  const auto ns = ReadDuration("for", text == nullptr ? "" : *text, kSecond, most_ns);
  if (ns.ok()) order->for_ns = *ns;
  return ns.status();
}

absl::Status ReadShareOf(const std::string* text, const FaultSpec& spec,
                         const config::ChaosConfig& bounds, Order* order) {
  const std::string name = Cat(spec.name);
  if (spec.takes_share) {
    const auto share = ReadShare(text == nullptr ? "100" : *text, bounds.max_share);
    if (share.ok()) order->share = *share;
    return share.status();
  }
  if (text != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("share: ", name, " is the whole daemon's"));
  }
  if (bounds.max_share < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " is the whole daemon's: daemon.chaos.max_share forbids it"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view FaultName(Fault fault) { return SpecOf(fault).name; }

std::string Order::ToString() const {
  const FaultSpec& spec = SpecOf(fault);
  std::string text = Cat(spec.name);
  if (spec.max_by_ns != 0) absl::StrAppend(&text, " by ", config::FormatDuration(by_ns));
  if (spec.takes_share) {
    const char* const of = !rules.empty()               ? "buckets"
                           : fault == Fault::kEmergency ? "shards"
                                                        : "calls";
    absl::StrAppend(&text, absl::StrFormat(" on %g %% of %s", share * 100, of));
  }
  for (size_t i = 0; i < rules.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? " of " : ", ", rules[i]);
  }
  return text;
}

absl::StatusOr<Order> ReadOrder(const std::map<std::string, std::string>& asked,
                                const config::Config& config) {
  const auto value = [&](const char* name) -> const std::string* {
    const auto found = asked.find(name);
    return found == asked.end() || found->second.empty() ? nullptr : &found->second;
  };
  absl::Status status = CheckAllowed(config);
  if (!status.ok()) return status;
  const FaultSpec* const spec = FindSpec(value("fault"));
  if (spec == std::end(kFaults)) return UnknownFault();
  const config::ChaosConfig& bounds = config.daemon.chaos;
  Order order;
  order.fault = spec->fault;
  status = ReadBy(value("by"), *spec, &order);
  if (status.ok()) status = ReadFor(value("for"), bounds, &order);
  if (status.ok()) status = ReadShareOf(value("share"), *spec, bounds, &order);
  if (status.ok()) status = ReadAndCheckRules(value("rules"), config, &order);
  if (!status.ok()) return status;
  return order;
}

}  // namespace sluice::chaos
