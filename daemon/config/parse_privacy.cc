#include <string>

#include "daemon/config/parse_rules.h"
#include "daemon/config/section.h"
#include "daemon/config/text.h"

namespace sluice::config {

void ParsePrivacy(Section* top, Config* config, Findings* findings) {
  constexpr std::string_view kExample = "/etc/sluice/private.keys";
  if (top->Has("privacy")) {
    Section section(top->Value("privacy"), top->MarkOf("privacy"), "privacy", "privacy", findings);
    section.ReadPath("keys_file", &config->privacy.keys_file, kExample);
    return;
  }
  for (const RuleConfig& rule : config->rules) {
    if (!rule.IsPrivate()) continue;
    top->Problem(
        "privacy", Cat("is missing, and the key of rule ", Shown(rule.name), " is private"),
        Cat("write `privacy: {keys_file: ", kExample,
            "}`, a file with the line \"1 $(openssl rand -hex 32)\", the same on all hosts"));
    return;
  }
}

}  // namespace sluice::config
