// The admin socket: HTTP over a Unix socket, mode 0660, for the daemon's own group.
//
//   GET  /metrics                                        Prometheus text (metrics.h)
//   GET  /status  /rules                                 JSON (status_json.h)
//   GET  /buckets?prefix=&limit=&scope=local|global      JSON (bucket_list.h, global_buckets.h)
//   GET  /promotion?rule=LABEL                           JSON {path, bytes, fnv1a, now, then,
//                                                        edits[{at, from, to}]}: what to change in
//                                                        the file for its candidate to be in force
//   POST /reload                                         JSON {ok, problems[], warnings[]}; 422
//                                                        when the file is bad
//   POST /unban?bucket=NAME                              JSON {bucket, over_all_hosts}
//   POST /chaos?fault=&by=&for=&share=&rules=            a line of JSON a second until it ends; it
//                                                        ends with the connection too
// Errors are JSON: {"error": "..."}.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "daemon/admin/status.h"

namespace httplib {
class Server;
struct Request;
struct Response;
}  // namespace httplib

namespace sluice::admin {

// Requests served at once; a global listing may hold one for seconds, and chaos one for minutes.
inline constexpr size_t kHttpThreads = 3;
// Requests waiting beyond that.
inline constexpr size_t kMaxRequestBytes = 64 * 1024;
inline constexpr int kHttpTimeoutS = 5;

class AdminServer {
 public:
  // `source` outlives the server.
  explicit AdminServer(StatusSource* source);
  ~AdminServer();

  // Listens on `path`, which must not exist, and serves on threads of its own.
  absl::Status Start(const std::string& path);
  // Ends the threads and removes the socket. May be called twice.
  void Stop();

 private:
  void AddRoutes();
  void Chaos(const httplib::Request& request, httplib::Response& response);

  StatusSource* source_;
  std::unique_ptr<httplib::Server> server_;
  std::thread thread_;
  std::string path_;
};

}  // namespace sluice::admin
