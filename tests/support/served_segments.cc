#include "tests/support/served_segments.h"

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <utility>

#include "daemon/config/parse.h"
#include "shm/clock.h"
#include "shm/take.h"

namespace sluice::test {
namespace {

uint64_t Now() { return shm::MonotonicClock::PreciseNs(); }

template <class Status>
void CheckOk(const Status& status, const char* what) {
  if (status.ok()) return;
  fprintf(stderr, "%s failed\n", what);
  abort();
}

}  // namespace

ServedSegments::ServedSegments(std::string_view rules_yaml, Options options) : options_(options) {
  char name[] = "/tmp/sluice-test-XXXXXX";
  dir_ = mkdtemp(name);
  Create(rules_yaml);
  StartServing();
}

ServedSegments::~ServedSegments() {
  StopServing();
  std::filesystem::remove_all(dir_);
}

void ServedSegments::Create(std::string_view rules_yaml) {
  control_ = shm::ControlWriter();
  buckets_ = shm::BucketsOwner();
  config::ParseResult parsed = config::ParseConfig(rules_yaml, "test.yaml");
  parsed.config.daemon.log_keys = 64;
  const shm::LogShape logs = config::LogsFor(parsed.config);
  CheckOk(control_.Create({.capacity = options_.capacity,
                           .logs = logs,
                           .shard_count = 16,
                           .grace_ns = 2'000'000'000,
                           .reconciling = options_.reconciling},
                          Now()),
          "control");
  CheckOk(buckets_.Create(options_.capacity, logs), "buckets");
  Publish(rules_yaml);
  control_.Beat(Now());
  control_.Publish();
  read_only_ = control_.DupReadOnly();
}

void ServedSegments::Publish(std::string_view rules_yaml) {
  config::ParseResult parsed = config::ParseConfig(rules_yaml, "test.yaml");
  for (const config::Problem& problem : parsed.problems) {
    fprintf(stderr, "%s\n", problem.ToString().c_str());
  }
  if (!parsed.ok()) abort();
  CheckOk(calendars_.Set(parsed.config, Now()), "calendars");
  absl::StatusOr<std::string> policy =
      config::Compile(parsed.config, control_.info().hash_key, control_.policy_seq() + 1);
  CheckOk(policy, "compile");
  CheckOk(control_.PublishPolicy(*policy, Now(), nullptr), "publish");
  absl::StatusOr<config::CompiledRules> rules = config::CompiledRules::Load(*policy);
  CheckOk(rules, "load");
  rules_ = *std::move(rules);
}

void ServedSegments::SetWallOffset(int64_t offset_us) {
  wall_offset_us_ = offset_us;
  calendars_.Renew(Now());
}

void ServedSegments::NewGeneration(std::string_view rules_yaml) {
  StopServing();
  Create(rules_yaml);
  StartServing();
}

void ServedSegments::StartServing() {
  stop_ = false;
  std::atomic<bool> listening{false};
  thread_ = std::thread([this, &listening] {
    admin::EventLoop loop;
    CheckOk(loop.Init(), "loop");
    admin::Holders holders(&loop, control_.holders(), &buckets());
    admin::AttachServer server(&loop);
    CheckOk(server.Start(dir_ + "/attach.sock", static_cast<gid_t>(-1), -1,
                         {.control_fd = read_only_.get(),
                          .buckets_fd = buckets_.fd(),
                          .generation = control_.info().generation,
                          .holders = &holders}),
            "attach server");
    listening = true;
    listening.notify_one();
    loop.Every(10'000'000, [&](uint64_t now_ns) {
      if (options_.beat) control_.Beat(now_ns);
      if (stop_) loop.Stop();
    });
    CheckOk(loop.Run(), "loop");
    server.Stop();
  });
  listening.wait(false);
}

void ServedSegments::StopServing() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

int64_t ServedSegments::TotalUse() const {
  const shm::MappedBuckets& b = buckets();
  int64_t use = 0;
  for (uint64_t i = 0; i < b.capacity(); ++i) {
    const uint64_t key = b.slots()[i].key.load();
    const uint64_t u = b.slots()[i].used.load();
    if (shm::used::Gen(u) == shm::key::Gen(key)) use += shm::used::Count(u);
  }
  return use;
}

}  // namespace sluice::test
