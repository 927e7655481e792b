// Requests on the admin socket, over buckets whose names anybody may have written. An input that
// begins with '/' is what a GET asks for, any other a whole request as it comes over the socket;
// after a NUL comes the text of a bucket's name.
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>

#include "daemon/admin/bucket_list.h"
#include "daemon/admin/http.h"
#include "daemon/chaos/order.h"
#include "daemon/config/parse.h"
#include "shm/bucket_name.h"
#include "shm/clock.h"
#include "shm/fuzz_input.h"
#include "shm/key_text.h"
#include "shm/slot_table.h"

namespace sluice::admin {
namespace {

using fuzz::Require;

constexpr uint32_t kShards = 16;
constexpr char kRules[] = "rules:\n  - {name: user, key: [user, ip], limit: 10/s, burst: 20}\n";

constexpr char kChaotic[] =
    "daemon: {chaos: {allow: true, max_share: 0.5}}\nredis: {addresses: \"h:1\"}\n"
    "rules:\n  - {name: user, key: [user, ip], limit: 10/s, burst: 20}\n";

// A daemon without a Redis, of two buckets: slot 0 is the input's.
class Daemon : public StatusSource {
 public:
  Daemon() {
    const config::ParseResult parsed = config::ParseConfig(kRules, "fuzz.yaml");
    Require(parsed.ok(), "the rules of this file");
    const auto policy = config::Compile(parsed.config, info_.hash_key, 1);
    Require(policy.ok(), "the rules of this file compile");
    const auto rules = config::CompiledRules::Load(*policy);
    Require(rules.ok(), "the rules of this file load");
    const config::ParseResult chaotic = config::ParseConfig(kChaotic, "fuzz.yaml");
    Require(chaotic.ok(), "the rules of this file");
    chaotic_ = chaotic.config;
    in_force_ = {std::make_shared<config::Config>(parsed.config),
                 std::make_shared<config::CompiledRules>(*rules)};
    info_.capacity = shm::kMinCapacity;
    info_.shard_count = kShards;
    Require(buckets_.Create(shm::kMinCapacity).ok(), "a bucket segment");
    const std::string_view values[] = {"alice", "192.0.2.1"};
    char parts[shm::kKeyTextBytes];
    shm::WriteParts("user", values, std::size(values), false, parts);
    Put(1, {parts, sizeof parts});
  }

  void Put(uint32_t i, std::string_view parts) {
    char text[shm::kKeyTextBytes] = {};
    parts.copy(text, sizeof text);
    // Under the fingerprint that is right, where there is one, so that the name is believed.
    uint64_t hash = 0;
    shm::ParsedName name;
    if (shm::ParseParts(text, &name)) {
      const config::CompiledRule* const rule = in_force_.rules->Find(name.label);
      if (rule != nullptr) hash = rule->HashOf(name, info_.hash_key);
    }
    const uint64_t key = shm::key::Make(shm::FingerprintOf(hash), shm::Kind::kTokenBucket, 1);
    buckets_.buckets().slots()[i].key = key;
    shm::StoreText(buckets_.buckets().texts()[i], text, buckets_.buckets().slots()[i].key);
  }

  DaemonStatus Status() const override {
    DaemonStatus status;
    status.now_ns = shm::MonotonicClock::PreciseNs();
    status.counters.assign(shm::kCounters, 0);
    status.shards.assign(kShards, 0);
    return status;
  }
  RulesInForce Rules() const override { return in_force_; }
  ReloadResult Reload() override { return {}; }
  std::string ConfigText() const override { return kRules; }
  bool Unban(const std::string&) override { return true; }
  // Read, and never begun: its answer would take as long as the order says.
  absl::StatusOr<Chaos> BeginChaos(const std::map<std::string, std::string>& asked) override {
    const auto order = chaos::ReadOrder(asked, chaotic_);
    if (!order.ok()) return order.status();
    Require(order->share > 0 && order->share <= 1 && !order->ToString().empty(), "bounds");
    Require(order->for_ns <= chaotic_.daemon.chaos.max_for_ns, "a bound in time");
    return absl::FailedPreconditionError(order->ToString());
  }
  void EndChaos(uint64_t) override {}
  const shm::MappedBuckets& Buckets() const override { return buckets_.buckets(); }
  const shm::SegmentInfo& Info() const override { return info_; }
  const shm::HolderCell* HolderCells() const override { return nullptr; }

