#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ctl/workload.h"

namespace sluice::ctl {
namespace {

std::string Printable(std::string_view text, size_t max) {
  std::string out;
  for (const char c : text.substr(0, max)) {
    if (c >= 0x20 && c < 0x7f) {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    }
  }
  if (text.size() > max) out += "...";
  return out;
}

}  // namespace

class LogStream : public Stream {
 public:
  LogStream(const LogWorkload& workload, uint32_t index, uint32_t count)
      : workload_(workload), at_(index), step_(count) {
    descriptors_.resize(workload.names_.size());
  }

  bool Next(Request* request) override {
    const LogWorkload& w = workload_;
    const size_t entries = w.order_.size();
    const uint64_t round = at_ / entries;
    if (round > 0 && !w.timing_.loop) return false;
    const size_t i = at_ % entries;
    const size_t names = w.names_.size();
    size_t n = 0;
    for (size_t j = 0; j < names; ++j) {
      const uint32_t id = w.fields_[w.order_[i] * names + j];
      if (id == LogWorkload::kNoValue) continue;
      const std::string_view value = w.values_[id];
      descriptors_[n++] = {w.names_[j].data(), w.names_[j].size(), value.data(), value.size()};
    }
    request->descriptors = descriptors_.data();
    request->count = n;
    if (w.timing_.rate > 0) {
      request->due_ns = static_cast<uint64_t>(static_cast<double>(at_) * 1e9 / w.timing_.rate);
    } else {
      // A round lasts until a second after the last entry's second began.
      request->due_ns = round * (w.due_ns_.back() + 1'000'000'000) + w.due_ns_[i];
    }
    at_ += step_;
    return true;
  }

 private:
  const LogWorkload& workload_;
  uint64_t at_;
  uint64_t step_;
  std::vector<sluice_descriptor_t> descriptors_;
};

absl::StatusOr<std::unique_ptr<LogWorkload>> LogWorkload::Load(const std::string& path,
                                                               const Mapping& mapping,
                                                               const LogTiming& timing) {
  absl::StatusOr<std::unique_ptr<LogReader>> reader = LogReader::Open(path);
  if (!reader.ok()) return reader.status();
  auto workload = std::make_unique<LogWorkload>();
  workload->timing_ = timing;
  for (const MappedName& mapped : mapping.names) workload->names_.push_back(mapped.name);
  LogSummary& summary = workload->summary_;

  LineParser parser;
  LogEntry entry;
  std::string_view line;
  bool is_cut = false;
  while ((*reader)->Next(&line, &is_cut)) {
    ++summary.lines;
    if (is_cut) ++summary.cut;
    const char* reason = "";
    switch (parser.Parse(line, is_cut, &entry, &reason)) {
      case LineKind::kBlank:
        ++summary.blank;
        break;
      case LineKind::kComment:
        ++summary.comments;
        break;
      case LineKind::kMalformed:
        ++summary.malformed;
        ++summary.reasons[reason];
        if (summary.examples.size() < kMaxBadExamples) {
          summary.examples.push_back({summary.lines, reason, Printable(line, kBadExampleBytes)});
        }
        break;
      case LineKind::kEntry:
        if (summary.entries == kMaxLogEntries) {
          summary.is_over_max = true;
          break;
        }
        ++summary.entries;
        if (!entry.is_http) ++summary.not_http;
        workload->AddEntry(entry, mapping);
        break;
    }
    if (summary.is_over_max) break;
  }
  if (!(*reader)->status().ok()) return (*reader)->status();
  if (summary.entries == 0) {
    std::string why = summary.lines == 0 ? "it is empty" : "no line of it is a request";
    if (!summary.examples.empty()) {
      absl::StrAppend(&why, "; line ", summary.examples[0].number, ": ", summary.examples[0].reason,
                      ": ", summary.examples[0].text);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", why,
                     ". A line looks like this: 192.0.2.1 - alice [17/May/2015:10:05:03 "
                     "+0000] \"GET /index.html HTTP/1.1\" 200 2326 \"-\" \"Mozilla/5.0\""));
  }
  workload->SortByTime();
  return workload;
}

uint32_t LogWorkload::Intern(const std::string& value) {
  const auto found = ids_.find(value);
  if (found != ids_.end()) return found->second;
  const uint32_t id = static_cast<uint32_t>(values_.size());
  nodes_.push_back(std::make_unique<std::string>(value));
  values_.emplace_back(*nodes_.back());
  ids_.emplace(value, id);
  return id;
}

void LogWorkload::AddEntry(const LogEntry& entry, const Mapping& mapping) {
  for (const MappedName& mapped : mapping.names) {
    fields_.push_back(MapValue(mapping, mapped, entry, &scratch_) ? Intern(scratch_) : kNoValue);
  }
  times_ms_.push_back(entry.time_ms);
}

// Servers write a line when the request ends, so times run back by seconds: they are sorted. Most
// logs keep whole seconds only: the requests of one second are spread over it.
void LogWorkload::SortByTime() {
  const size_t n = times_ms_.size();
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0u);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](uint32_t a, uint32_t b) { return times_ms_[a] < times_ms_[b]; });
  const int64_t first_ms = times_ms_[order_.front()];
  summary_.first_ms = first_ms;
  summary_.last_ms = times_ms_[order_.back()];
  due_ns_.resize(n);
  for (size_t i = 0; i < n;) {
    size_t end = i;
    const int64_t time_ms = times_ms_[order_[i]];
    while (end < n && times_ms_[order_[end]] == time_ms) ++end;
    const uint64_t spread_ns = time_ms % 1000 == 0 ? 1'000'000'000 : 1'000'000;
    const uint64_t start_ns = static_cast<uint64_t>(time_ms - first_ms) * 1'000'000;
    for (size_t j = i; j < end; ++j) due_ns_[j] = start_ns + spread_ns * (j - i) / (end - i);
    i = end;
  }
  times_ms_ = {};
  ids_ = {};
}

