// Lines of an access log, and the descriptors that are made of them.
#include "ctl/access_log.h"

#include <cstring>
#include <memory>

#include "ctl/mapping.h"
#include "shm/fuzz_input.h"

namespace sluice::ctl {
namespace {

using fuzz::Require;

// A descriptor of every source.
Mapping EverySource() {
  Mapping mapping = DefaultMapping();
  for (const char* option : {"path=path", "path1=path1", "status=status", "remote=remote-user",
                             "network=network", "constant=const:x"}) {
    Require(ApplyMapOption(option, &mapping).ok(), "the sources exist");
  }
  return mapping;
}

void CheckEntry(const Mapping& mapping, const LogEntry& entry) {
  Require(!entry.address.empty(), "an entry has an address");
  Require(entry.status >= 0 && entry.status < 1000, "a status has three digits");
  Require(entry.is_http == !entry.method.empty(), "HTTP has a method");
  Require(entry.is_http == !entry.target.empty(), "HTTP has a target");
  std::string value;
  for (const MappedName& mapped : mapping.names) {
    if (!MapValue(mapping, mapped, entry, &value)) continue;
    if (mapped.source == Source::kRoute || mapped.source == Source::kPath) {
      Require(value.size() <= kMaxRouteBytes, "a route is cut");
    }
    if (mapped.source == Source::kPath && value[0] == '/' && value.size() < kMaxRouteBytes) {
      Require(NormalisePath(value, 0) == value, "a normal path is normal");
    }
  }
}

void ParseLine(std::string_view line, bool is_cut) {
  static const Mapping mapping = EverySource();
  // In memory of its own, so that a read past the line is seen.
  const std::unique_ptr<char[]> copy(new char[line.size()]);
  if (!line.empty()) std::memcpy(copy.get(), line.data(), line.size());
  LineParser parser;
  LogEntry entry;
  const char* reason = nullptr;
  switch (parser.Parse({copy.get(), line.size()}, is_cut, &entry, &reason)) {
    case LineKind::kEntry:
      CheckEntry(mapping, entry);
      break;
    case LineKind::kMalformed:
      Require(reason != nullptr && *reason != '\0', "it is said what was missed");
      break;
    case LineKind::kBlank:
    case LineKind::kComment:
      break;
  }
}

}  // namespace
}  // namespace sluice::ctl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::fuzz::Input input(data, size);
  while (!input.empty()) {
    const std::string_view line = input.Until('\n');
    sluice::ctl::ParseLine(line, false);
    sluice::ctl::ParseLine(line, true);
  }
  return 0;
}
