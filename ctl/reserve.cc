// `sluicectl reserve` and `sluicectl settle`: a cost that is known only afterwards, by hand.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/text.h"
#include "sluice.h"

namespace sluice::ctl {
namespace {

struct ReserveOptions {
  std::vector<std::string> descriptors;
  uint64_t estimate = 1;
  std::string hold = "10m";
};

struct SettleOptions {
  std::string token;
  uint64_t actual = 0;
};

// Whatever of it is in use: the spends behind the decision's count are not.
constexpr size_t kHeadBytes =
    offsetof(sluice_reservation_t, decision) + offsetof(sluice_decision_t, spends);

size_t UsedBytes(const sluice_decision_t& d) {
  return kHeadBytes + (size_t{d.spend_count} + d.candidate_count) * sizeof(sluice_spend_t);
}

// Before the bytes, so that no token looks like an option, or one of another form like this.
const std::string kMark = "r1.";

std::string TokenOf(const sluice_reservation_t& reservation) {
  const std::string bytes(reinterpret_cast<const char*>(&reservation),
                          UsedBytes(reservation.decision));
  return kMark + absl::WebSafeBase64Escape(bytes);
}

absl::StatusOr<sluice_reservation_t> ReservationOf(const std::string& token) {
  sluice_reservation_t reservation{};
  std::string bytes;
  if (token.starts_with(kMark) && absl::WebSafeBase64Unescape(token.substr(kMark.size()), &bytes) &&
      bytes.size() >= kHeadBytes && bytes.size() <= sizeof reservation) {
    std::memcpy(&reservation, bytes.data(), bytes.size());
    if (UsedBytes(reservation.decision) == bytes.size()) return reservation;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", token, "': write a reservation as sluicectl reserve prints it"));
}

absl::Status RunReserve(const Globals& globals, const ReserveOptions& options, int* exit_code) {
  const auto descriptors = ParseDescriptors(options.descriptors);
  if (!descriptors.ok()) return descriptors.status();
  const auto hold = ParseTime("--hold", options.hold, absl::Nanoseconds(SLUICE_MAX_HOLD_NS));
  if (!hold.ok()) return hold.status();
  absl::StatusOr<Client> client = Client::Attach(globals, "sluicectl reserve");
  if (!client.ok()) return client.status();

  sluice_reservation_t r{};
  const sluice_decision_t& d = r.decision;
  const int result =
      sluice_reserve(client->get(), descriptors->data(), descriptors->size(), options.estimate,
                     static_cast<uint64_t>(absl::ToInt64Nanoseconds(*hold)), &r);
  if (result < 0) return absl::InvalidArgumentError(sluice_strerror(result));
  *exit_code = result == 1 ? kExitOk : kExitDenied;
  const std::string rule = DecidingRule(client->get(), d);
  if (globals.is_json) {
    nlohmann::json json = {{"allowed", result == 1}, {"rule", rule}};
    if (result == 1) {
      json["estimate"] = r.estimate;
      json["expires_in_ns"] = r.expires_ns - std::min(r.expires_ns, d.now_ns);
      json["reservation"] = r.expires_ns == 0 ? nlohmann::json() : nlohmann::json(TokenOf(r));
    } else {
      json["retry_after_ns"] = RetryAfterJson(d);
    }
    std::cout << json.dump(2) << "\n";
  } else if (result != 1) {
    std::cout << "denied by " << SafeText(rule) << ", nothing is held: again in "
              << FormatDuration(d.retry_after_ns) << "\n";
  } else if (r.expires_ns == 0) {
    std::cout << "allowed: no rule matches, so nothing is held\n";
  } else {
    std::cout << "reserved " << r.estimate << " of " << SafeText(rule) << ", " << d.remaining
              << " are left; in " << options.hold << " that stands, unless:\n"
              << "sluicectl settle " << TokenOf(r) << " COST\n";
  }
  return absl::OkStatus();
}

absl::Status RunSettle(const Globals& globals, const SettleOptions& options, int* exit_code) {
  const auto reservation = ReservationOf(options.token);
  if (!reservation.ok()) return reservation.status();
  absl::StatusOr<Client> client = Client::Attach(globals, "sluicectl settle");
  if (!client.ok()) return client.status();
  const int result = sluice_settle(client->get(), &*reservation, options.actual);
  if (result < 0) return absl::InvalidArgumentError(sluice_strerror(result));
  *exit_code = result == 1 ? kExitOk : kExitDenied;
  if (globals.is_json) {
    std::cout << nlohmann::json({{"settled", result == 1}}).dump(2) << "\n";
  } else if (result == 1) {
    std::cout << "settled for " << options.actual << ", of " << reservation->estimate
              << " that were reserved\n";
  } else {
    std::cout << "it was settled before, or its time is over: what is charged stands\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddReserve(CLI::App* root, Globals* globals) {
  CLI::App* verb =
      AddVerb(root, globals, "reserve", "reserve an estimated cost, to be settled when it is known",
              "Examples:\n"
              "  sluicectl reserve tenant=acme model=large --cost 800\n"
              "  sluicectl reserve tenant=acme --cost 800 --hold 5m --json | jq -r .reservation\n\n"
              "Exit code: 0 reserved, 1 denied, 2 wrong arguments, 3 no daemon.");
  auto options = std::make_shared<ReserveOptions>();
  verb->add_option("DESCRIPTORS", options->descriptors, "NAME=VALUE ...")->required();
  verb->add_option("--cost", options->estimate, "the estimate, in tokens")
      ->check(CLI::Range(uint64_t{0}, uint64_t{SLUICE_MAX_COST}))
      ->capture_default_str();
  verb->add_option("--hold", options->hold, "how long it may be settled, an hour at most")
      ->capture_default_str();
  verb->callback([globals, options] {
    Conclude(globals, RunReserve(*globals, *options, &globals->exit_code));
  });
}

void AddSettle(CLI::App* root, Globals* globals) {
  CLI::App* verb =
      AddVerb(root, globals, "settle", "tell what a reservation cost in truth; 0 cancels it",
              "Examples:\n"
              "  sluicectl settle RESERVATION 1234    what was too much goes back, what was too "
              "little is charged\n"
              "  sluicectl settle RESERVATION 0       cancels it\n\n"
              "Exit code: 0 settled, 1 it was settled before or its time is over, 2 wrong "
              "arguments, 3 no\n"
              "daemon.");
  auto options = std::make_shared<SettleOptions>();
  verb->add_option("RESERVATION", options->token, "as sluicectl reserve prints it")->required();
  verb->add_option("COST", options->actual, "what it cost, in tokens")
      ->required()
      ->check(CLI::Range(uint64_t{0}, uint64_t{SLUICE_MAX_COST}));
  verb->callback([globals, options] {
    Conclude(globals, RunSettle(*globals, *options, &globals->exit_code));
  });
}

}  // namespace sluice::ctl
