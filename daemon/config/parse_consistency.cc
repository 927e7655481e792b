// `consistency`, and the home of a rule's buckets where there are regions.
#include <algorithm>
#include <utility>

#include "daemon/config/parse_rules.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

// The name of a region that is there, or "" and a problem.
std::string ReadRegion(const YAML::Node& node, const YAML::Mark& mark, const std::string& path,
                       const RedisConfig& redis, Findings* findings) {
  std::vector<std::string> names;
  for (const RedisConfig& region : redis.regions) names.push_back(region.region);
  const std::vector<std::string_view> known(names.begin(), names.end());
  if (node.IsScalar() && std::find(known.begin(), known.end(), node.Scalar()) != known.end()) {
    return node.Scalar();
  }
  findings->Problem(mark, path,
                    node.IsScalar() ? Cat(Shown(node.Scalar()), " is none of redis.regions")
                                    : Cat("is ", KindOf(node), ", not the name of a region"),
                    Cat("write one of ", Join(known, ", ")));
  return "";
}

void ReadMap(const Entry& descriptor, const std::string& path, const RedisConfig& redis,
             const RuleConfig& rule, HomeConfig* home, Findings* findings) {
  home->descriptor = descriptor.name;
  const auto part = std::find_if(rule.key.begin(), rule.key.end(), [&](const KeyConfig& key) {
    return key.descriptor == descriptor.name;
  });
  if (part == rule.key.end() || part->form != shm::KeyForm::kRaw) {
    findings->Problem(descriptor.mark, path,
                      Cat("the home goes by ", Shown(descriptor.name),
                          part == rule.key.end() ? ", which is not in the rule's key"
                                                 : ", which the key does not keep as it is"),
                      Cat("write it in `key`, or a descriptor that stands there"));
    return;
  }
  if (!descriptor.value.IsMap()) {
    findings->Problem(descriptor.mark, path,
                      Cat("is ", KindOf(descriptor.value), ", not a mapping"),
                      "write values and their regions, as in `tenant: {acme: eu}`");
    return;
  }
  for (const Entry& entry : ReadEntries(descriptor.value, path, findings)) {
    std::string region =
        ReadRegion(entry.value, entry.mark, Cat(path, ".", entry.name), redis, findings);
    if (!region.empty()) home->regions.emplace_back(entry.name, std::move(region));
  }
}

// rendezvous, or {DESCRIPTOR: {VALUE: REGION, ...}, default: REGION}.
void ReadHome(Section* section, const RedisConfig& redis, RuleConfig* rule, Findings* findings) {
  const YAML::Node node = section->Value("home");
  const std::string path = section->PathOf("home");
  if (node.IsScalar() && node.Scalar() == "rendezvous") return;
  if (!node.IsMap()) {
    section->Problem("home",
                     node.IsScalar() ? Cat(Shown(node.Scalar()), " says nothing of a home")
                                     : Cat("is ", KindOf(node), ", not a mapping"),
                     "write `rendezvous`, or `{tenant: {acme: eu}, default: us}`");
    return;
  }
  HomeConfig& home = rule->home;
  home.by = HomeBy::kMap;
  bool has_default = false;
  size_t descriptors = 0;
  for (const Entry& entry : ReadEntries(node, path, findings)) {
    if (entry.name == "default") {
      has_default = true;
      home.fallback = ReadRegion(entry.value, entry.mark, Cat(path, ".default"), redis, findings);
    } else if (++descriptors == 1) {
      ReadMap(entry, Cat(path, ".", entry.name), redis, *rule, &home, findings);
    } else {
      findings->Problem(entry.mark, path, "goes by more than one descriptor",
                        "keep one, and `default`");
    }
  }
  if (descriptors == 0) {
    section->Problem("home", "names no descriptor to go by",
                     "write `{tenant: {acme: eu}, default: us}`, or `rendezvous`");
  }
  if (!has_default) {
    section->Problem("home", "does not say where all other values are at home",
                     Cat("write `default: ", redis.region, "` beside them"));
  }
}

// By the choices of the table: approximate, strict, overdraft.
void ReadMode(Section* section, std::string_view name, RuleConfig* out) {
  size_t index = 0;
  if (!section->ReadChoice(name, &index)) return;
  out->strict = index == 1;
  out->overdraft = index == 2;
}

}  // namespace

void ParseConsistency(Section* rule, const Config& config, RuleConfig* out, Findings* findings) {
  const YAML::Node node = rule->Value("consistency");
  const bool has_regions = config.redis && !config.redis->regions.empty();
  if (!node.IsDefined() || !node.IsMap()) {
    ReadMode(rule, "consistency", out);
    if (out->strict && has_regions) out->home.by = HomeBy::kRendezvous;
  } else {
    Section section(node, rule->MarkOf("consistency"), rule->PathOf("consistency"),
                    rule->SpecPathOf("consistency"), findings);
    ReadMode(&section, "mode", out);
    // Without its mode, which is a problem, the rest is read as what it is for.
    if (!section.Has("mode")) out->strict = true;
    section.Read("epoch", &out->home.epoch);
    if (out->strict && has_regions) out->home.by = HomeBy::kRendezvous;
    for (const char* const key : {"home", "epoch"}) {
      if (!section.Has(key)) continue;
      if (!out->strict) {
        section.Problem(key, "is for strict limits: others are counted in each region",
                        "write `mode: strict`, or remove the line");
      } else if (!has_regions) {
        section.Problem(key, "has no regions to choose from",
                        "write `redis.regions`, or remove the line");
      } else if (std::string_view(key) == "home") {
        ReadHome(&section, *config.redis, out, findings);
      }
    }
  }
  if (!out->strict && !out->overdraft) return;
  const YAML::Node algorithm = rule->Value("algorithm");
  if (algorithm.IsDefined() && !(algorithm.IsScalar() && algorithm.Scalar() == "token_bucket")) {
    rule->Problem("consistency",
                  Cat(out->strict ? "strict" : "overdraft",
                      " is for token buckets: no other algorithm can be lent out"),
                  "write `algorithm: token_bucket`, or `consistency: approximate`");
  }
}

}  // namespace sluice::config
