// The clients of several clusters, one for each region, as if they were one: shard s of region r is
// r x shards + s, and primary p of it is p x regions + r. With one region all is as in
// cluster_client.h, which states what each call does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/redis/cluster_client.h"

namespace sluice::redis {

struct RegionOptions {
  std::string name;  // before the subject of its alarms; empty: there is one region
  ClientOptions client;
};

// Single-threaded: the ring's thread.
class RegionClients {
 public:
  // `regions`: 1 or more, all with as many shards; the host's own first.
  static absl::StatusOr<std::unique_ptr<RegionClients>> Create(
      std::vector<RegionOptions> regions, const ClusterClient::Environment& environment);

  void Call(uint32_t shard, ScriptId script, std::string_view encoded_args, uint32_t arg_count,
            uint64_t token) {
    clients_[RegionOfShard(shard)]->Call(shard % shards_, script, encoded_args, arg_count, token);
  }
  void Ping(PrimaryIndex primary, uint64_t token) {
    clients_[RegionOf(primary)]->Ping(primary / count(), token);
  }
  PrimaryIndex PrimaryOf(uint32_t shard) const {
    const uint32_t region = RegionOfShard(shard);
    return Outer(region, clients_[region]->PrimaryOf(shard % shards_));
  }
  size_t primary_count() const;
  PrimaryInfo Primary(PrimaryIndex index) const;
  const std::string& RunId(PrimaryIndex index) const;
  void ReadFilesAnew();
  void Poll();
  int64_t NextDeadlineNs() const;
  std::vector<PrimaryStats> Stats() const;
  ClientCounters Counters() const;

  uint32_t count() const { return static_cast<uint32_t>(clients_.size()); }
  uint32_t RegionOf(PrimaryIndex primary) const { return primary % count(); }
  const std::string& name(uint32_t region) const { return ears_[region]->name; }
  const ClusterClient& own() const { return *clients_[0]; }

 private:
  // Hears one client and tells it in the numbers of all.
  struct Ear final : Listener {
    RegionClients* regions = nullptr;
    Listener* listener = nullptr;
    uint32_t region = 0;
    std::string name;

    uint32_t OuterShard(uint32_t shard) const { return region * regions->shards_ + shard; }
    PrimaryIndex Outer(PrimaryIndex p) const { return regions->Outer(region, p); }
    void OnReply(uint32_t shard, uint64_t token, const Reply& reply,
                 PrimaryIndex primary) override {
      listener->OnReply(OuterShard(shard), token, reply, Outer(primary));
    }
    void OnFailure(uint32_t shard, uint64_t token, const Failure& failure,
                   PrimaryIndex primary) override {
      listener->OnFailure(OuterShard(shard), token, failure, Outer(primary));
    }
    void OnPong(PrimaryIndex primary, uint64_t token, const Failure* failure) override {
      listener->OnPong(Outer(primary), token, failure);
    }
    void OnTopology() override { listener->OnTopology(); }
    void OnAlarm(const Alarm& alarm) override;
  };

  RegionClients() = default;
  PrimaryIndex Outer(uint32_t region, PrimaryIndex primary) const {
    return primary == kNoPrimary ? kNoPrimary : primary * count() + region;
  }
  uint32_t RegionOfShard(uint32_t shard) const { return shard / shards_ % count(); }
  // Whether the client has ever had such a primary: others have more.
  bool Has(PrimaryIndex index) const {
    return index / count() < clients_[RegionOf(index)]->primary_count();
  }

  uint32_t shards_ = 1;  // of each
  std::vector<std::unique_ptr<Ear>> ears_;
  std::vector<std::unique_ptr<ClusterClient>> clients_;
};

}  // namespace sluice::redis
