#include "tests/simulation/books.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace sluice::simulation {
namespace {

bool Holds(const Applied* head, const Applied& entry) {
  for (; head != nullptr && head->at_ns >= entry.at_ns; head = head->before) {
    if (head->seq == entry.seq && head->instance == entry.instance) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> Books::Check(bool closing) {
  std::vector<std::string> wrong;
  totals_ = {};
  owners_.clear();
  in_chain_.clear();
  all_.clear();
  for (size_t i = 0; i < hosts_->size(); ++i) {
    for (const Life& life : (*hosts_)[i]->lives()) owners_[life.instance] = {i, &life};
  }
  Lines lines(hosts_->size());
  AddCounted(&lines, &wrong);
  AddReported(&lines);
  if (closing) AddForgotten(&lines);
  for (size_t i = 0; i < hosts_->size(); ++i) {
    const Host& host = *(*hosts_)[i];
    for (const auto& [text, tokens] : host.lost_by_kills()) {
      lines[i][text].may_be_missing += tokens;
      totals_.lost_by_kills += tokens;
    }
    for (const auto* refunds : {&host.refunds_lost_by_kills(), &host.refunds_abandoned()}) {
      for (const auto& [text, tokens] : *refunds) lines[i][text].may_be_too_much += tokens;
    }
    for (const auto& [text, tokens] : host.admitted()) {
      CheckLine(i, text, closing, lines[i][text], &wrong);
    }
  }
  return wrong;
}

void Books::CheckLine(size_t i, const std::string& text, bool closing, const Line& line,
                      std::vector<std::string>* wrong) {
  const Host& host = *(*hosts_)[i];
  const int64_t admitted = host.admitted().at(text);
  const auto found = host.given_back().find(text);
  const int64_t given_back = found == host.given_back().end() ? 0 : found->second;
  totals_.admitted += admitted;
  totals_.given_back += given_back;
  totals_.counted += line.counted;
  if (line.counted > admitted) {
    wrong->push_back(absl::StrCat("counted twice: host ", i, " admitted ", admitted, " of ", text,
                                  ", Redis has counted ", line.counted));
  }
  if (line.reported > admitted) {
    wrong->push_back(absl::StrCat("counted twice: host ", i, " admitted ", admitted, " of ", text,
                                  ", its batches told of ", line.reported));
  }
  if (!closing) return;
  const int64_t missing = admitted - given_back - line.counted;
  const Host::Unnamed unnamed = host.UnnamedTokens();
  const int64_t too_much = line.may_be_too_much + unnamed.refunds;
  const int64_t too_few = line.may_be_missing + unnamed.use + host.AbandonedTokens();
  if (-missing > too_much) {
    wrong->push_back(absl::StrCat("counted twice: host ", i, " kept ", admitted - given_back,
                                  " of ", text, ", Redis has counted ", line.counted,
                                  ", and no more than ", too_much, " of refunds may be missing"));
  }
  if (missing > too_few) {
    wrong->push_back(absl::StrCat("lost: host ", i, " kept ", admitted - given_back, " of ", text,
                                  ", Redis has counted ", line.counted, ", and no more than ",
                                  too_few, " may be missing"));
  }
}

void Books::AddCounted(Lines* lines, std::vector<std::string>* wrong) {
  for (uint32_t shard = 0; shard < cluster_->shards().keys.size(); ++shard) {
    const Copy* copy = cluster_->Owned(shard);
    for (const Applied* entry = copy != nullptr ? copy->head : nullptr; entry != nullptr;
         entry = entry->before) {
      const auto owner = owners_.find(entry->instance);
      if (owner == owners_.end()) {
        wrong->push_back("Redis has counted for a daemon that never was");
        continue;
      }
      ++totals_.batches;
      if (!in_chain_[{owner->second.life, shard}].emplace(entry->seq, true).second) {
        wrong->push_back(absl::StrCat("counted twice: batch ", entry->seq, " of host ",
                                      owner->second.host, ", shard ", shard));
      }
      for (const auto& [text, tokens] : entry->tokens) {
        (*lines)[owner->second.host][text].counted += tokens;
      }
    }
  }
}

void Books::AddReported(Lines* lines) {
  for (const Applied& entry : cluster_->lineage().applied) {
    const auto owner = owners_.find(entry.instance);
    if (owner == owners_.end()) continue;
    std::vector<const Applied*>& copies = all_[{owner->second.life, entry.shard}][entry.seq];
    copies.push_back(&entry);
    if (copies.size() > 1) continue;
    for (const auto& [text, tokens] : entry.tokens) {
      (*lines)[owner->second.host][text].reported += tokens;
    }
  }
}

// What Redis acknowledged and does not hold any more. It is to be counted again where the daemon
// lived on and was told, by the reply to a later batch, within the journal's time.
void Books::AddForgotten(Lines* lines) {
  for (const auto& [whose, batches] : all_) {
    const auto& [life, shard] = whose;
    const std::map<int64_t, bool>& counted = in_chain_[whose];
    for (auto batch = batches.begin(); batch != batches.end(); ++batch) {
      if (counted.contains(batch->first)) continue;
      const Applied& entry = *batch->second.front();
      const auto acked = life->acked.find({shard, batch->first});
      // Never answered: it is sent again until it is, or counted as lost with the daemon.
      if (acked == life->acked.end()) continue;
      ++totals_.forgotten;
      bool told_in_time = false;
      for (auto later = std::next(batch); later != batches.end(); ++later) {
        const auto told = life->acked.find({shard, later->first});
        if (told == life->acked.end()) break;
        const std::vector<const Applied*>& copies = later->second;
        if (std::any_of(copies.begin(), copies.end(),
                        [&entry](const Applied* copy) { return Holds(copy, entry); })) {
          continue;
        }
        told_in_time = told->second.at_ns <= acked->second.at_ns + reconcile::kJournalNs;
        break;
      }
      if (told_in_time) continue;
      const size_t host = owners_.at(life->instance).host;
      for (const auto& [text, tokens] : entry.tokens) {
        Line& line = (*lines)[host][text];
        (tokens < 0 ? line.may_be_too_much : line.may_be_missing) += std::abs(tokens);
        totals_.lost_by_redis += tokens;
      }
    }
  }
}

}  // namespace sluice::simulation
