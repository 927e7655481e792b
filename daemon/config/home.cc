#include "daemon/config/home.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "daemon/config/text.h"
#include "shm/hash.h"

namespace sluice::config {
namespace {

uint32_t IndexOf(const std::vector<std::string>& regions, std::string_view name) {
  const auto at = std::find(regions.begin(), regions.end(), name);
  // One that is not in force yet: the map's hash tells hosts apart that know it.
  return at == regions.end() ? 0 : static_cast<uint32_t>(at - regions.begin());
}

// Fields with their lengths, so that different maps differ.
void Mix(std::string_view text, uint64_t* hash) {
  *hash = shm::Fnv1a(Cat(text.size(), ":"), *hash);
  *hash = shm::Fnv1a(text, *hash);
}

uint64_t HashOf(const HomeConfig& home, std::vector<std::string> regions) {
  uint64_t hash = shm::Fnv1a(home.by == HomeBy::kMap ? "map" : "rendezvous");
  std::sort(regions.begin(), regions.end());
  for (const std::string& region : regions) Mix(region, &hash);
  Mix(home.descriptor, &hash);
  Mix(home.fallback, &hash);
  auto entries = home.regions;
  std::sort(entries.begin(), entries.end());
  for (const auto& [value, region] : entries) {
    Mix(value, &hash);
    Mix(region, &hash);
  }
  return hash;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// What NameWriter::PutEscaped wrote.
std::string Unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

Home::Home(const RuleConfig& rule, const std::string& label,
           const std::vector<std::string>& regions)
    : regions_(regions) {
  const HomeConfig& home = rule.home;
  mark_ = absl::StrFormat("%s %d %016x", label, home.epoch, HashOf(home, regions));
  if (home.by == HomeBy::kRendezvous) {
    part_ = SIZE_MAX;
    return;
  }
  while (part_ < rule.key.size() && rule.key[part_].descriptor != home.descriptor) ++part_;
  for (const auto& [value, region] : home.regions) by_value_[value] = IndexOf(regions, region);
  fallback_ = IndexOf(regions, home.fallback);
}

uint32_t Home::RegionOf(std::string_view text) const {
  if (part_ == SIZE_MAX) return RendezvousOf(text);
  for (size_t i = 0; i <= part_; ++i) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) return fallback_;
    text.remove_prefix(colon + 1);
  }
  // The last value keeps its colons, and is then none of a map's unless the map's has them too.
  auto found = by_value_.find(Unescaped(text));
  if (found == by_value_.end()) found = by_value_.find(Unescaped(text.substr(0, text.find(':'))));
  return found == by_value_.end() ? fallback_ : found->second;
}

// Highest random weight: a region that comes or goes moves its own part of the buckets only.
uint32_t Home::RendezvousOf(std::string_view text) const {
  uint32_t best = 0;
  uint64_t most = 0;
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    uint64_t state = shm::Fnv1a(regions_[i], shm::Fnv1a(text));
    const uint64_t weight = shm::SplitMix64(state);
    // A tie is decided by the name, since hosts have them in different orders.
    if (i == 0 || weight > most || (weight == most && regions_[i] < regions_[best])) {
      best = i;
      most = weight;
    }
  }
  return best;
}

}  // namespace sluice::config
