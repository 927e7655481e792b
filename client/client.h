// The client behind the C ABI's opaque type.
#pragma once

#include <atomic>
#include <cstdint>

#include "client/attach.h"
#include "client/include/sluice.h"
#include "client/shape.h"

struct sluice_client {
  sluice::client::Attacher attacher;
  uint64_t id = 0;  // never reused in this process: thread-local tallies name their client by it
  uint64_t coarse_step_ns = 0;
  int32_t default_allowed = 1;
  sluice::client::Shapes shapes;
};

namespace sluice::client {

// The attachment to decide on, or null: then the client's default answers. The time is read only
// where there is nothing to lose.
const Attachment* AttachmentOf(sluice_t* client);

// Answers by the client's default; returns `code`, or the default where code is 0.
int AnswerDefault(const sluice_t* client, int code, sluice_decision_t* decision);
// The answer where no rule matches: allowed.
int AnswerNoMatch(sluice_decision_t* decision);

}  // namespace sluice::client
