// What a host's clients ask for: a rule, a key, and what a request may bring beside it, by the
// policy as clients read it.
#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/priority.h"
#include "shm/bucket_name.h"
#include "shm/policy_view.h"
#include "tests/simulation/host.h"
#include "tests/simulation/rules.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kFewKeys = 3;  // of a rule with a bucket for each limit

// What requests bring; of what is above the rule's bound that counts.
constexpr const char* kGiven[] = {"", "5", "25", "4000"};

}  // namespace

Host::Asked Host::Draw() {
  const std::vector<config::CompiledRule>& rules = rules_->rules();
  // Candidates stand behind all others.
  const size_t count = options_.config.rules.size();
  const config::CompiledRule& rule = options_.favoured > 0 && random_.Chance(options_.favoured)
                                         ? rules[count - 1]
                                         : rules[random_.Below(count)];
  const config::RuleConfig& written = options_.config.rules[rule.group];
  // Half of the checks meet at one key.
  uint64_t key = random_.Chance(0.5) ? 0 : random_.Below(static_cast<uint64_t>(options_.keys));
  if (written.override) key %= kFewKeys;
  Asked asked;
  asked.value = absl::StrCat(written.IsPrivate() ? kPrivateMark : "", "k", key);
  asked.tokens = static_cast<uint32_t>(random_.Between(1, 3));
  std::string brought;
  if (written.override) brought = kGiven[random_.Below(std::size(kGiven))];
  std::string name;
  if (written.priority && checks_ % 4 == 0) {
    const auto& classes = written.priority->classes;
    const config::PriorityConfig::Class& c = classes[checks_ / 4 % classes.size()];
    name = c.value;
    asked.part = c.part;
  }
  Fill(rule, brought, name, &asked);
  return asked;
}

// As the client's match.cc does it.
void Host::Fill(const config::CompiledRule& rule, const std::string& brought,
                const std::string& name, Asked* asked) const {
  const shm::PolicyView view(policy_.data());
  const shm::GroupView& group = view.group(rule.group);
  shm::RuleNumbers numbers = view.rule(rule.id).numbers;
  asked->rule = &rule;
  asked->label = rule.label;
  uint64_t seed = rule.hash_seed;
  if (const uint64_t given = shm::ReadGiven(brought, group.given_max); given != 0) {
    numbers = shm::Given(numbers, given);
    char label[shm::kMaxLabelBytes];
    rule.label.copy(label, rule.label.size());
    asked->label = {label, shm::AppendGiven(label, rule.label.size(), numbers.limit.limit)};
    seed = shm::HashValue(control_.info().hash_key, asked->label, 0);
  }
  asked->whole = numbers.limit;
  if (group.class_count != 0) {
    bool is_listed = false;
    asked->floor_q16 = client::FloorOf(view, group, name, &is_listed);
  }
  asked->limit = shm::Floored(numbers, asked->floor_q16).limit;
  const std::string_view values[] = {asked->value};
  asked->hash = shm::HashOfKind(
      shm::ShortNameHash(control_.info().hash_key, seed, values, std::size(values)), rule.kind);
  asked->text = TextOf(rule, asked->label, asked->value);
}

// As everybody outside sees it.
std::string Host::TextOf(const config::CompiledRule& rule, const std::string& label,
                         const std::string& value) const {
  if (rule.privacy == nullptr) return absl::StrCat(label, ":", value);
  shm::ParsedName parsed;
  parsed.label = label;
  parsed.values[parsed.count++] = value;
  return config::OuterName(parsed, *rule.privacy, 0);
}

// The request was answered: what would the candidate have said? It has a word of its own, so the
// rule's bucket stays as it is.
std::optional<Host::Spent> Host::Try(const Asked& asked) {
  const shm::MappedBuckets& b = buckets_.buckets();
  shm::SlotTable<std::atomic<uint64_t>> table(b.slots(), b.capacity(), b.counters());
  Asked tried;
  tried.value = asked.value;
  tried.tokens = asked.tokens;
  Fill(rules_->rules()[asked.rule->candidate], "", "", &tried);
  const auto look = [&] {
    const uint32_t slot = table.Find(asked.hash);
    if (slot == shm::kNoSlot) return std::string();
    const shm::Slot& s = b.slots()[slot];
    return absl::StrCat(s.word.load(), " ", s.used.load(), " ", b.denied()[slot].load());
  };
  const std::string before = look();
  std::optional<Spent> spent = Take(tried, Death::kNone);
  if (look() != before) {
    options_.on_wrong(absl::StrCat("candidate: its rule's bucket ", asked.text, " has changed"));
  }
  return spent;
}

}  // namespace sluice::simulation
