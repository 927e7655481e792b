// Putting right what was charged, when the cost is known: less is given back, more is charged
// without asking.
#pragma once

#include "client/check.h"

namespace sluice::client {

// What was charged as `charged` of some unit did cost `actual` of them. The spend's own numbers say
// how much one is. `fresh_ns`: the precise clock.
void Correct(Context& ctx, uint64_t policy, const sluice_spend_t& spend, uint64_t actual,
             uint64_t charged, uint64_t fresh_ns);

}  // namespace sluice::client
