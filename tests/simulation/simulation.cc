#include "tests/simulation/simulation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/faults.h"
#include "tests/simulation/plain_values.h"
#include "tests/simulation/rules.h"
#include "tests/simulation/seats.h"
#include "tests/simulation/strict_books.h"

namespace sluice::simulation {
namespace {

constexpr uint64_t kCalmNs = 2 * kSecond;     // before the first fault
constexpr uint64_t kFaultsNs = 15 * kSecond;  // in which faults begin
constexpr uint64_t kTrafficNs = 2 * kSecond;  // after the last
constexpr uint64_t kLookNs = 250 * kMs;       // between two looks at the bounds
constexpr uint64_t kBooksNs = 5 * kSecond;    // between two looks at the books
constexpr size_t kWrongMost = 8;              // kept of a run

// The parts of one run, in the order in which they are made.
class Simulation {
 public:
  Simulation(uint64_t seed, bool print)
      : random_(seed),
        trace_(&timeline_, print),
        cluster_options_(DrawCluster()),
        host_count_(static_cast<int>(random_.Between(1, 4))),
        network_(&timeline_, &trace_, random_.Fork(), host_count_,
                 cluster_options_.primaries * (1 + cluster_options_.replicas)),
        cluster_(cluster_options_, &timeline_, &network_, &trace_, random_.Fork(),
                 [this](const std::string& what) { Violation(what); }),
        books_(&cluster_, &hosts_),
        seats_(&timeline_, &hosts_, kSeats, [this](const std::string& what) { Violation(what); }),
        strict_(&timeline_, shm::MakeLimit(kStrict, kSecond, kStrict),
                [this](const std::string& what) { Violation(what); }),
        plain_values_(kPrivateMark, [this](const std::string& what) { Violation(what); }) {
    report_.seed = seed;
    network_.set_on_sent(
        [this](WireId wire, std::string_view bytes) { plain_values_.OnSent(wire, bytes); });
    cluster_.set_on_loan([this](bool owns, const Loan& loan) {
      loan.is_strict ? strict_.OnCall(owns, loan) : seats_.OnCall(owns, loan);
    });
    network_.set_servers(&cluster_);
    MakeHosts();
  }

  Report Run() {
    for (const auto& host : hosts_) host->StartDaemon();
    FaultPlan plan({&timeline_, &trace_, &network_, &cluster_, &hosts_}, random_.Fork());
    plan.Schedule(kCalmNs, kCalmNs + kFaultsNs);
    report_.faults = plan.names();
    Look();
    CheckBooks();
    timeline_.RunUntil(plan.end_ns(), [this] { return report_.wrong.empty(); });
    if (report_.wrong.empty()) Settle(plan.end_ns());
    if (report_.wrong.empty()) EndBans();
    if (report_.wrong.empty()) {
      for (std::string& what : books_.Check(/*closing=*/true)) Violation(what);
    }
    report_.hash = trace_.hash();
    report_.totals = books_.totals();
    report_.failovers = cluster_.failovers();
    report_.events = timeline_.events();
    for (const auto& host : hosts_) {
      report_.checks += host->checks();
      report_.killed_clients += host->killed_clients();
      report_.rule_changes += host->rule_changes();
      report_.entered += host->entered();
      report_.classes_judged += host->classes_judged();
      report_.quotas_judged += host->quotas_judged();
      report_.tried += host->tried();
    }
    report_.seats_judged = seats_.judged();
    report_.strict_judged = strict_.judged();
    return std::move(report_);
  }

 private:
  ClusterOptions DrawCluster() {
    ClusterOptions options;
    options.primaries = static_cast<int>(random_.Between(2, 4));
    options.shards = static_cast<uint32_t>(random_.Between(3, 6));
    options.node_timeout_ns = random_.Between(1, 3) * kSecond;
    if (random_.Chance(0.3)) options.learn_most_ns = 4 * kSecond;
    if (random_.Chance(0.3)) options.late_most_ns = 8 * kSecond;
    if (random_.Chance(0.3)) options.password = "open sesame";
    return options;
  }

