#include "daemon/redis/cluster_map.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

// Ranges of a map: at worst every slot is a range of its own.
constexpr size_t kMaxRanges = kSlots;
constexpr size_t kMaxNodeIdBytes = 64;  // 40 today

absl::Status Wrong(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("CLUSTER SLOTS: ", what));
}

bool IsNodeId(const std::string& text) {
  if (text.empty() || text.size() > kMaxNodeIdBytes) return false;
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

constexpr size_t kMetadataAt = 3;  // of a node: its metadata, pairs of texts

bool IsHost(const std::string& text) {
  return !text.empty() && text.size() <= kMaxHostBytes &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

// What the node announces of itself under `key`; empty: nothing.
std::string MetadataOf(const Reply& node, std::string_view key) {
  if (node.elements.size() <= kMetadataAt || !node.elements[kMetadataAt].is_array()) return "";
  const std::vector<Reply>& metadata = node.elements[kMetadataAt].elements;
  for (size_t i = 0; i + 1 < metadata.size(); i += 2) {
    if (metadata[i].text == key) return metadata[i + 1].text;
  }
  return "";
}

// The host that the cluster prefers; with "?" (it prefers names and this node has none) the "ip"
// of the node's metadata. Empty or nil: the address that we asked.
std::optional<std::string> HostOf(const Reply& node, const Endpoint& asked) {
  const Reply& host = node.elements[0];
  if (host.kind == Reply::Kind::kNil || host.text.empty()) return asked.host;
  if (host.text != "?") return host.text;
  std::string ip = MetadataOf(node, "ip");
  return ip.empty() ? std::nullopt : std::optional(std::move(ip));
}

absl::StatusOr<SlotsReply::Node> ParseNode(const Reply& node, const Endpoint& asked) {
  if (!node.is_array() || node.elements.size() < 3) return Wrong("a node is not an array");
  const Reply& host = node.elements[0];
  if (!host.is_string() && host.kind != Reply::Kind::kNil) return Wrong("a host is not a string");
  const Reply& port = node.elements[1];
  if (!port.is_integer() || port.integer < 1 || port.integer > 65535) {
    return Wrong("a port is not in 1 to 65535");
  }
  const Reply& id = node.elements[2];
  if (!id.is_string() || !IsNodeId(id.text)) return Wrong("a node id is not an id");
  const std::optional<std::string> name = HostOf(node, asked);
  if (!name || !IsHost(*name)) return Wrong("a host is no host");
  std::string hostname = MetadataOf(node, "hostname");
  if (!hostname.empty() && !IsHost(hostname)) return Wrong("a hostname is no host");
  return SlotsReply::Node{
      {*name, static_cast<uint16_t>(port.integer)}, id.text, std::move(hostname)};
}

}  // namespace

absl::StatusOr<SlotsReply> ParseClusterSlots(const Reply& reply, const Endpoint& asked) {
  if (!reply.is_array()) return Wrong("not an array");
  if (reply.elements.size() > kMaxRanges) return Wrong("too many ranges");
  SlotsReply slots;
  for (const Reply& range : reply.elements) {
    if (!range.is_array() || range.elements.size() < 2) return Wrong("a range is not an array");
    if (range.elements.size() == 2) continue;  // slots without an owner
    const Reply& first = range.elements[0];
    const Reply& last = range.elements[1];
    if (!first.is_integer() || !last.is_integer() || first.integer < 0 ||
        last.integer < first.integer || last.integer >= kSlots) {
      return Wrong("a range is not within 0 to 16383");
    }
    absl::StatusOr<SlotsReply::Node> node = ParseNode(range.elements[2], asked);
    if (!node.ok()) return node.status();
    const auto known =
        std::find_if(slots.nodes.begin(), slots.nodes.end(),
                     [&](const SlotsReply::Node& other) { return other.node_id == node->node_id; });
    const auto index = static_cast<uint32_t>(known - slots.nodes.begin());
    if (known == slots.nodes.end()) {
      if (slots.nodes.size() == kMaxPrimaries) return Wrong("too many primaries");
      slots.nodes.push_back(*std::move(node));
    }
    slots.ranges.push_back(
        {static_cast<uint32_t>(first.integer), static_cast<uint32_t>(last.integer), index});
  }
  if (slots.ranges.empty()) {
    return absl::UnavailableError("the cluster has given no slot to any node yet");
  }
  return slots;
}

ClusterMap::ClusterMap() { owners_.fill(kNoPrimary); }

PrimaryIndex ClusterMap::FindById(const std::string& node_id) const {
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].node_id == node_id) return i;
  }
  return kNoPrimary;
}

