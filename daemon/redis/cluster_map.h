#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/redis/cluster_client.h"
#include "daemon/redis/endpoint.h"
#include "daemon/redis/reply.h"
#include "daemon/redis/slot.h"

namespace sluice::redis {

// What CLUSTER SLOTS said: the primaries and who owns which slots.
struct SlotsReply {
  struct Node {
    Endpoint endpoint;
    std::string node_id;
    std::string hostname;  // announced beside its address; may be empty
  };
  struct Range {
    uint32_t first = 0;
    uint32_t last = 0;  // included
    uint32_t node = 0;  // position in `nodes`
  };
  std::vector<Node> nodes;
  std::vector<Range> ranges;
};

// Reads a reply to CLUSTER SLOTS from a node that may be anybody: every number, length and shape is
// checked. `asked` stands in for an empty host. InvalidArgument names what is wrong; Unavailable
// when no slot has an owner (a cluster that is not put together yet).
absl::StatusOr<SlotsReply> ParseClusterSlots(const Reply& reply, const Endpoint& asked);

// Which primary owns a slot, with indices that stay with a node id. Replicas are left out: every
// call writes.
class ClusterMap {
 public:
  struct Node {
    Endpoint endpoint;
    std::string node_id;   // empty: known by a redirect only, or single mode
    bool in_map = false;   // owns slots
    std::string hostname;  // announced beside its address (empty: none); what TLS checks
  };

  ClusterMap();

  // Takes a new map. Nodes are recognised by id, then by address if no id is known yet; a known
  // node may have moved to another address. Nodes that own nothing any more stay, marked; their
  // index goes to another node only when all kMaxPrimaries are taken. True when anything changed.
  bool Apply(const SlotsReply& slots);

  // MOVED: `slot` belongs to the node at `endpoint`, which is added if it is new. kNoPrimary when
  // the table is full.
  PrimaryIndex Patch(uint32_t slot, const Endpoint& endpoint);

  // The node at an address (ASK), added if it is new. kNoPrimary when the table is full.
  PrimaryIndex FindOrAdd(const Endpoint& endpoint);

  // Single mode: the node owns all slots.
  void SetSingle(const Endpoint& endpoint);

  // Sentinel mode: the node at that address, added if it is new, owns all slots. True when anything
  // changed.
  bool SetOwner(const Endpoint& endpoint);

  PrimaryIndex Owner(uint32_t slot) const { return owners_[slot]; }
  size_t size() const { return nodes_.size(); }
  const Node& node(PrimaryIndex index) const { return nodes_[index]; }
  // A map was applied, or the mode is single.
  bool known() const { return known_; }

 private:
  PrimaryIndex FindById(const std::string& node_id) const;
  PrimaryIndex FindByEndpoint(const Endpoint& endpoint, bool without_id_only) const;
  PrimaryIndex Add(Node node);
  void MarkOwners();

  std::vector<Node> nodes_;
  std::array<PrimaryIndex, kSlots> owners_;
  bool known_ = false;
};

}  // namespace sluice::redis
