#include "daemon/admin/http.h"

#include <httplib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "daemon/admin/bucket_list.h"
#include "daemon/admin/global_buckets.h"
#include "daemon/admin/metrics.h"
#include "daemon/admin/status_json.h"
#include "daemon/config/promote.h"
#include "shm/bucket_name.h"
#include "shm/hash.h"

namespace sluice::admin {
namespace {

using nlohmann::ordered_json;

constexpr int kStartWaitMs = 1'000;
constexpr uint64_t kChaosLineNs = 1'000'000'000;
constexpr std::chrono::milliseconds kChaosLook{100};  // for one who has left

constexpr char kHelp[] =
    "sluice's admin socket\n"
    "GET  /metrics\nGET  /status\nGET  /rules\n"
    "GET  /buckets?prefix=TEXT&limit=N&scope=local|global\n"
    "GET  /promotion?rule=LABEL\nPOST /reload\nPOST /unban?bucket=NAME\n"
    "POST /chaos?fault=NAME&by=DURATION&for=DURATION&share=PERCENT&rules=NAMES\n";

// Names of buckets are bytes, not always UTF-8: what is not is replaced.
void Send(httplib::Response& response, const ordered_json& json, int code = 200) {
  response.status = code;
  response.set_content(json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n",
                       "application/json");
}

void SendError(httplib::Response& response, int code, const std::string& text) {
  Send(response, {{"error", text}}, code);
}

void Buckets(StatusSource& source, const httplib::Request& request, httplib::Response& response) {
  BucketQuery query;
  query.prefix = request.get_param_value("prefix");
  if (request.has_param("limit") &&
      (!absl::SimpleAtoi(request.get_param_value("limit"), &query.limit) || query.limit == 0 ||
       query.limit > kMaxBucketsListed)) {
    return SendError(response, 400,
                     absl::StrFormat("limit: write a number from 1 to %d", kMaxBucketsListed));
  }
  const std::string scope =
      request.has_param("scope") ? request.get_param_value("scope") : std::string("local");
  const RulesInForce in_force = source.Rules();
  if (scope == "local") {
    return Send(response, LocalBuckets(query, source.Buckets(), source.Info(), source.HolderCells(),
                                       *in_force.rules, source.Status().now_ns));
  }
  if (scope != "global") return SendError(response, 400, "scope: write local or global");
  if (!in_force.config->redis.has_value()) {
    return SendError(response, 409, "there is no redis: section; the buckets of this host are all");
  }
  std::vector<NodeAddress> primaries;
  for (const PrimaryStatus& primary : source.Status().engine.primaries) {
    primaries.push_back({primary.address, primary.hostname});
  }
  const auto listed = GlobalBuckets(query, *in_force.config->redis, primaries, *in_force.rules);
  if (!listed.ok()) return SendError(response, 503, std::string(listed.status().message()));
  Send(response, *listed);
}

void Reload(StatusSource& source, httplib::Response& response) {
  const ReloadResult result = source.Reload();
  Send(response, {{"ok", result.ok}, {"problems", result.problems}, {"warnings", result.warnings}},
       result.ok ? 200 : 422);
}

// What is wrong with a bucket's name under a rule whose key has so many values; empty: nothing.
// Values that are too long for a name are folded into one, which holds a '~'.
std::string WrongValues(const std::string& name, uint32_t key_count) {
  const auto values = static_cast<uint32_t>(std::count(name.begin(), name.end(), ':'));
  // The last value may hold any number of colons.
  if (values >= key_count && (key_count > 0 || values == 0)) return "";
  if (values == 1 && name.find('~') != std::string::npos) return "";
  return absl::StrCat("bucket: `", name, "` names ", values, " of the rule's key, which has ",
                      key_count, ": write its name as `sluicectl buckets` shows it");
}

void Unban(StatusSource& source, const httplib::Request& request, httplib::Response& response) {
  const std::string bucket = request.get_param_value("bucket");
  const RulesInForce in_force = source.Rules();
  const config::CompiledRule* const rule = in_force.rules->Find(shm::LabelOf(bucket));
  if (rule == nullptr || rule->penalty.after == 0) {
    return SendError(response, 404,
                     "bucket: write a name as `sluicectl buckets` shows it, of a rule with a "
                     "`penalty` that bans");
  }
  if (const std::string wrong = WrongValues(bucket, rule->key_count); !wrong.empty()) {
    return SendError(response, 404, wrong);
  }
  if (!source.Unban(bucket)) return SendError(response, 503, "too many at once; try again");
  Send(response, {{"bucket", bucket}, {"over_all_hosts", in_force.config->redis.has_value()}});
}

// What is to be changed in the file: whoever asks may write it, the daemon need not.
void Promotion(StatusSource& source, const httplib::Request& request, httplib::Response& response) {
  const std::string path = source.Status().config.path;
  const std::string text = source.ConfigText();
  const auto promotion = config::Promote(text, path, request.get_param_value("rule"));
  if (!promotion.ok()) {
    const int code = absl::IsInvalidArgument(promotion.status()) ? 404 : 409;
    return SendError(response, code, std::string(promotion.status().message()));
  }
  ordered_json edits = ordered_json::array();
  for (const config::TextEdit& edit : promotion->edits) {
    edits.push_back({{"at", edit.at}, {"from", edit.from}, {"to", edit.to}});
  }
  Send(response, {{"path", path},
                  {"bytes", text.size()},
                  {"fnv1a", absl::StrFormat("%016x", shm::Fnv1a(text))},
                  {"now", promotion->now},
                  {"then", promotion->then},
                  {"edits", edits}});
}

}  // namespace

AdminServer::AdminServer(StatusSource* source)
    : source_(source), server_(std::make_unique<httplib::Server>()) {}

AdminServer::~AdminServer() { Stop(); }

void AdminServer::AddRoutes() {
  using httplib::Request;
  using httplib::Response;
  server_->Get("/", [](const Request&, Response& r) { r.set_content(kHelp, "text/plain"); });
  server_->Get("/metrics", [this](const Request&, Response& r) {
    r.set_content(RenderMetrics(source_->Status()), "text/plain; version=0.0.4");
  });
  server_->Get("/status",
               [this](const Request&, Response& r) { Send(r, StatusJson(source_->Status())); });
  server_->Get("/rules", [this](const Request&, Response& r) {
    Send(r, RulesJson(source_->Rules(), source_->Status().engine));
  });
  server_->Get("/buckets", [this](const Request& q, Response& r) { Buckets(*source_, q, r); });
  server_->Get("/promotion", [this](const Request& q, Response& r) { Promotion(*source_, q, r); });
  server_->Post("/reload", [this](const Request&, Response& r) { Reload(*source_, r); });
  server_->Post("/unban", [this](const Request& q, Response& r) { Unban(*source_, q, r); });
  server_->Post("/chaos", [this](const Request& q, Response& r) { Chaos(q, r); });
  server_->set_error_handler([](const Request& q, Response& r) {
    if (r.body.empty()) SendError(r, r.status, absl::StrCat("no ", q.method, " ", q.path));
  });
  // httplib hands the exception over by value, or by reference, as its version will.
  server_->set_exception_handler([](const Request&, Response& r, const std::exception_ptr&) {
    SendError(r, 500, "internal error; see the daemon's log");
  });
}

// The order lives as long as this answer is read: whoever asked sees what it does, and leaves to
// end it.
void AdminServer::Chaos(const httplib::Request& request, httplib::Response& response) {
  std::map<std::string, std::string> asked;
  for (const auto& [name, value] : request.params) asked[name] = value;
  const absl::StatusOr<admin::Chaos> begun = source_->BeginChaos(asked);
  if (!begun.ok()) {
    const int code = absl::IsInvalidArgument(begun.status()) ? 400 : 409;
    return SendError(response, code, std::string(begun.status().message()));
  }
  const uint64_t token = begun->token;
  const auto provide = [this, chaos = *begun, before = source_->Status(), told_ns = uint64_t{0}](
                           size_t, httplib::DataSink& sink) mutable {
    const DaemonStatus status = source_->Status();
    if (status.now_ns >= told_ns + kChaosLineNs) {
      told_ns = status.now_ns;
      const std::string line = ChaosLine(chaos, before, status).dump() + "\n";
      if (!sink.write(line.data(), line.size())) return false;
    }
    if (status.now_ns >= chaos.until_ns || status.chaos.token != chaos.token) {
      sink.done();
      return true;
    }
    if (!server_->is_running() || !sink.is_writable()) return false;
    std::this_thread::sleep_for(kChaosLook);
    return true;
  };
  response.set_chunked_content_provider("application/json", provide,
                                        [this, token](bool) { source_->EndChaos(token); });
}

absl::Status AdminServer::Start(const std::string& path) {
  server_->new_task_queue = [] { return new httplib::ThreadPool(kHttpThreads); };
  server_->set_payload_max_length(kMaxRequestBytes);
  server_->set_read_timeout(kHttpTimeoutS);
  server_->set_write_timeout(kHttpTimeoutS);
  server_->set_keep_alive_max_count(1);  // few threads serve all: nobody may sit on one
  server_->set_address_family(AF_UNIX);
  AddRoutes();
  // The port is not used, but must not be 0.
  if (!server_->bind_to_port(path.c_str(), 80)) {
    return absl::UnavailableError(absl::StrCat("cannot make ", path));
  }
  path_ = path;
  if (chmod(path.c_str(), 0660) != 0) return absl::ErrnoToStatus(errno, path);
  thread_ = std::thread([this] { server_->listen_after_bind(); });
  // Stop has no effect on a server that does not run yet.
  for (int i = 0; i < kStartWaitMs && !server_->is_running(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return absl::OkStatus();
}

void AdminServer::Stop() {
  if (thread_.joinable()) {
    server_->stop();
    thread_.join();
  }
  if (!path_.empty()) unlink(path_.c_str());
  path_.clear();
}

}  // namespace sluice::admin
