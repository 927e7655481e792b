#include "daemon/redis/regions.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {

absl::StatusOr<std::unique_ptr<RegionClients>> RegionClients::Create(
    std::vector<RegionOptions> regions, const ClusterClient::Environment& environment) {
  std::unique_ptr<RegionClients> all(new RegionClients());
  for (uint32_t i = 0; i < regions.size(); ++i) {
    auto ear = std::make_unique<Ear>();
    ear->regions = all.get();
    ear->listener = environment.listener;
    ear->region = i;
    ear->name = regions[i].name;
    all->shards_ = std::max<uint32_t>(1, regions[i].client.shards);
    ClusterClient::Environment inner = environment;
    inner.listener = ear.get();
    absl::StatusOr<std::unique_ptr<ClusterClient>> client =
        ClusterClient::Create(std::move(regions[i].client), std::move(inner));
    if (!client.ok()) return client.status();
    all->ears_.push_back(std::move(ear));
    all->clients_.push_back(*std::move(client));
  }
  return all;
}

void RegionClients::Ear::OnAlarm(const Alarm& alarm) {
  if (name.empty()) return listener->OnAlarm(alarm);
  Alarm named = alarm;
  named.subject = absl::StrCat(name, " ", alarm.subject);
  listener->OnAlarm(named);
}

size_t RegionClients::primary_count() const {
  size_t most = 0;
  for (const auto& client : clients_) most = std::max(most, client->primary_count());
  return most * count();
}

PrimaryInfo RegionClients::Primary(PrimaryIndex index) const {
  return Has(index) ? clients_[RegionOf(index)]->Primary(index / count()) : PrimaryInfo{};
}

const std::string& RegionClients::RunId(PrimaryIndex index) const {
  static const std::string none;
  return Has(index) ? clients_[RegionOf(index)]->RunId(index / count()) : none;
}

void RegionClients::ReadFilesAnew() {
  for (const auto& client : clients_) client->ReadFilesAnew();
}

void RegionClients::Poll() {
  for (const auto& client : clients_) client->Poll();
}

int64_t RegionClients::NextDeadlineNs() const {
  int64_t next_ns = INT64_MAX;
  for (const auto& client : clients_) next_ns = std::min(next_ns, client->NextDeadlineNs());
  return next_ns;
}

std::vector<PrimaryStats> RegionClients::Stats() const {
  std::vector<PrimaryStats> all;
  for (uint32_t i = 0; i < clients_.size(); ++i) {
    for (PrimaryStats& stats : clients_[i]->Stats()) {
      stats.index = Outer(i, stats.index);
      all.push_back(std::move(stats));
    }
  }
  return all;
}

ClientCounters RegionClients::Counters() const {
  ClientCounters sum;
  for (const auto& client : clients_) sum += client->Counters();
  return sum;
}

}  // namespace sluice::redis