  void MakeHosts() {
    config::Config config;
    config.redis.emplace();
    config::RedisConfig& redis = *config.redis;
    for (int i = 0; i < network_.nodes(); ++i) {
      if (i == 0 || random_.Chance(0.5)) {
        redis.addresses.push_back(absl::StrCat(NodeHost(i), ":", kNodePort));
      }
    }
    redis.shards = cluster_options_.shards;
    redis.password = cluster_options_.password;
    redis.flush_interval_ns = random_.Between(1, 4) * 100 * kMs;
    DrawRules(&random_, &config);
    // Two machines made from one image: nothing may depend on the name.
    const bool same_names = random_.Chance(0.3);
    const bool is_corrected = random_.Chance(0.6);
    const double favoured = random_.Chance(0.3) ? random_.Unit() : 0;
    for (int i = 0; i < host_count_; ++i) {
      redis.host_name = absl::StrCat("host-", same_names ? 0 : i);
      DrawPrivateKeys(&random_, &config);
      HostOptions options;
      options.number = i;
      options.config = config;
      options.base_ns = random_.Between(100, 100'000) * kSecond;
      // Most clocks are right to a part of a second.
      options.clock_ahead_us = static_cast<int64_t>(random_.Below(400'000)) - 200'000;
      if (random_.Chance(0.2)) options.clock_ahead_us *= 20;
      options.clients = static_cast<int>(random_.Between(1, 4));
      options.check_gap_ns = random_.Between(5, 60) * kMs;
      options.favoured = favoured;
      if (is_corrected) options.corrected = random_.Unit() / 2;
      options.on_enter = [this](const std::string& text) { seats_.OnEnter(text); };
      options.on_spent = [this](const std::string& text, uint32_t tokens) {
        strict_.OnSpent(text, tokens);
      };
      options.on_wrong = [this](const std::string& what) { Violation(what); };
      hosts_.push_back(std::make_unique<Host>(std::move(options), &timeline_, &network_, &trace_,
                                              random_.Fork()));
    }
  }

  void Violation(const std::string& what) {
    trace_.Say(what);
    if (report_.wrong.size() < kWrongMost) report_.wrong.push_back(what);
  }

  // Traffic goes on for a while, then ends; then all must be reported.
  void Settle(uint64_t from_ns) {
    timeline_.RunUntil(from_ns + kTrafficNs, [this] { return report_.wrong.empty(); });
    for (const auto& host : hosts_) host->StopClients();
    for (uint64_t at_ns = from_ns + kTrafficNs; report_.wrong.empty(); at_ns += kLookNs) {
      if (IsSettled()) break;
      if (at_ns > from_ns + kLiveNs) {
        if (!cluster_.IsWell()) Violation("the cluster is not well again");
        for (const auto& host : hosts_) {
          if (!host->IsSettled()) Violation(absl::StrCat("not settled: ", host->Unsettled()));
        }
        return;
      }
      timeline_.RunUntil(at_ns + kLookNs, [this] { return report_.wrong.empty(); });
    }
    report_.settled_ns = timeline_.now_ns() - from_ns;
  }

  // Nobody asks any more: each ban ends on each host.
  void EndBans() {
    const uint64_t until_ns = timeline_.now_ns() + kBanNs + kSecond;
    timeline_.RunUntil(until_ns, [this] { return report_.wrong.empty(); });
    for (const auto& host : hosts_) {
      for (const auto& [text, _] : host->BannedForNs()) {
        Violation(absl::StrCat("still banned: ", text));
      }
    }
  }

  // Nobody is banned without the denials for it, however often batches were sent, or for longer
  // than the rule says.
  void CheckBans(const Host& host) {
    for (const auto& [text, for_ns] : host.BannedForNs()) {
      ++report_.bans_seen;
      int64_t denied = 0;
      for (const auto& each : hosts_) {
        const auto found = each->denied().find(text);
        if (found != each->denied().end()) denied += found->second;
      }
      if (denied < static_cast<int64_t>(kBanAfter)) {
        Violation(absl::StrCat("banned: ", text, " after ", denied, " denials"));
      }
      if (for_ns > kBanNs) Violation(absl::StrCat("banned: ", text, " for ", for_ns / kMs, " ms"));
    }
  }

  bool IsSettled() const {
    return cluster_.IsWell() && std::all_of(hosts_.begin(), hosts_.end(),
                                            [](const auto& host) { return host->IsSettled(); });
  }

  // The bounds that hold at any time.
  void Look() {
    for (const auto& host : hosts_) {
      if (!host->is_running()) continue;
      for (std::string& what : host->BeyondBounds(static_cast<size_t>(network_.nodes()))) {
        Violation(what);
      }
      CheckBans(*host);
    }
    timeline_.After(kLookNs, [this] { Look(); });
  }

  void CheckBooks() {
    for (std::string& what : books_.Check(/*closing=*/false)) Violation(what);
    timeline_.After(kBooksNs, [this] { CheckBooks(); });
  }

  Report report_;
  Random random_;
  Timeline timeline_;
  Trace trace_;
  const ClusterOptions cluster_options_;
  const int host_count_;
  Network network_;
  Cluster cluster_;
  Books::Hosts hosts_;
  Books books_;
  Seats seats_;
  StrictBooks strict_;
  PlainValues plain_values_;
};

}  // namespace

Report Run(uint64_t seed, bool print) { return Simulation(seed, print).Run(); }

}  // namespace sluice::simulation
