// The `redis` part of the file. Internal to the parser.
#pragma once

#include "daemon/config/config.h"
#include "daemon/config/section.h"

namespace sluice::config {

// Reads config->redis, if the file has that section.
void ParseRedis(Section* top, Config* config, Findings* findings);

}  // namespace sluice::config
