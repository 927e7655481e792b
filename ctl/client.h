// An attached libsluice client, closed with its scope.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ctl/command.h"
#include "sluice.h"

namespace sluice::ctl {

// A running daemon answers within milliseconds; this covers one that is just starting.
inline constexpr uint32_t kAttachTimeoutMs = 2000;

class Client {
 public:
  // Fails with kUnavailable, the reason and the mend where it is not attached in time.
  static absl::StatusOr<Client> Attach(const Globals& globals, const std::string& label);

  sluice_t* get() const { return client_.get(); }

 private:
  explicit Client(sluice_t* client) : client_(client, &sluice_close) {}
  std::unique_ptr<sluice_t, void (*)(sluice_t*)> client_;
};

// NAME=VALUE each; what they point to are `texts`.
absl::StatusOr<std::vector<sluice_descriptor_t>> ParseDescriptors(
    const std::vector<std::string>& texts);

// The label of the rule that decided; empty: none did, or the rules have changed since.
std::string DecidingRule(sluice_t* client, const sluice_decision_t& decision);

// ns; null: the cost can never fit.
nlohmann::json RetryAfterJson(const sluice_decision_t& decision);

}  // namespace sluice::ctl
