#include "daemon/lease/homes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sluice::lease {
namespace {

// As lua/home.lua answers.
constexpr int64_t kLater = 0;
constexpr int64_t kOpen = 2;
constexpr int64_t kAnother = 3;

constexpr uint64_t kResendMinNs = 250'000'000;
constexpr uint64_t kResendMaxNs = 1'000'000'000;
constexpr uint64_t kPauseNs = 50'000'000;            // between rounds of a shard
constexpr uint64_t kRefusedPauseNs = 1'000'000'000;  // where a person must mend something
constexpr size_t kRoundsAtOnce = 16;

}  // namespace

Homes::Homes(uint32_t regions, uint32_t shards, HomesLink* link)
    : region_count_(regions), link_(link), shards_(shards) {
  for (Shard& s : shards_) s.regions.resize(regions);
}

void Homes::SetRules(const config::CompiledRules& rules) {
  std::vector<Rule> next;
  for (const config::CompiledRule& rule : rules.rules()) {
    if (rule.home != nullptr) {
      next.push_back({rule.label, absl::StrSplit(rule.home->mark(), ' ')});
    }
  }
  const bool is_same = std::equal(next.begin(), next.end(), rules_.begin(), rules_.end(),
                                  [](const Rule& a, const Rule& b) { return a.mark == b.mark; });
  if (is_same) return;
  rules_ = std::move(next);
  refused_.clear();
  for (Shard& s : shards_) {
    s.phase = rules_.empty() ? Phase::kSettled : Phase::kWanted;
    s.not_before_ns = 0;
    s.round = 0;  // answers to the former maps are to no round
  }
}

void Homes::OnAway(uint32_t shard, const std::string& label, Away why) {
  if (why != Away::kNotOpen) {
    refused_[label] = why;
    return;
  }
  Shard& s = shards_[shard % shards_.size()];
  if (s.phase == Phase::kOpening || s.phase == Phase::kSettled) s.phase = Phase::kWanted;
}

void Homes::Tick(uint64_t now_ns) {
  if (rules_.empty()) return;
  size_t telling = 0;
  for (const Shard& s : shards_) telling += s.phase == Phase::kTelling ? 1 : 0;
  for (uint32_t i = 0; i < shards_.size(); ++i) {
    Shard& s = shards_[i];
    if (s.phase == Phase::kWanted && now_ns >= s.not_before_ns && telling < kRoundsAtOnce) {
      Begin(s, now_ns);
      ++telling;
    }
    if (s.phase == Phase::kTelling || s.phase == Phase::kOpening) Send(i, now_ns);
  }
}

void Homes::Begin(Shard& s, uint64_t now_ns) {
  s.phase = Phase::kTelling;
  s.round = ++round_;
  s.not_before_ns = now_ns + (refused_.empty() ? kPauseNs : kRefusedPauseNs);
  for (Region& region : s.regions) {
    region = Region{};
    region.told.resize(rules_.size());
    for (size_t rule = 0; rule < rules_.size(); ++rule) region.rules.push_back(rule);
  }
}

// To each region that has not answered; a copy changes nothing.
void Homes::Send(uint32_t index, uint64_t now_ns) {
  Shard& s = shards_[index];
  for (uint32_t r = 0; r < region_count_; ++r) {
    Region& region = s.regions[r];
    const uint32_t shard = r * static_cast<uint32_t>(shards_.size()) + index;
    if (region.is_answered || now_ns < region.resend_ns || !link_->MayLend(shard, now_ns)) continue;
    region.pause_ns = std::clamp(2 * region.pause_ns, kResendMinNs, kResendMaxNs);
    region.resend_ns = now_ns + region.pause_ns;
    std::vector<std::string> args = {"0"};
    for (const size_t rule : region.rules) {
      args.insert(args.end(), rules_[rule].mark.begin(), rules_[rule].mark.end());
      const bool is_opening = s.phase == Phase::kOpening;
      args.push_back(absl::StrCat(is_opening ? region.told[rule].set_us : 0));
    }
    link_->Settle(shard, args, s.round);
  }
}

absl::Status Homes::OnReply(uint32_t shard, uint64_t round, const redis::Reply& reply) {
  if (reply.is_error()) return absl::UnavailableError(reply.text);
  Shard& s = shards_[shard % shards_.size()];
  if (round != s.round || (s.phase != Phase::kTelling && s.phase != Phase::kOpening)) {
    return absl::OkStatus();
  }
  Region& region = s.regions[shard / shards_.size()];
  if (region.is_answered) return absl::OkStatus();
  if (!reply.is_array() || reply.elements.size() != 2 * region.rules.size()) {
    return absl::InternalError("the homes' reply has another form");
  }
  bool all_open = true;
  for (size_t i = 0; i < region.rules.size(); ++i) {
    const redis::Reply& state = reply.elements[2 * i];
    const redis::Reply& set_us = reply.elements[2 * i + 1];
    if (!state.is_integer() || !set_us.is_integer() || state.integer < kLater ||
        state.integer > kAnother || set_us.integer < 0) {
      return absl::InternalError("the homes' reply holds what is no state");
    }
    region.told[region.rules[i]] = {state.integer, static_cast<uint64_t>(set_us.integer)};
    all_open = all_open && state.integer == kOpen;
  }
  region.is_answered = true;
  if (s.phase == Phase::kOpening && !all_open) {
    s.phase = Phase::kWanted;  // what it was told has been forgotten or overtaken: all of it anew
    return absl::OkStatus();
  }
  const bool all_answered = std::all_of(s.regions.begin(), s.regions.end(),
                                        [](const Region& r) { return r.is_answered; });
  if (!all_answered) return absl::OkStatus();
  if (s.phase == Phase::kOpening) {
    s.phase = Phase::kSettled;
  } else {
    AllTold(s);
  }
  return absl::OkStatus();
}

void Homes::AllTold(Shard& s) {
  std::vector<bool> is_refused(rules_.size());
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    for (const Region& region : s.regions) {
      const int64_t state = region.told[rule].state;
      if (state != kLater && state != kAnother) continue;
      is_refused[rule] = true;
      refused_[rules_[rule].label] = state == kLater ? Away::kLaterMap : Away::kAnotherMap;
    }
  }
  s.round = ++round_;
  bool has_closed = false;
  for (Region& region : s.regions) {
    region.rules.clear();
    for (size_t rule = 0; rule < rules_.size(); ++rule) {
      if (!is_refused[rule] && region.told[rule].state != kOpen) region.rules.push_back(rule);
    }
    region.is_answered = region.rules.empty();
    region.resend_ns = region.pause_ns = 0;
    has_closed = has_closed || !region.is_answered;
  }
  s.phase = has_closed ? Phase::kOpening : Phase::kSettled;
}

uint32_t Homes::settled() const {
  return static_cast<uint32_t>(std::count_if(
      shards_.begin(), shards_.end(), [](const Shard& s) { return s.phase == Phase::kSettled; }));
}

}  // namespace sluice::lease
