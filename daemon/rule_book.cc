#include "daemon/rule_book.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "daemon/log.h"

namespace sluice {
namespace {

std::vector<std::string> Lines(const std::vector<config::Finding>& findings) {
  std::vector<std::string> lines;
  lines.reserve(findings.size());
  for (const config::Finding& finding : findings) lines.push_back(finding.ToString());
  return lines;
}

// What only a restart can change; empty: nothing.
std::string NeedsRestart(const config::Config& now, const config::Config& fresh) {
  std::vector<std::string> keys;
  if (now.daemon.runtime_dir != fresh.daemon.runtime_dir) keys.push_back("daemon.runtime_dir");
  if (now.daemon.group != fresh.daemon.group) keys.push_back("daemon.group");
  if (now.daemon.buckets != fresh.daemon.buckets) keys.push_back("daemon.buckets");
  if (now.daemon.log_keys != fresh.daemon.log_keys) keys.push_back("daemon.log_keys");
  if (now.daemon.checkpoints != fresh.daemon.checkpoints) keys.push_back("daemon.checkpoints");
  if (now.redis != fresh.redis) keys.push_back("redis");
  return absl::StrJoin(keys, ", ");
}

}  // namespace

std::string ReadConfigText(const std::string& path) {
  const shm::OwnedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat st;
  if (fd.get() < 0 || fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) return "";
  std::string text;
  char part[16 * 1024];
  ssize_t n;
  while (text.size() <= config::kMaxConfigBytes && (n = read(fd.get(), part, sizeof part)) > 0) {
    text.append(part, static_cast<size_t>(n));
  }
  return text;
}

absl::StatusOr<LoadedConfig> LoadConfig(const std::string& path, const std::string& fallback) {
  LoadedConfig loaded;
  config::ParseResult parsed = config::ParseConfigFile(path);
  loaded.warnings = Lines(parsed.warnings);
  if (parsed.ok()) {
    loaded.config = std::move(parsed.config);
    loaded.text = ReadConfigText(path);
    return loaded;
  }
  loaded.problems = Lines(parsed.problems);
  if (!fallback.empty()) {
    config::ParseResult former = config::ParseConfig(fallback, path);
    if (former.ok() && config::ReadPrivateKeys(&former.config).ok()) {
      loaded.config = std::move(former.config);
      loaded.text = fallback;
      return loaded;
    }
  }
  return absl::InvalidArgumentError(absl::StrJoin(loaded.problems, "\n"));
}

RuleBook::RuleBook(std::string path, LoadedConfig loaded, shm::ControlWriter* control,
                   std::function<int64_t()> offset_us)
    : control_(control),
      calendars_(control, std::move(offset_us)),
      text_(std::move(loaded.text)),
      wanted_(std::move(loaded.config)) {
  state_.path = std::move(path);
  state_.ok = loaded.problems.empty();
  state_.problems = std::move(loaded.problems);
  state_.warnings = std::move(loaded.warnings);
}

void RuleBook::SetEngine(Engine* engine) {
  std::lock_guard lock(mutex_);
  engine_ = engine;
}

// Publishes `wanted_`. Unavailable: no policy buffer is free yet; retry_ns_ says when.
absl::Status RuleBook::Publish(uint64_t now_ns) {
  const uint32_t needed = config::LogsFor(wanted_).entries;
  if (const uint32_t has = control_->info().logs.entries; needed > has) {
    return absl::FailedPreconditionError(absl::StrCat(
        state_.path, ": the largest limit of a `sliding_log` or `in_flight` rule needs ",
        "rows of ", needed, " entries, and the segments of this daemon have ",
        has == 0 ? "none" : absl::StrCat("room for ", has),
        ": restart sluiced, buckets then begin anew, or ",
        has == 0 ? "leave such rules out" : "write a lower limit"));
  }
  // Before the rules that speak of them; those of the rules before keep their places.
  if (in_force_.config != nullptr) KeepCalendarPlaces(in_force_.config->calendars, &wanted_);
  if (absl::Status status = calendars_.Set(wanted_, now_ns); !status.ok()) return status;
  const auto bytes =
      config::Compile(wanted_, control_->info().hash_key, control_->policy_seq() + 1);
  if (!bytes.ok()) return bytes.status();
  uint64_t wait_ns = 0;
  const shm::SegmentStatus status = control_->PublishPolicy(*bytes, now_ns, &wait_ns);
  if (status.error == shm::SegmentError::kPoliciesResting) {
    retry_ns_ = now_ns + wait_ns;
    return absl::UnavailableError(shm::Explain(status.error));
  }
  if (!status.ok()) return absl::InternalError(shm::Explain(status.error));
  auto rules = config::CompiledRules::Load(control_->policy());
  if (!rules.ok()) return rules.status();
  rules->AddRegions(wanted_);
  rules->AddPrivacy(wanted_);
  rules->AddPenalties(wanted_);
  rules->AddCalendars(calendars_.tables());
  in_force_.rules = std::make_shared<const config::CompiledRules>(*std::move(rules));
  in_force_.config = std::make_shared<const config::Config>(wanted_);
  state_.loaded_ns = now_ns;
  if (engine_ != nullptr) engine_->SetRules(in_force_.rules);
  return absl::OkStatus();
}

absl::Status RuleBook::PublishFirst(uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  auto former = config::CompiledRules::Load(control_->policy());
  absl::Status read = former.status();
  if (read.ok()) {
    former->AddRegions(wanted_);
    former->AddPrivacy(wanted_);
    former->AddPenalties(wanted_);
    former_ = std::make_shared<const config::CompiledRules>(*std::move(former));
  }
  absl::Status status = Publish(now_ns);
  if (!absl::IsUnavailable(status)) return status;
  // Restarted amid a flurry of changes: the rules of before stay until a buffer has rested.
  is_pending_ = true;
  state_.pending = std::string(status.message());
  if (!read.ok()) return read;
  in_force_.rules = former_;
  in_force_.config = std::make_shared<const config::Config>(wanted_);
  return absl::OkStatus();
}

void RuleBook::TakeOver(const config::Config& fresh, std::vector<std::string>* warnings) {
  const config::Config& now = *in_force_.config;
  const std::string keys = NeedsRestart(now, fresh);
  if (!keys.empty()) {
    warnings->push_back(absl::StrCat(state_.path, ": a change of ", keys,
                                     " takes effect with the next start of sluiced"));
  }
  wanted_ = fresh;
  wanted_.redis = now.redis;
  wanted_.daemon = now.daemon;
  wanted_.daemon.log_level = fresh.daemon.log_level;
  wanted_.daemon.chaos = fresh.daemon.chaos;
}

admin::ReloadResult RuleBook::Reload(uint64_t now_ns, bool only_if_changed) {
  admin::ReloadResult result;
  std::lock_guard lock(mutex_);
  const std::string text = ReadConfigText(state_.path);
  if (only_if_changed && text == text_ && state_.ok) {
    result.ok = true;
    return result;
  }
  auto loaded = LoadConfig(state_.path, "");
  if (!loaded.ok()) {
    result.problems = absl::StrSplit(std::string(loaded.status().message()), '\n');
  } else {
    result.warnings = loaded->warnings;
    TakeOver(loaded->config, &result.warnings);
    const absl::Status status = Publish(now_ns);
    is_pending_ = absl::IsUnavailable(status);
    state_.pending = is_pending_ ? std::string(status.message()) : "";
    if (!status.ok() && !is_pending_) result.problems = {std::string(status.message())};
  }
  result.ok = result.problems.empty();
  state_.ok = result.ok;
  state_.problems = result.problems;
  if (!result.ok) {
    ++state_.failed_reloads;
    for (const std::string& problem : result.problems) log::Error("%s", problem);
    log::Error("%s is not taken over; the limits before it stay in force", state_.path);
    return result;
  }
  state_.warnings = result.warnings;
  text_ = std::move(loaded->text);
  ++state_.reloads;
  for (const std::string& warning : result.warnings) log::Warning("%s", warning);
  if (is_pending_) {
    log::Warning("%s", state_.pending);
  } else {
    log::Info("%s is in force: %d rules, policy %d", state_.path, in_force_.rules->rules().size(),
              in_force_.rules->seq());
  }
  return result;
}

void RuleBook::RetryPending(uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  if (!is_pending_ || now_ns < retry_ns_) return;
  const absl::Status status = Publish(now_ns);
  if (absl::IsUnavailable(status)) return;
  is_pending_ = false;
  state_.pending.clear();
  if (!status.ok()) {
    log::Error("the waiting rules could not be put in force: %s", status.ToString());
  } else {
    log::Info("the waiting rules are in force: policy %d", in_force_.rules->seq());
  }
}

void RuleBook::RenewCalendars(uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  if (!calendars_.Renew(now_ns)) return;
  log::Info("windows by the calendar end anew: one is over, or the wall clock was set");
  config::CompiledRules rules = *in_force_.rules;
  rules.AddCalendars(calendars_.tables());
  in_force_.rules = std::make_shared<const config::CompiledRules>(std::move(rules));
  if (engine_ != nullptr) engine_->SetRules(in_force_.rules);
}

admin::RulesInForce RuleBook::InForce() const {
  std::lock_guard lock(mutex_);
  return in_force_;
}

admin::ConfigState RuleBook::State() const {
  std::lock_guard lock(mutex_);
  return state_;
}

std::string RuleBook::text() const {
  std::lock_guard lock(mutex_);
  return text_;
}

}  // namespace sluice
