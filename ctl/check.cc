// `sluicectl check`: asks the rules as any client would, through libsluice.

#include <signal.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/text.h"
#include "sluice.hpp"

namespace sluice::ctl {
namespace {

constexpr uint32_t kMaxCount = 1'000'000;
constexpr absl::Duration kMaxPatience = absl::Hours(24 * 365);
constexpr absl::Duration kMaxHold = absl::Hours(24);
constexpr size_t kFieldsBytes = 4096;  // SLUICE_MAX_RULES_PER_REQUEST policies with long names

struct CheckOptions {
  std::vector<std::string> descriptors;
  std::optional<uint64_t> cost;  // 1 where nothing is said
  uint32_t count = 1;
  bool is_peek = false;
  std::string acquire;              // for how long it may wait; empty: not at all
  std::string hold;                 // enters, and leaves after so long; empty: it does not enter
  std::optional<uint32_t> outcome;  // status by which each that was allowed is said to have ended
};

const char* SourceText(uint16_t source) {
  switch (source) {
    case SLUICE_SOURCE_RULES:
      return "rules";
    case SLUICE_SOURCE_NO_MATCH:
      return "no rule matches";
    case SLUICE_SOURCE_DEFAULT:
      return "default: not attached";
    case SLUICE_SOURCE_EMERGENCY:
      return "emergency: the rule is degraded";
    case SLUICE_SOURCE_OVERFLOW:
      return "overflow: the rule's shared bucket";
    default:
      return "unknown";
  }
}

const char* LevelText(uint8_t level) {
  switch (level) {
    case SLUICE_LEVEL_OK:
      return "ok";
    case SLUICE_LEVEL_NEAR:
      return "near";
    case SLUICE_LEVEL_SOFT:
      return "soft";
    default:
      return "hard";
  }
}

std::string Rule(sluice_t* client, const sluice_decision_t& decision, uint16_t rule) {
  sluice_decision_t asked = decision;
  asked.rule = rule;
  return DecidingRule(client, asked);
}

// "name: value" lines of the HTTP fields.
std::vector<std::pair<std::string, std::string>> Fields(sluice_t* client,
                                                        const sluice_decision_t& decision) {
  std::vector<std::pair<std::string, std::string>> fields;
  char buffer[kFieldsBytes];
  const int bytes = sluice_http_fields(client, &decision, buffer, sizeof(buffer));
  std::string_view text(buffer, bytes > 0 ? static_cast<size_t>(bytes) : 0);
  for (size_t end = text.find("\r\n"); end != std::string_view::npos; end = text.find("\r\n")) {
    const std::string_view line = text.substr(0, end);
    const size_t colon = line.find(": ");
    if (colon != std::string_view::npos) {
      fields.emplace_back(line.substr(0, colon), line.substr(colon + 2));
    }
    text.remove_prefix(end + 2);
  }
  return fields;
}

nlohmann::json ToJson(sluice_t* client, const sluice_decision_t& d, int result,
                      uint64_t allowed_count, uint64_t count) {
  nlohmann::json json = {
      {"allowed", d.allowed != 0},
      {"level", LevelText(d.level)},
      {"source", SourceText(d.source)},
      {"banned", d.banned != 0},
      {"checks", count},
      {"checks_allowed", allowed_count},
  };
  if (result < 0) json["error"] = sluice_strerror(result);
  if (d.limit != 0) {
    json["rule"] = Rule(client, d, d.rule);
    json["limit"] = d.limit;
    json["period_ns"] = d.period_ns;
    json["burst"] = d.burst;
    json["remaining"] = d.remaining;
    json["retry_after_ns"] = RetryAfterJson(d);
    json["reset_after_ns"] = d.reset_after_ns;
    json["delay_ns"] = d.delay_ns;
    json["shadow"] = d.shadow != 0;
  }
  json["rules"] = nlohmann::json::array();
  for (uint16_t i = 0; i < d.spend_count; ++i) {
    json["rules"].push_back(Rule(client, d, d.spends[i].rule));
  }
  json["fields"] = nlohmann::json::object();
  for (const auto& [name, value] : Fields(client, d)) json["fields"][name] = value;
  return json;
}

void PrintText(sluice_t* client, const sluice_decision_t& d, const CheckOptions& options,
               uint64_t allowed_count) {
  if (options.count > 1) {
    std::cout << allowed_count << " of " << options.count << " allowed; the last one:\n";
  }
  std::cout << (d.allowed != 0 ? "allowed" : "denied") << "  (" << SourceText(d.source) << ")\n";
  if (d.limit != 0) {
    std::cout << "  decided by   " << Rule(client, d, d.rule) << ": "
              << FormatLimit(d.limit, d.period_ns) << ", burst " << d.burst << "\n"
              << "  remaining    " << d.remaining << "\n"
              << "  level        " << LevelText(d.level) << "\n";
    if (d.delay_ns != 0) {
      std::cout << (options.acquire.empty() ? "  goes on in   " : "  waited       ")
                << FormatDuration(d.delay_ns) << "\n";
    }
    if (d.allowed == 0) {
      std::cout << "  retry after  " << FormatDuration(d.retry_after_ns)
                << (d.retry_after_ns == SLUICE_NEVER
                        ? ": the cost is more than such a request may ever use"
                        : "")
                << "\n";
    }
    // Of places nobody knows.
    if (d.period_ns != 0) {
      std::cout << "  full again   in " << FormatDuration(d.reset_after_ns) << "\n";
    }
  }
  if (d.banned != 0)
    std::cout << "  banned       by a rule's penalty; the way out: sluicectl unban\n";
  if (d.shadow != 0) std::cout << "  a shadow rule would have denied it\n";
  if (d.spend_count > 1) {
    std::cout << "  rules        ";
    for (uint16_t i = 0; i < d.spend_count; ++i) {
      std::cout << (i == 0 ? "" : ", ") << Rule(client, d, d.spends[i].rule);
    }
    std::cout << "\n";
  }
  for (const auto& [name, value] : Fields(client, d)) {
    std::cout << "  " << name << ": " << value << "\n";
  }
}

volatile sig_atomic_t ended = 0;

void Handle(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

// Ctrl-C gives back a turn that is waited for.
void LetSignalsEndTheWait() {
  Handle([](int) { ended = 1; });
}

// Of the place; a signal ends it, and the process.
void Hold(absl::Duration duration) {
  Handle(SIG_DFL);
  if (ended == 0) absl::SleepFor(duration);
}

// What the request is told, with a place where it holds one. `patience`: null where it does not
// wait.
int Ask(sluice_t* client, const std::vector<sluice_descriptor_t>& descriptors, uint64_t cost,
        const CheckOptions& options, const absl::Duration* patience, sluice_place_t* place) {
  const sluice_descriptor_t* const list = descriptors.data();
  const size_t count = descriptors.size();
  constexpr int kNoFile = -1;
  if (patience != nullptr) {
    const uint64_t deadline_ns = DeadlineNs(absl::ToChronoNanoseconds(*patience));
    return !options.hold.empty()
               ? sluice_enter_until(client, list, count, cost, deadline_ns, kNoFile, place)
               : sluice_acquire(client, list, count, cost, deadline_ns, kNoFile, &place->decision);
  }
  if (!options.hold.empty()) return sluice_enter(client, list, count, cost, place);
  const auto ask = options.is_peek ? sluice_peek : sluice_check;
  return ask(client, list, count, cost, &place->decision);
}

absl::Status RunCheck(const Globals& globals, const CheckOptions& options, int* exit_code) {
  const auto descriptors = ParseDescriptors(options.descriptors);
  if (!descriptors.ok()) return descriptors.status();
  absl::StatusOr<absl::Duration> patience = absl::ZeroDuration();
  if (!options.acquire.empty()) {
    patience = ParseTime("--acquire", options.acquire, kMaxPatience);
    if (!patience.ok()) return patience.status();
    LetSignalsEndTheWait();
  }
  absl::StatusOr<absl::Duration> hold = absl::ZeroDuration();
  if (!options.hold.empty()) hold = ParseTime("--hold", options.hold, kMaxHold);
  if (!hold.ok()) return hold.status();
  absl::StatusOr<Client> client = Client::Attach(globals, "sluicectl check");
  if (!client.ok()) return client.status();

  sluice_place_t place{};
  sluice_decision_t& decision = place.decision;
  int result = 0;
  int corrected = 0;  // rules that spoke of the last outcome
  uint64_t allowed_count = 0;
  const uint64_t cost = options.cost.value_or(1);
  for (uint32_t i = 0; i < options.count; ++i) {
    result = Ask(client->get(), *descriptors, cost, options,
                 options.acquire.empty() ? nullptr : &*patience, &place);
    if (result < 0) break;
    allowed_count += decision.allowed != 0 ? 1 : 0;
    if (!options.outcome || decision.allowed == 0) continue;
    corrected = sluice_report(client->get(), &decision, *options.outcome);
    if (corrected < 0) return absl::InvalidArgumentError(sluice_strerror(corrected));
  }
  if (globals.is_json) {
    nlohmann::json json = ToJson(client->get(), decision, result, allowed_count, options.count);
    if (options.outcome) json["rules_of_outcome"] = corrected;
    std::cout << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else if (result >= 0) {
    PrintText(client->get(), decision, options, allowed_count);
    if (options.outcome && decision.allowed != 0) {
      std::cout << "  ended with   " << *options.outcome << ": of " << corrected
                << (corrected == 1 ? " rule's" : " rules'") << " outcomes\n";
    }
  }
  if (result < 0) return absl::InvalidArgumentError(sluice_strerror(result));
  bool is_held = false;
  if (place.name != 0) {
    std::cout << std::flush;
    Hold(*hold);
    is_held = sluice_leave(client->get(), &place) == 1;
  }
  if (!options.hold.empty() && result > 0 && !is_held) {
    std::cerr << "no place was held: no rule with `in_flight` matches\n";
  }
  *exit_code = decision.allowed != 0 ? kExitOk : kExitDenied;
  return absl::OkStatus();
}

}  // namespace

void AddCheck(CLI::App* root, Globals* globals) {
  CLI::App* verb = AddVerb(
      root, globals, "check",
      "check one request against the running rules (spends, as a client does)",
      "Examples:\n"
      "  sluicectl check tenant=acme user=42 ip=203.0.113.7 route=/v1/generate tier=paid\n"
      "  sluicectl check tenant=acme --cost 50      one request that costs 50\n"
      "  sluicectl check tenant=acme --count 100    how many of 100 in a row are let through\n"
      "  sluicectl check tenant=acme --peek         what it would answer; nothing is spent\n"
      "  sluicectl check api=partner --acquire 30s  waits for its turn, so long at most\n"
      "  sluicectl check tenant=acme --hold 60      hold a place of requests in flight for a "
      "minute\n"
      "  sluicectl check tenant=acme --hold 60 --acquire 5s  wait for the place, so long at most\n"
      "  sluicectl check tenant=acme --outcome 503  and tell how it ended\n"
      "  sluicectl check tenant=acme --json | jq .retry_after_ns\n\n"
      "Exit code: 0 allowed, 1 denied (of several: the last), 2 wrong arguments, 3 no daemon.");
  auto options = std::make_shared<CheckOptions>();
  verb->add_option("DESCRIPTORS", options->descriptors, "NAME=VALUE ...")->required();
  verb->add_option("--cost", options->cost, "tokens that the request costs [1]")
      ->check(CLI::Range(uint64_t{0}, uint64_t{SLUICE_MAX_COST}));
  CLI::Option* const count =
      verb->add_option("--count", options->count, "check so many times in a row")
          ->check(CLI::Range(1u, kMaxCount))
          ->capture_default_str();
  CLI::Option* const peek = verb->add_flag("--peek", options->is_peek, "look only: spend nothing");
  verb->add_option("--acquire", options->acquire,
                   "wait for its turn, or with --hold for a place, so long at most, as in 30s")
      ->excludes(peek);
  verb->add_option("--hold", options->hold, "enter, and leave after so long: seconds, or as 5m")
      ->excludes(peek)
      ->excludes(count);
  verb->add_option("--outcome", options->outcome,
                   "tell how it ended, by a status such as 503: rules' outcomes correct the cost")
      ->check(CLI::Range(0u, 999u))
      ->excludes(peek);
  verb->callback(
      [globals, options] { Conclude(globals, RunCheck(*globals, *options, &globals->exit_code)); });
}

}  // namespace sluice::ctl
