#pragma once

#include <string>
#include <string_view>

namespace sluice::redis {

// SHA-1 as 40 lower-case hex digits: the name by which EVALSHA calls a script. Computed here, so
// that no server tells us which script we mean. Not for security.
std::string Sha1Hex(std::string_view text);

}  // namespace sluice::redis
