#include "daemon/redis/cluster_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/redis/client_core.h"
#include "daemon/redis/sha1.h"
#include "daemon/redis/slot.h"

namespace sluice::redis {
namespace {

constexpr size_t kMaxSeeds = 64;
constexpr size_t kMaxPrefixBytes = 64;
constexpr size_t kMaxScripts = 16;

absl::Status CheckOptions(const ClientOptions& options) {
  const auto wrong = [](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (options.seeds.empty()) return wrong("seeds: at least one address is needed");
  if (options.seeds.size() > kMaxSeeds) return wrong("seeds: more than ", kMaxSeeds);
  if (options.shards < 1 || options.shards > kMaxShards) {
    return wrong("shards: ", options.shards, " is not in 1 to ", kMaxShards);
  }
  if (options.prefix.empty() || options.prefix.size() > kMaxPrefixBytes) {
    return wrong("prefix: 1 to ", kMaxPrefixBytes, " bytes are allowed");
  }
  if (options.prefix.find_first_of("{} \t\r\n") != std::string::npos) {
    return wrong("prefix: braces would take the hash tag's place, and white space misleads people");
  }
  if (!options.user.empty() && options.password.empty()) {
    return wrong("user: a password is needed with it");
  }
  if (options.mode == Mode::kSentinel && options.sentinel.master.empty()) {
    return wrong("sentinel: the name of the primary is needed");
  }
  if (!options.sentinel.user.empty() && options.sentinel.password.empty()) {
    return wrong("sentinel: a password is needed with the user");
  }
  if (options.tls && options.tls->certificate_file.empty() != options.tls->key_file.empty()) {
    return wrong("tls: a certificate and its key come together");
  }
  if (options.scripts.size() > kMaxScripts) return wrong("scripts: more than ", kMaxScripts);
  if (options.probe_script && *options.probe_script >= options.scripts.size()) {
    return wrong("probe_script: there is no script ", *options.probe_script);
  }
  if (options.connect_timeout_ns <= 0 || options.request_timeout_min_ns <= 0 ||
      options.request_timeout_max_ns < options.request_timeout_min_ns ||
      options.request_timeout_max_ns > Connection::kStuckNs) {
    return wrong("timeouts: must be above 0, min <= max <= 1 s");
  }
  return absl::OkStatus();
}

std::string CleanClientName(std::string name) {
  if (name.empty()) name = "sluice";
  for (char& c : name) {
    if (c < '!' || c > '~') c = '-';
  }
  return name;
}

}  // namespace

std::string_view FailureName(FailureKind kind) {
  switch (kind) {
    case FailureKind::kUnavailable:
      return "unavailable";
    case FailureKind::kTimeout:
      return "timeout";
    case FailureKind::kRetryLater:
      return "retry_later";
    case FailureKind::kDenied:
      return "denied";
    case FailureKind::kScript:
      return "script";
    case FailureKind::kProtocol:
      return "protocol";
  }
  return "?";
}

std::string_view AlarmName(AlarmKind kind) {
  switch (kind) {
    case AlarmKind::kWrongPassword:
      return "wrong_password";
    case AlarmKind::kMissingPermission:
      return "missing_permission";
    case AlarmKind::kWrongMode:
      return "wrong_mode";
    case AlarmKind::kWrongAddress:
      return "wrong_address";
    case AlarmKind::kGarbage:
      return "garbage";
    case AlarmKind::kNoSeedReachable:
      return "no_seed_reachable";
    case AlarmKind::kRefusesWrites:
      return "refuses_writes";
    case AlarmKind::kUnsupported:
      return "unsupported";
    case AlarmKind::kTlsFailed:
      return "tls_failed";
    case AlarmKind::kNoMaster:
      return "no_master";
    case AlarmKind::kTlsFiles:
      return "tls_files";
    case AlarmKind::kPasswordFile:
      return "password_file";
  }
  return "?";
}

ClusterClient::Impl::Impl(ClientOptions options, std::vector<Endpoint> seeds,
                          Environment environment)
    : options_(std::move(options)),
      seeds_(std::move(seeds)),
      environment_(std::move(environment)),
      shard_keys_(ShardKeys(options_.prefix, options_.shards)),
      resolver_([ring = environment_.ring] { ring->Wake(); }),
      tls_(options_.tls ? std::make_unique<TlsContext>(*options_.tls) : nullptr),
      scout_(Ground(), &scout_greeting_, this, kNoPrimary) {
  for (const std::string& key : shard_keys_) shard_slots_.push_back(KeySlot(key));
  scout_greeting_ = {options_.user, options_.password, CleanClientName(options_.client_name), {}};
  greeting_ = scout_greeting_;
  for (const Script& script : options_.scripts) {
    greeting_.scripts.push_back({script.text, Sha1Hex(script.text)});
  }
  if (options_.mode == Mode::kSentinel) {
    scout_greeting_.user = options_.sentinel.user;
    scout_greeting_.password = options_.sentinel.password;
  }
  scout_.set_request_timeout_ns(options_.request_timeout_max_ns);
  if (options_.mode == Mode::kSingle) {
    map_.SetSingle(seeds_.front());
    first_refresh_over_ = true;
    FitNodesToMap();
    Connect(0, Now());
  } else {
    StartRefresh(Now());
  }
}

ClusterClient::Impl::~Impl() = default;

absl::StatusOr<std::unique_ptr<ClusterClient>> ClusterClient::Create(ClientOptions options,
                                                                     Environment environment) {
  if (environment.ring == nullptr || environment.listener == nullptr || !environment.now_ns ||
      !environment.random) {
    return absl::InvalidArgumentError("ring, listener, clock and random source are all needed");
  }
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  std::vector<Endpoint> seeds;
  for (const std::string& text : options.seeds) {
    absl::StatusOr<Endpoint> seed = ParseEndpoint(text);
    if (!seed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("seeds: \"", text, "\": ", seed.status().message()));
    }
    if (seed->is_unix() && options.tls) {
      return absl::InvalidArgumentError(
          absl::StrCat("seeds: \"", text, "\": there is no TLS over a unix socket"));
    }
    seeds.push_back(*std::move(seed));
  }
  return std::unique_ptr<ClusterClient>(new ClusterClient(
      std::make_unique<Impl>(std::move(options), std::move(seeds), std::move(environment))));
}

ClusterClient::ClusterClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClusterClient::~ClusterClient() = default;

void ClusterClient::Call(uint32_t shard, ScriptId script, std::string_view encoded_args,
                         uint32_t arg_count, uint64_t token) {
  impl_->Call(shard, script, encoded_args, arg_count, token);
}
void ClusterClient::Ping(PrimaryIndex primary, uint64_t token) { impl_->Ping(primary, token); }
PrimaryIndex ClusterClient::PrimaryOf(uint32_t shard) const { return impl_->PrimaryOf(shard); }
size_t ClusterClient::primary_count() const { return impl_->primary_count(); }
PrimaryInfo ClusterClient::Primary(PrimaryIndex index) const { return impl_->Primary(index); }
const std::string& ClusterClient::RunId(PrimaryIndex index) const { return impl_->RunId(index); }
const std::string& ClusterClient::ShardKey(uint32_t shard) const { return impl_->ShardKey(shard); }
bool ClusterClient::Ready() const { return impl_->Ready(); }
size_t ClusterClient::outstanding() const { return impl_->outstanding(); }
void ClusterClient::RequestRefresh() { impl_->RequestRefresh(); }
void ClusterClient::ReadFilesAnew() { impl_->ReadFilesAnew(); }
void ClusterClient::Poll() { impl_->Poll(); }
int64_t ClusterClient::NextDeadlineNs() const { return impl_->NextDeadlineNs(); }
std::vector<PrimaryStats> ClusterClient::Stats() const { return impl_->Stats(); }
ClientCounters ClusterClient::Counters() const { return impl_->Counters(); }

ClientCounters& ClientCounters::operator+=(const ClientCounters& other) {
  calls += other.calls;
  replies += other.replies;
  failures += other.failures;
  script_errors += other.script_errors;
  moved += other.moved;
  asked += other.asked;
  noscript += other.noscript;
  timeouts += other.timeouts;
  connects += other.connects;
  disconnects += other.disconnects;
  refreshes += other.refreshes;
  refresh_failures += other.refresh_failures;
  return *this;
}

}  // namespace sluice::redis
