// What `sluicectl replay` sends: a stream of requests, each a list of descriptors and a due time.
//
// A Workload is made once and then only read; each thread takes its own Stream of it, stream `i`
// of `n` taking every n-th request, so that all streams together make the whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "ctl/access_log.h"
#include "ctl/mapping.h"
#include "sluice.h"

namespace sluice::ctl {

struct Request {
  const sluice_descriptor_t* descriptors = nullptr;
  size_t count = 0;
  uint64_t due_ns = 0;  // since the start of the workload, at speed 1; never falls in a stream
};

class Stream {
 public:
  virtual ~Stream() = default;
  // False at the end. `*request` is valid until the next call. Not thread-safe.
  virtual bool Next(Request* request) = 0;
};

class Workload {
 public:
  virtual ~Workload() = default;
  // Precondition: index < count. The workload must outlive the stream.
  virtual std::unique_ptr<Stream> NewStream(uint32_t index, uint32_t count) const = 0;
};

// --- from a log ---------------------------------------------------------------------------------

// 16 M lines: with six descriptors 0.5 GB of memory. Longer logs are cut there, and it is said.
inline constexpr size_t kMaxLogEntries = 16'000'000;
inline constexpr size_t kMaxBadExamples = 5;
inline constexpr size_t kBadExampleBytes = 160;

struct BadLine {
  uint64_t number;  // from 1
  std::string reason;
  std::string text;  // its beginning, unprintable bytes as \xNN
};

// What reading found.
struct LogSummary {
  uint64_t lines = 0;
  uint64_t entries = 0;
  uint64_t blank = 0;
  uint64_t comments = 0;
  uint64_t malformed = 0;
  uint64_t not_http = 0;     // among the entries
  uint64_t cut = 0;          // longer than kMaxLineBytes
  bool is_over_max = false;  // there was more than kMaxLogEntries
  int64_t first_ms = 0;
  int64_t last_ms = 0;
  std::map<std::string, uint64_t> reasons;  // of malformed lines
  std::vector<BadLine> examples;            // the first kMaxBadExamples
};

struct LogTiming {
  bool loop = false;
  double rate = 0;  // requests/s in the log's order instead of the log's own times; 0: its times
};

class LogWorkload : public Workload {
 public:
  // Reads `path` ("-": standard input) to its end, in the order of time. Fails when it cannot be
  // read or holds no request at all.
  static absl::StatusOr<std::unique_ptr<LogWorkload>> Load(const std::string& path,
                                                           const Mapping& mapping,
                                                           const LogTiming& timing);

  const LogSummary& summary() const { return summary_; }
  std::unique_ptr<Stream> NewStream(uint32_t index, uint32_t count) const override;

 private:
  friend class LogStream;
  static constexpr uint32_t kNoValue = ~0u;

  void AddEntry(const LogEntry& entry, const Mapping& mapping);
  void SortByTime();
  uint32_t Intern(const std::string& value);

  LogTiming timing_;
  LogSummary summary_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, uint32_t> ids_;
  std::vector<std::string_view> values_;  // by id; views into the keys of nodes_
  std::vector<std::unique_ptr<std::string>> nodes_;
  std::vector<uint32_t> fields_;   // entries * names_, value ids
  std::vector<uint64_t> due_ns_;   // per entry, from the first one's time
  std::vector<uint32_t> order_;    // entries by time
  std::vector<int64_t> times_ms_;  // while loading
  std::string scratch_;
};

// --- generated ----------------------------------------------------------------------------------

// A population of users with a Zipf distribution: user of rank r asks in proportion to 1/r^skew.
struct GeneratorOptions {
  uint64_t keys = 10'000;      // users, 1..10^8
  double skew = 1.1;           // 0 (all alike)..4
  double rate = 0;             // requests/s in all; 0: as fast as can be
  uint32_t tenants = 50;       // 1..10^6; a user belongs to one, whatever the seed
  uint32_t addresses = 1'000;  // 1..10^6; several users may come from one
  uint64_t seed = 1;           // the same seed and stream count give the same requests
  double paid_share = 0.25;    // of the tenants
};

// "keys=10000,skew=1.1,rate=5000,tenants=50,addresses=1000,paid=0.25,seed=1", any of them left out.
absl::StatusOr<GeneratorOptions> ParseGeneratorOptions(std::string_view text);

class GeneratedWorkload : public Workload {
 public:
  explicit GeneratedWorkload(const GeneratorOptions& options) : options_(options) {}
  std::unique_ptr<Stream> NewStream(uint32_t index, uint32_t count) const override;

 private:
  GeneratorOptions options_;
};

// --- looking at a workload ----------------------------------------------------------------------

// Shares of the most frequent values of each descriptor, from the first `limit` requests.
struct ValueShare {
  std::string value;
  double share;      // of all requests
  std::string tier;  // of its first request; empty: no such descriptor
};
std::map<std::string, std::vector<ValueShare>> TopValues(const Workload& workload, size_t limit,
                                                         size_t top);

}  // namespace sluice::ctl
