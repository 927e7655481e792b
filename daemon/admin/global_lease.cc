#include "daemon/admin/global_lease.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "daemon/admin/bucket_list.h"
#include "shm/layout.h"

namespace sluice::admin {
namespace {

constexpr int64_t kGenerationUs = 1'000'000;  // as in lua/lease.lua
constexpr double kMost = 1ull << 60;          // beyond all that the scripts count
// Its fields, in their order.
enum Field : uint8_t {
  kLevel,
  kTime,
  kFence,
  kGen,
  kOut0,
  kOut1,
  kDemand0,
  kDemand1,
  kHosts0,
  kHosts1,
  kUnit,
  kLost,
  kLostTime,
  kCut,
  kFull,
  kFields
};

}  // namespace

bool AddLentState(const config::CompiledRule& rule, std::string_view field, int64_t now_us,
                  nlohmann::ordered_json* out) {
  const std::vector<std::string> words = absl::StrSplit(std::string(field), ' ');
  double f[kFields];
  if (words.size() != kFields) return false;
  for (size_t i = 0; i < kFields; ++i) {
    if (!absl::SimpleAtod(words[i], &f[i]) || !(std::abs(f[i]) < kMost)) return false;
  }
  if (f[kUnit] < 1) return false;
  // What counts of a generation that is over ends with the next but one.
  const int64_t now_gen = now_us / kGenerationUs;
  const double past = static_cast<double>(now_gen) - f[kGen];
  const auto counted = [&](Field now, Field last) {
    return past < 1 ? f[now] + f[last] : past < 2 ? f[now] : 0.0;
  };
  const shm::Limit& limit = rule.limit;
  const uint64_t period_us = std::max<uint64_t>(limit.period_ns / 1000, 1);
  const uint64_t in_lowest_terms = limit.limit / std::gcd(limit.limit, period_us);
  const auto per_us = static_cast<double>(in_lowest_terms);
  const auto burst = static_cast<double>(limit.burst);
  const double lent = counted(kOut0, kOut1);
  const double refill = per_us * std::max(0.0, static_cast<double>(now_us) - f[kTime]);
  const double level = std::max(f[kLevel], std::min(f[kLevel] + refill, (burst - lent) * f[kUnit]));
  const auto remaining = static_cast<uint64_t>(std::clamp(level / f[kUnit], 0.0, burst));
  (*out)["reset_after_s"] = std::max(0.0, (f[kFull] - static_cast<double>(now_us)) * 1e-6);
  AddTerms(rule, limit, remaining, out);
  (*out)["consistency"] = rule.strict ? "strict" : "overdraft";
  (*out)["out_tokens"] = static_cast<uint64_t>(std::max(lent, 0.0));
  (*out)["hosts"] = static_cast<uint64_t>(std::max(counted(kHosts0, kHosts1), 0.0));
  (*out)["demand_per_s"] = counted(kDemand0, kDemand1) * 1e-3;
  return true;
}

bool AddLentPlaces(const config::CompiledRule& rule, std::string_view field, int64_t now_us,
                   nlohmann::ordered_json* out) {
  constexpr int64_t kSilentUs = 30'000'000;  // as in lua/places.lua
  constexpr int64_t kWaitsUs = 1'000'000;
  constexpr size_t kPerHost = 5;  // instance lent seen_us missing since_us, behind one word
  const std::vector<std::string> words = absl::StrSplit(std::string(field), ' ');
  int64_t called_us = 0;
  if (words.size() % kPerHost != 1 || !absl::SimpleAtoi(words[0], &called_us)) return false;
  uint64_t lent = 0;
  uint64_t missing = 0;
  uint64_t hosts = 0;
  for (size_t i = 1; i < words.size(); i += kPerHost) {
    uint64_t has = 0;
    int64_t seen_us = 0;
    uint64_t lacks = 0;
    if (!absl::SimpleAtoi(words[i + 1], &has) || !absl::SimpleAtoi(words[i + 2], &seen_us) ||
        !absl::SimpleAtoi(words[i + 3], &lacks)) {
      return false;
    }
    if (has > shm::kMaxLogEntries || lacks > shm::kMaxLogEntries) return false;
    if (now_us - seen_us > kSilentUs) continue;
    lent += has;
    hosts += has == 0 ? 0 : 1;
    if (now_us - seen_us <= kWaitsUs) missing += lacks;
  }
  AddTerms(rule, rule.limit, rule.limit.limit - std::min(rule.limit.limit, lent), out);
  (*out)["reset_after_s"] = 0.0;
  (*out)["lent_places"] = lent;
  (*out)["hosts"] = hosts;
  (*out)["missing_places"] = missing;
  return true;
}

}  // namespace sluice::admin
