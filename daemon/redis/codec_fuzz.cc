// What a server of Redis answers, or whoever sits on its port: replies, CLUSTER SLOTS, redirects.
// The first byte of an input says in what pieces the others arrive.
#include "daemon/redis/codec.h"

#include <vector>

#include "daemon/redis/cluster_map.h"
#include "daemon/redis/error_reply.h"
#include "shm/fuzz_input.h"

namespace sluice::redis {
namespace {

using fuzz::Require;

constexpr size_t kMaxElements = 512;  // few, so that inputs reach the bound

struct Parsed {
  std::vector<Reply> replies;
  bool ok = true;
};

Parsed ParseInPieces(std::string_view bytes, size_t piece) {
  ReplyReader reader({.max_elements = kMaxElements});
  Parsed parsed;
  while (!bytes.empty() && parsed.ok) {
    parsed.ok = reader.Feed(bytes.substr(0, piece)).ok();
    bytes.remove_prefix(std::min(piece, bytes.size()));
    while (std::optional<Reply> reply = reader.Next()) parsed.replies.push_back(*std::move(reply));
  }
  return parsed;
}

bool IsSame(const Reply& a, const Reply& b) {
  return a.kind == b.kind && a.integer == b.integer && a.text == b.text &&
         std::equal(a.elements.begin(), a.elements.end(), b.elements.begin(), b.elements.end(),
                    IsSame);
}

size_t Elements(const Reply& reply) {
  size_t n = reply.elements.size();
  for (const Reply& element : reply.elements) n += Elements(element);
  return n;
}

void CheckOwners(const ClusterMap& map) {
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    const PrimaryIndex owner = map.Owner(slot);
    Require(owner == kNoPrimary || owner < map.size(), "an owner is in the table");
    Require(owner == kNoPrimary || map.node(owner).in_map, "an owner owns");
  }
}

void Use(const Reply& reply, ClusterMap* map) {
  const Endpoint asked{"127.0.0.1", 7000};
  if (reply.is_error()) {
    JudgeError(reply.text);
    Require(Printable(reply.text).size() <= 200, "a line fit for logs");
    const absl::StatusOr<Redirect> redirect = ParseRedirect(reply.text, asked);
    if (!redirect.ok()) return;
    Require(redirect->slot < kSlots && redirect->endpoint.port != 0, "a redirect leads somewhere");
    map->Patch(redirect->slot, redirect->endpoint);
    CheckOwners(*map);
    return;
  }
  const absl::StatusOr<SlotsReply> slots = ParseClusterSlots(reply, asked);
  if (!slots.ok()) return;
  map->Apply(*slots);
  CheckOwners(*map);
  Require(!map->Apply(*slots), "a map that is known changes nothing");
}

}  // namespace
}  // namespace sluice::redis

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::redis;  // NOLINT(google-build-using-namespace)
  sluice::fuzz::Input input(data, size);
  const size_t piece = std::max<size_t>(input.Number(), 1);
  const Parsed whole = ParseInPieces(input.rest(), std::max<size_t>(input.rest().size(), 1));
  const Parsed pieces = ParseInPieces(input.rest(), piece);
  sluice::fuzz::Require(whole.ok == pieces.ok, "pieces are refused as the whole is");
  sluice::fuzz::Require(whole.replies.size() == pieces.replies.size(), "as many replies in pieces");
  ClusterMap map;
  for (size_t i = 0; i < whole.replies.size(); ++i) {
    sluice::fuzz::Require(IsSame(whole.replies[i], pieces.replies[i]), "the same replies");
    sluice::fuzz::Require(Elements(whole.replies[i]) <= kMaxElements, "a reply within its bound");
    Use(whole.replies[i], &map);
  }
  return 0;
}
