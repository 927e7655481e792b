// The shortest way of a list of descriptors: their shape alone decides which rules apply, and what
// is left is to hash the values and to check.
#pragma once

#include "client/check.h"
#include "client/shape.h"

namespace sluice::client {

// Cost 1, no decision wanted. True: admitted and counted. False: nothing was spent; whatever it is,
// the long way decides. Precondition: `shape` is theirs, under the policy in force, and is direct.
bool AdmitDirect(sluice_t& client, const Attachment& a, const Shape& shape,
                 const sluice_descriptor_t* descriptors);

}  // namespace sluice::client
