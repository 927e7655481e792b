#include "daemon/config/promote.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "daemon/config/compile.h"
#include "daemon/config/parse.h"
#include "daemon/config/text.h"
#include "daemon/config/units.h"

namespace sluice::config {
namespace {

// A limit of a configuration with what stands beside it.
struct Pair {
  size_t rule;
  std::optional<size_t> tier;
  LimitConfig* live;
  std::optional<LimitConfig>* candidate;
};

std::optional<Pair> FindPair(Config& config, std::string_view label) {
  for (size_t r = 0; r < config.rules.size(); ++r) {
    RuleConfig& rule = config.rules[r];
    if (rule.limit && RuleLabel(rule, nullptr) == label) {
      return Pair{r, std::nullopt, &*rule.limit, &rule.candidate};
    }
    for (size_t t = 0; t < rule.tiers.size(); ++t) {
      TierConfig& tier = rule.tiers[t];
      if (RuleLabel(rule, &tier) == label) return Pair{r, t, &tier.limit, &tier.candidate};
    }
  }
  return std::nullopt;
}

std::string LimitText(const LimitConfig& limit) {
  std::string text =
      Cat("limit ", FormatRate({limit.limit, limit.period_ns}), ", burst ", limit.burst);
  if (limit.cost != 1) text += Cat(", cost ", limit.cost);
  if (limit.max_delay_ns != 0) text += Cat(", max_delay ", FormatDuration(limit.max_delay_ns));
  return text;
}

// Where a scalar stands in the text, with its quotes. False where it does not stand there as it is
// read.
bool Place(std::string_view text, const YAML::Node& node, std::string_view* raw, size_t* at) {
  if (!node.IsScalar() || node.Mark().is_null() || node.Mark().pos < 0) return false;
  *at = static_cast<size_t>(node.Mark().pos);
  std::string written = node.Scalar();
  if (*at >= text.size()) return false;
  if (text[*at] == '"' || text[*at] == '\'') written = text[*at] + written + text[*at];
  if (text.substr(*at, written.size()) != written) return false;
  *raw = text.substr(*at, written.size());
  return true;
}

// Exchanges what both mappings say.
bool Exchange(std::string_view text, const YAML::Node& live, std::vector<TextEdit>* edits) {
  const YAML::Node candidate = live["candidate"];
  if (!candidate || !candidate.IsMap()) return false;
  for (const auto& entry : candidate) {
    const YAML::Node beside = live[entry.first.as<std::string>()];
    std::string_view a;
    std::string_view b;
    size_t a_at = 0;
    size_t b_at = 0;
    if (!beside || !Place(text, beside, &a, &a_at) || !Place(text, entry.second, &b, &b_at)) {
      return false;
    }
    edits->push_back({a_at, std::string(a), std::string(b)});
    edits->push_back({b_at, std::string(b), std::string(a)});
  }
  std::sort(edits->begin(), edits->end(),
            [](const TextEdit& x, const TextEdit& y) { return x.at < y.at; });
  for (size_t i = 1; i < edits->size(); ++i) {
    if ((*edits)[i].at < (*edits)[i - 1].at + (*edits)[i - 1].from.size()) return false;
  }
  return true;
}

// The YAML library throws; what this text is was read already.
bool ExchangeIn(std::string_view text, const Config& config, const Pair& pair,
                std::vector<TextEdit>* edits) try {
  const YAML::Node rule = YAML::Load(std::string(text))["rules"][pair.rule];
  if (!pair.tier) return Exchange(text, rule, edits);
  return Exchange(text, rule["tiers"][config.rules[pair.rule].tiers[*pair.tier].tier], edits);
} catch (const YAML::Exception&) {
  return false;
}

// Whether the edited text says what is meant, and nothing else.
bool IsAsMeant(std::string_view edited, std::string_view filename, const Config& meant) {
  const ParseResult parsed = ParseConfig(edited, filename);
  if (!parsed.ok() || parsed.config.calendars != meant.calendars) return false;
  const auto is = Compile(parsed.config, shm::HashKey{}, 1);
  const auto wanted = Compile(meant, shm::HashKey{}, 1);
  return is.ok() && wanted.ok() && *is == *wanted;
}

}  // namespace

absl::StatusOr<Promotion> Promote(std::string_view text, std::string_view filename,
                                  std::string_view label) {
  ParseResult parsed = ParseConfig(text, filename);
  if (!parsed.ok()) {
    return absl::FailedPreconditionError(
        Cat(filename, " is not in order: ", parsed.problems.front().ToString()));
  }
  const std::optional<Pair> pair = FindPair(parsed.config, label);
  if (!pair) {
    return absl::InvalidArgumentError(Cat("there is no limit `", Printable(label, 64),
                                          "`; `sluicectl rules` lists them, tiers as name@tier"));
  }
  if (!*pair->candidate) {
    return absl::InvalidArgumentError(
        Cat("`", label, "` has no candidate; write `candidate: {limit: ...}` beside its limit"));
  }
  Promotion promotion;
  promotion.now = LimitText(*pair->live);
  promotion.then = LimitText(**pair->candidate);
  const bool is_edited = ExchangeIn(text, parsed.config, *pair, &promotion.edits);
  std::swap(*pair->live, **pair->candidate);
  if (!is_edited || !IsAsMeant(Apply(text, promotion.edits), filename, parsed.config)) {
    return absl::FailedPreconditionError(
        Cat(filename,
            " does not let itself be edited here (an anchor, an escape?): exchange the "
            "limit of `",
            label, "` with its candidate by hand, and reload"));
  }
  return promotion;
}

std::string Apply(std::string_view text, const std::vector<TextEdit>& edits) {
  std::string edited;
  size_t at = 0;
  for (const TextEdit& edit : edits) {
    edited += text.substr(at, edit.at - at);
    edited += edit.to;
    at = edit.at + edit.from.size();
  }
  edited += text.substr(at);
  return edited;
}

}  // namespace sluice::config
