// `sluicectl replay`: sends a log's or a generator's requests to the running rules.

#include <signal.h>
#include <time.h>

#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/replay_report.h"
#include "ctl/replay_runner.h"
#include "ctl/workload.h"

namespace sluice::ctl {
namespace {

// How many requests --dry-run looks at, and how many values of a descriptor it shows.
constexpr size_t kDryRunRequests = 1'000'000;
constexpr uint64_t kPollNs = 20'000'000;

struct ReplayArguments {
  std::string log;
  std::string generate;
  std::string speed = "1";
  double rate = 0;
  bool loop = false;
  double seconds = 0;
  uint32_t threads = 1;
  uint64_t cost = 1;
  std::vector<std::string> map;
  int route_depth = 2;
  double paid_share = 0.25;
  std::vector<std::string> tracks;
  std::string report = "1s";
  bool is_dry_run = false;
  size_t top = 10;
};

std::atomic<bool> g_stop{false};
void OnSignal(int) { g_stop.store(true); }

double SecondsSince(const timespec& start) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec - start.tv_sec) +
         static_cast<double>(now.tv_nsec - start.tv_nsec) * 1e-9;
}

std::string ToLine(const nlohmann::json& json) {
  // Logs hold any bytes; what is not UTF-8 is shown as U+FFFD.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// Speed as a factor; 0 for "max".
absl::StatusOr<double> ParseSpeed(const std::string& text) {
  if (text == "max") return 0.0;
  double speed = 0;
  if (!CLI::detail::lexical_cast(text, speed) || !(speed >= 1e-3 && speed <= 1e9)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--speed takes 'max' or a factor from 0.001 to 1e9, not '", text, "'"));
  }
  return speed;
}

absl::StatusOr<double> ParseInterval(const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration < absl::Milliseconds(50) ||
      duration > absl::Hours(24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--report takes a duration from 50ms to 24h, not '", text, "'"));
  }
  return absl::ToDoubleSeconds(duration);
}

absl::StatusOr<TrackNames> ParseTracks(const std::vector<std::string>& texts) {
  TrackNames tracks;
  if (texts.size() > kMaxTracks) {
    return absl::InvalidArgumentError(absl::StrCat("at most ", kMaxTracks, " --track"));
  }
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--track ", text, ": write NAME=VALUE, such as tenant=acme"));
    }
    tracks.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return tracks;
}

