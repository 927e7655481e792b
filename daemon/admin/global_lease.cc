#include "daemon/admin/global_lease.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace sluice::admin {
namespace {

constexpr int64_t kGenerationUs = 1'000'000;  // as in lua/lease.lua
constexpr double kMost = 1ull << 60;          // beyond all that the script counts
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
  (*out)["algorithm"] = config::AlgorithmName(rule.kind, rule.max_delay_ns);
  (*out)["consistency"] = rule.strict ? "strict" : "overdraft";
  (*out)["remaining"] = remaining;
  (*out)["limit"] = limit.limit;
  (*out)["period_ns"] = limit.period_ns;
  (*out)["burst"] = limit.burst;
  (*out)["denying"] = remaining < rule.cost;
  (*out)["out_tokens"] = static_cast<uint64_t>(std::max(lent, 0.0));
  (*out)["hosts"] = static_cast<uint64_t>(std::max(counted(kHosts0, kHosts1), 0.0));
  (*out)["demand_per_s"] = counted(kDemand0, kDemand1) * 1e-3;
  return true;
}

}  // namespace sluice::admin
