// An attached libsluice client, closed with its scope.
#pragma once

#include <memory>
#include <string>

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

}  // namespace sluice::ctl