absl::StatusOr<std::unique_ptr<Workload>> MakeWorkload(const ReplayArguments& arguments,
                                                       bool is_json) {
  if (arguments.log.empty() == arguments.generate.empty()) {
    return absl::InvalidArgumentError(
        "name a LOG file (\"-\": standard input) or --generate keys=N,skew=S,rate=R, not both");
  }
  if (!arguments.generate.empty()) {
    if (!arguments.map.empty()) {
      return absl::InvalidArgumentError("--map maps a log's lines; --generate makes its own names");
    }
    absl::StatusOr<GeneratorOptions> options = ParseGeneratorOptions(arguments.generate);
    if (!options.ok()) return options.status();
    if (arguments.rate > 0) options->rate = arguments.rate;
    return std::make_unique<GeneratedWorkload>(*options);
  }
  Mapping mapping = DefaultMapping();
  mapping.route_depth = arguments.route_depth;
  mapping.paid_share = arguments.paid_share;
  for (const std::string& option : arguments.map) {
    const absl::Status status = ApplyMapOption(option, &mapping);
    if (!status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<LogWorkload>> workload =
      LogWorkload::Load(arguments.log, mapping, {arguments.loop, arguments.rate});
  if (!workload.ok()) return workload.status();
  const LogSummary& summary = (*workload)->summary();
  if (is_json) {
    std::cout << ToLine(LogSummaryToJson(summary)) << std::flush;
  } else {
    std::cout << LogSummaryToText(summary) << std::flush;
  }
  return std::unique_ptr<Workload>(std::move(*workload));
}

// Reports each interval until the workload ends, the time is up or a signal came.
void Report(const ReplayArguments& arguments, bool is_json, double interval_s,
            const TrackNames& tracks, ReplayRunner* runner) {
  timespec start;
  clock_gettime(CLOCK_MONOTONIC, &start);
  ReplayCounts last;
  last.tracks.resize(tracks.size());
  double last_s = 0;
  double next_s = interval_s;
  bool is_done = false;
  while (!is_done) {
    const timespec pause = {0, static_cast<long>(kPollNs)};
    nanosleep(&pause, nullptr);
    const double t_s = SecondsSince(start);
    is_done = runner->IsDone() || g_stop.load() || !std::cout ||
              (arguments.seconds > 0 && t_s >= arguments.seconds);
    if (is_done) {
      runner->Stop();
      while (!runner->IsDone()) nanosleep(&pause, nullptr);
    }
    if (t_s < next_s && !is_done) continue;
    while (next_s <= t_s) next_s += interval_s;
    const ReplayCounts now = runner->Read();
    const ReplayCounts since = now.Since(last);
    const double length_s = t_s - last_s;
    std::cout << (is_json ? ToLine(CountsToJson("report", t_s, length_s, since, tracks))
                          : CountsToLine(t_s, length_s, since))
              << std::flush;
    last = now;
    last_s = t_s;
  }
  std::cout << (is_json ? ToLine(CountsToJson("summary", last_s, last_s, last, tracks))
                        : CountsToSummary(last_s, last))
            << std::flush;
}

absl::Status RunReplay(const Globals& globals, const ReplayArguments& arguments) {
  const absl::StatusOr<double> speed = ParseSpeed(arguments.speed);
  if (!speed.ok()) return speed.status();
  const absl::StatusOr<double> interval_s = ParseInterval(arguments.report);
  if (!interval_s.ok()) return interval_s.status();
  const absl::StatusOr<TrackNames> tracks = ParseTracks(arguments.tracks);
  if (!tracks.ok()) return tracks.status();
  const absl::StatusOr<std::unique_ptr<Workload>> workload =
      MakeWorkload(arguments, globals.is_json);
  if (!workload.ok()) return workload.status();

  if (arguments.is_dry_run) {
    const auto top = TopValues(**workload, kDryRunRequests, arguments.top);
    std::cout << (globals.is_json ? ToLine(TopValuesToJson(top)) : TopValuesToText(top));
    return absl::OkStatus();
  }
  const absl::StatusOr<Client> client = Client::Attach(globals, "sluicectl replay");
  if (!client.ok()) return client.status();

  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // `replay | head` ends by the stream's state
  const ReplayOptions options = {arguments.threads, *speed, arguments.cost, *tracks};
  ReplayRunner runner(client->get(), **workload, options);
  Report(arguments, globals.is_json, *interval_s, *tracks, &runner);
  return absl::OkStatus();
}

constexpr const char* kExamples =
    "Examples:\n"
    "  sluicectl replay access.log                      at the log's own pace\n"
    "  sluicectl replay access.log --speed 60           a minute of it each second\n"
    "  zcat access.log.*.gz | sluicectl replay - --speed max\n"
    "  sluicectl replay access.log --rate 5000 --loop --seconds 30\n"
    "  sluicectl replay access.log --dry-run            only look: what it holds, the hot keys\n"
    "  sluicectl replay access.log --map tenant=path1 --map region=const:eu --map user=\n"
    "  sluicectl replay --generate keys=10000,skew=1.1,rate=5000 --threads 2 --json\n\n"
    "Descriptors from a log (--map NAME=SOURCE adds or replaces one, NAME= takes it out):\n"
    "  ip      client address            route   normalised path, first segments (--route-depth)\n"
    "  method  GET, POST ...             user    logged user, else a hash of address and agent\n"
    "  tenant  the address's /16 (IPv6: /32), of a host name its last two labels\n"
    "  tier    paid for a stable share of the tenants (--paid-share), free for the others\n"
    "Sources: ip route path path1 method status user remote-user network tenant tier const:TEXT.\n"
    "A request line that is not HTTP counts with route and method \"-\".\n\n"
    "The generator's users follow a Zipf distribution; further settings: tenants=N, addresses=N,\n"
    "paid=SHARE, seed=N. One check in 16 is timed.";

}  // namespace

void AddReplay(CLI::App* root, Globals* globals) {
  CLI::App* verb =
      AddVerb(root, globals, "replay",
              "replay an access log, or generated traffic, against the running rules", kExamples);
  auto a = std::make_shared<ReplayArguments>();
  verb->add_option("LOG", a->log, "Apache or nginx access log, common or combined; - for stdin");
  verb->add_option("--generate", a->generate, "make traffic: keys=N,skew=S,rate=R[,...]");
  verb->add_option("--speed", a->speed, "times the log's own pace, or 'max'")
      ->capture_default_str();
  verb->add_option("--rate", a->rate, "requests/s, steadily, instead of the log's own times")
      ->check(CLI::Range(0.001, 1e9));
  verb->add_flag("--loop", a->loop, "begin again at the end of the log");
  verb->add_option("--seconds", a->seconds, "stop after so long")->check(CLI::Range(0.1, 1e9));
  verb->add_option("--threads", a->threads, "threads that share the requests")
      ->check(CLI::Range(1u, kMaxThreads))
      ->capture_default_str();
  verb->add_option("--cost", a->cost, "tokens that each request costs")
      ->check(CLI::Range(uint64_t{0}, uint64_t{SLUICE_MAX_COST}))
      ->capture_default_str();
  verb->add_option("--map", a->map, "NAME=SOURCE: where a descriptor comes from")
      ->allow_extra_args(false)
      ->take_all();
  verb->add_option("--route-depth", a->route_depth, "path segments in a route; 0: all")
      ->check(CLI::Range(0, kMaxRouteDepth))
      ->capture_default_str();
  verb->add_option("--paid-share", a->paid_share, "share of the tenants that pay, 0 to 1")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  verb->add_option("--track", a->tracks, "NAME=VALUE: count these requests apart, too")
      ->allow_extra_args(false)
      ->take_all();
  verb->add_option("--report", a->report, "a line each so often")->capture_default_str();
  verb->add_flag("--dry-run", a->is_dry_run, "only read, and show the hot keys; needs no daemon");
  verb->add_option("--top", a->top, "how many values of a descriptor --dry-run shows")
      ->check(CLI::Range(size_t{1}, size_t{100'000}))
      ->capture_default_str();
  verb->callback([globals, a] { Conclude(globals, RunReplay(*globals, *a)); });
}

}  // namespace sluice::ctl
