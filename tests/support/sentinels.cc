#include "tests/support/sentinels.h"

#include <chrono>
#include <thread>
#include <utility>

namespace sluice::test {
namespace {

// Sentinels look for each other every two seconds and at servers every ten: a minute in all, for
// machines under load.
constexpr int kLooks = 600;
constexpr auto kBetweenLooks = std::chrono::milliseconds(100);

std::string FieldOf(const redis::Reply& reply, std::string_view field) {
  for (size_t i = 0; i + 1 < reply.elements.size(); i += 2) {
    if (reply.elements[i].text == field) return reply.elements[i + 1].text;
  }
  return "";
}

}  // namespace

Sentinels::Sentinels(Options options) : options_(std::move(options)) {
  for (std::unique_ptr<RedisProcess>& server : servers_) {
    std::vector<std::string> arguments = options_.server;
    if (options_.tls) arguments.insert(arguments.end(), {"--tls-replication", "yes"});
    server = std::make_unique<RedisProcess>(
        RedisProcess::Options{.arguments = arguments, .tls = options_.tls, .ipv6 = options_.ipv6});
    if (!server->running()) return;
  }
  const std::string host = LoopbackHost(options_.ipv6);
  const std::string port = std::to_string(primary().client_port());
  if (replica().Command({"REPLICAOF", host, port}).text != "OK") return;
  const std::string name = kMaster;
  std::vector<std::string> lines = {"sentinel monitor " + name + " " + host + " " + port + " 2",
                                    "sentinel down-after-milliseconds " + name + " 500",
                                    "sentinel failover-timeout " + name + " 3000"};
  lines.insert(lines.end(), options_.sentinel_file.begin(), options_.sentinel_file.end());
  for (std::unique_ptr<RedisProcess>& sentinel : sentinels_) {
    std::vector<std::string> arguments = options_.sentinel;
    if (options_.tls) arguments.insert(arguments.end(), {"--tls-replication", "yes"});
    sentinel = std::make_unique<RedisProcess>(RedisProcess::Options{
        .arguments = arguments, .tls = options_.tls, .sentinel = lines, .ipv6 = options_.ipv6});
    if (!sentinel->running()) return;
  }
  for (int i = 0; i < kLooks && !healthy_; ++i) {
    healthy_ = Agree();
    if (!healthy_) std::this_thread::sleep_for(kBetweenLooks);
  }
}

bool Sentinels::Agree() const {
  for (const std::unique_ptr<RedisProcess>& sentinel : sentinels_) {
    const redis::Reply reply = sentinel->Command({"SENTINEL", "MASTER", kMaster});
    if (FieldOf(reply, "num-other-sentinels") != "2" || FieldOf(reply, "num-slaves") != "1" ||
        FieldOf(reply, "flags") != "master") {
      return false;
    }
  }
  return servers_[1]->Command({"INFO", "replication"}).text.find("master_link_status:up") !=
         std::string::npos;
}

std::string Sentinels::logs() const {
  std::string all;
  for (const auto& server : servers_) all += server == nullptr ? "" : server->log();
  for (const auto& sentinel : sentinels_) all += sentinel == nullptr ? "" : sentinel->log();
  return all;
}

std::vector<std::string> Sentinels::addresses() const {
  std::vector<std::string> all;
  for (const std::unique_ptr<RedisProcess>& sentinel : sentinels_) {
    all.push_back(sentinel->client_address());
  }
  return all;
}

}  // namespace sluice::test