std::unique_ptr<Stream> LogWorkload::NewStream(uint32_t index, uint32_t count) const {
  return std::make_unique<LogStream>(*this, index, count);
}

std::map<std::string, std::vector<ValueShare>> TopValues(const Workload& workload, size_t limit,
                                                         size_t top) {
  struct Count {
    uint64_t n = 0;
    std::string tier;
  };
  std::map<std::string, absl::flat_hash_map<std::string, Count>> counts;
  const std::unique_ptr<Stream> stream = workload.NewStream(0, 1);
  Request request;
  size_t total = 0;
  while (total < limit && stream->Next(&request)) {
    ++total;
    std::string tier;
    for (size_t i = 0; i < request.count; ++i) {
      const sluice_descriptor_t& d = request.descriptors[i];
      if (std::string_view(d.name, d.name_len) == "tier") tier.assign(d.value, d.value_len);
    }
    for (size_t i = 0; i < request.count; ++i) {
      const sluice_descriptor_t& d = request.descriptors[i];
      Count& count = counts[std::string(d.name, d.name_len)][std::string(d.value, d.value_len)];
      if (count.n++ == 0) count.tier = tier;
    }
  }
  std::map<std::string, std::vector<ValueShare>> result;
  for (const auto& [name, values] : counts) {
    std::vector<ValueShare>& shares = result[name];
    for (const auto& [value, count] : values) {
      shares.push_back(
          {value, static_cast<double>(count.n) / static_cast<double>(total), count.tier});
    }
    std::sort(shares.begin(), shares.end(), [](const ValueShare& a, const ValueShare& b) {
      return a.share != b.share ? a.share > b.share : a.value < b.value;
    });
    if (shares.size() > top) shares.resize(top);
  }
  return result;
}

}  // namespace sluice::ctl