PrimaryIndex ClusterMap::FindByEndpoint(const Endpoint& endpoint, bool without_id_only) const {
  PrimaryIndex found = kNoPrimary;
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].endpoint != endpoint) continue;
    if (without_id_only && !nodes_[i].node_id.empty()) continue;
    // An address may have changed hands: its present tenant owns slots.
    if (nodes_[i].in_map) return i;
    if (found == kNoPrimary) found = i;
  }
  return found;
}

PrimaryIndex ClusterMap::Add(Node node) {
  if (nodes_.size() < kMaxPrimaries) {
    nodes_.push_back(std::move(node));
    return static_cast<PrimaryIndex>(nodes_.size() - 1);
  }
  for (PrimaryIndex i = 0; i < nodes_.size(); ++i) {
    if (!nodes_[i].in_map) {
      nodes_[i] = std::move(node);
      return i;
    }
  }
  return kNoPrimary;
}

void ClusterMap::MarkOwners() {
  for (Node& node : nodes_) node.in_map = false;
  for (PrimaryIndex owner : owners_) {
    if (owner != kNoPrimary) nodes_[owner].in_map = true;
  }
}

bool ClusterMap::Apply(const SlotsReply& slots) {
  bool changed = !known_;
  std::vector<PrimaryIndex> indices;
  for (const SlotsReply::Node& node : slots.nodes) {
    PrimaryIndex index = FindById(node.node_id);
    if (index == kNoPrimary) {
      index = FindByEndpoint(node.endpoint, /*without_id_only=*/true);
      if (index == kNoPrimary) index = Add({node.endpoint, node.node_id, false, node.hostname});
      changed = true;
    }
    if (index != kNoPrimary) {
      changed = changed || nodes_[index].endpoint != node.endpoint;
      nodes_[index].endpoint = node.endpoint;
      nodes_[index].node_id = node.node_id;
      nodes_[index].hostname = node.hostname;
      nodes_[index].in_map = true;  // so that Add does not give it away again below
    }
    indices.push_back(index);
  }
  std::array<PrimaryIndex, kSlots> owners;
  owners.fill(kNoPrimary);
  for (const SlotsReply::Range& range : slots.ranges) {
    for (uint32_t slot = range.first; slot <= range.last; ++slot) {
      owners[slot] = indices[range.node];
    }
  }
  changed = changed || owners != owners_;
  owners_ = owners;
  known_ = true;
  MarkOwners();
  return changed;
}

PrimaryIndex ClusterMap::FindOrAdd(const Endpoint& endpoint) {
  const PrimaryIndex index = FindByEndpoint(endpoint, /*without_id_only=*/false);
  return index != kNoPrimary ? index : Add({endpoint, "", false, ""});
}

PrimaryIndex ClusterMap::Patch(uint32_t slot, const Endpoint& endpoint) {
  const PrimaryIndex index = FindOrAdd(endpoint);
  if (index == kNoPrimary) return kNoPrimary;
  owners_[slot] = index;
  MarkOwners();
  return index;
}

bool ClusterMap::SetOwner(const Endpoint& endpoint) {
  const PrimaryIndex index = FindOrAdd(endpoint);
  if (index == kNoPrimary || (known_ && owners_[0] == index)) return false;
  owners_.fill(index);
  known_ = true;
  MarkOwners();
  return true;
}

void ClusterMap::SetSingle(const Endpoint& endpoint) {
  nodes_ = {{endpoint, "", true, ""}};
  owners_.fill(0);
  known_ = true;
}

}  // namespace sluice::redis
