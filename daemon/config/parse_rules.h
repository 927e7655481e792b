// The `rules` part of the file. Internal to the parser.
#pragma once

#include "daemon/config/config.h"
#include "daemon/config/section.h"

namespace sluice::config {

// Reads all rules into config->rules. `config->redis` stands already: some warnings depend on it.
void ParseRules(Section* top, Config* config, Findings* findings);

// Reads `name` of `rule` into conditions or key parts; problems become findings.
void ParseMatch(Section* rule, std::vector<MatchConfig>* match, Findings* findings);
void ParseKey(Section* rule, std::vector<KeyConfig>* key, Findings* findings);
// Reads `consistency` into out->strict and out->home; out->key stands already.
void ParseConsistency(Section* rule, const Config& config, RuleConfig* out, Findings* findings);
// Reads `priority` into out->priority; the rule's limits and tiers stand already.
void ParsePriority(Section* rule, RuleConfig* out, Findings* findings);
// Reads `outcomes`.
void ParseOutcomes(Section* rule, RuleConfig* out, Findings* findings);
// Reads `override` into out->override, likewise.
void ParseOverride(Section* rule, RuleConfig* out, Findings* findings);
// Reads `near`, `soft`, `metadata` and `retry_spread`: what answers tell beside yes and no.
void ParseAnswers(Section* rule, RuleConfig* out, Findings* findings);
// Reads `privacy`; the rules, whose keys may need it, stand already.
void ParsePrivacy(Section* top, Config* config, Findings* findings);
// Reads `penalty`; all but `near` and what follows it stands already.
void ParsePenalty(Section* rule, const Config& config, RuleConfig* out, Findings* findings);

// Whether the rule or one of its tiers counts requests in flight.
bool HasInFlight(Section* rule);
// The limit of such a rule or of a tier; false when there is none, or a wrong one (then a problem).
bool ReadInFlight(Section* section, uint32_t rule_cost, LimitConfig* limit);
// What such a rule cannot have beside it.
void CheckInFlight(Section* rule, const Config& config, const RuleConfig& out);
// What to write where `key` is for token buckets that are not lent, and the rule has another kind.
std::string MendOfKind(const RuleConfig& rule, std::string_view key);

// Reads `calendar`, all but its unit; false when there is none.
bool ParseCalendar(Section* rule, CalendarConfig* calendar, Findings* findings);
// The limits of `rule` follow the calendar, each by the unit that its period names.
void FollowCalendar(Section* section, CalendarConfig calendar, Config* config, RuleConfig* rule);

// Whether `name` can name a descriptor: a letter or '_', then letters, digits, '_', '.', '-'; at
// most 64 bytes. Says why not.
bool CheckDescriptorName(std::string_view name, const YAML::Mark& mark, std::string_view path,
                         Findings* findings);

inline constexpr size_t kMaxDescriptorNameBytes = 64;
inline constexpr size_t kMaxClassBytes = 31;

}  // namespace sluice::config