 private:
  shm::SegmentInfo info_;
  shm::BucketsOwner buckets_;
  config::Config chaotic_;
  RulesInForce in_force_;
};

// The fuzzer's timer interrupts calls.
template <class Call>
ssize_t Again(Call call) {
  ssize_t result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

class Host {
 public:
  Host() : server_(&daemon_) {
    const char* const base = getenv("TMPDIR");
    dir_ = std::string(base != nullptr ? base : "/tmp") + "/http-XXXXXX";
    Require(mkdtemp(dir_.data()) != nullptr, "a folder for the socket");
    path_ = dir_ + "/admin.sock";
    Require(path_.size() < sizeof address_.sun_path, "a path that fits");
    // Signals are not the server's, as in the daemon: the fuzzer's timer would end its accept.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    Require(pthread_sigmask(SIG_SETMASK, &all, &before) == 0, "signals");
    Require(server_.Start(path_).ok(), "a server");
    Require(pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0, "signals");
    address_.sun_family = AF_UNIX;
    path_.copy(address_.sun_path, sizeof address_.sun_path - 1);
  }
  ~Host() {
    server_.Stop();
    rmdir(dir_.c_str());
  }

  Daemon& daemon() { return daemon_; }

  // All that the server answers until it closes. `is_all`: no more comes, as the server must know
  // where a request is cut; it answers nobody who has hung up, so a whole one waits instead.
  std::string Ask(std::string_view request, bool is_all) const {
    const shm::OwnedFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto* const address = reinterpret_cast<const sockaddr*>(&address_);
    Require(Again([&] { return connect(fd.get(), address, sizeof address_); }) == 0, "connect");
    // A server that has heard enough may close before all is sent.
    Again([&] { return send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL); });
    if (is_all) shutdown(fd.get(), SHUT_WR);
    std::string answer;
    char part[16 * 1024];
    const auto receive = [&] { return recv(fd.get(), part, sizeof part, 0); };
    for (ssize_t n; (n = Again(receive)) > 0;) answer.append(part, static_cast<size_t>(n));
    return answer;
  }

 private:
  Daemon daemon_;
  AdminServer server_;
  std::string dir_;
  std::string path_;
  sockaddr_un address_{};
};

bool IsTarget(std::string_view text) {
  if (!text.starts_with('/')) return false;
  for (const char c : text) {
    if (c <= ' ' || c > '~') return false;
  }
  return true;
}

// A GET of one of our pages is answered by a page or by an error that says why.
void CheckAnswer(std::string_view target, const std::string& answer) {
  Require(answer.starts_with("HTTP/1.1 "), "an answer in HTTP");
  const int code = atoi(answer.substr(9, 3).c_str());
  const size_t head = answer.find("\r\n\r\n");
  Require(head != std::string::npos, "an answer has an end of its head");
  if (!target.starts_with("/buckets?")) return;
  const auto json = nlohmann::json::parse(answer.substr(head + 4), nullptr, false);
  Require(json.is_object(), "an answer in JSON");
  Require(code == 200 || json.contains("error"), "an error says why");
  if (code != 200) return;
  Require(json.at("buckets").size() <= kMaxBucketsListed, "a list of its bound");
  for (const auto& bucket : json.at("buckets")) {
    Require(bucket.at("name").is_string() && bucket.at("shard") < kShards, "a bucket has a name");
  }
}

}  // namespace
}  // namespace sluice::admin

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static sluice::admin::Host host;
  sluice::fuzz::Input input(data, size);
  const std::string_view asked = input.Until('\0');
  if (!input.empty()) host.daemon().Put(0, input.rest());
  if (sluice::admin::IsTarget(asked)) {
    const std::string request = "GET " + std::string(asked) + " HTTP/1.1\r\nHost: x\r\n\r\n";
    sluice::admin::CheckAnswer(asked, host.Ask(request, false));
  } else if (!asked.empty()) {
    host.Ask(asked, true);
  }
  return 0;
}
