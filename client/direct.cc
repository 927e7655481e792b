#include "client/direct.h"

#include "client/admit.h"

namespace sluice::client {
namespace {

// See AdmitAll.
struct DirectRequest {
  sluice_t& client;
  const Attachment& a;
  const Shape& shape;
  const sluice_descriptor_t* descriptors;
  const uint64_t* hashes;

  uint64_t hash(size_t i) const { return hashes[i]; }
  uint64_t cost_ns(size_t i) const { return shape.direct[i].cost_ns; }
  uint64_t tau_ns(size_t i) const { return shape.direct[i].tau_ns; }
  uint64_t tokens(size_t i) const { return shape.direct[i].tokens; }

  bool may_lease() const { return !IsAnyShardDegraded(a); }
  LeaseName lease_name(size_t i) const { return NameOfListed(client, shape.policy, hashes[i], 0); }
  Leasable leasable(size_t i, shm::Slot& slot) const {
    return {client,        a,    *shape.candidates[i].rule,
            lease_name(i), slot, shm::FingerprintOf(hashes[i])};
  }

  // The values are wanted where the bucket's name is to be written, so the plan is made after all.
  [[gnu::noinline]] void Finish(size_t i, shm::Slot& slot) const {
    if (!Tidy(client, a, slot)) return;
    Plan plan;
    if (BuildPlan(a, client.coarse_step_ns, descriptors, shape.name_count, &client.shapes, &plan) ==
            0 &&
        i < plan.count && plan.policy == shape.policy && plan.items[i].hash == hashes[i]) {
      WriteText(a, plan.items[i], plan.policy, IndexOf(a, slot));
    }
  }
};

// The hash of each bucket's name; their slots are on their way to the cache. False where a name is
// to be folded.
bool HashDirect(const Attachment& a, const Shape& shape, const sluice_descriptor_t* descriptors,
                uint64_t* hashes) {
  char ip[kIpBytes];
  const size_t count = shape.candidate_count;
  for (size_t i = 0; i < count; ++i) {
    const DirectRule& rule = shape.direct[i];
    const Text value = KeyValue(rule.key, ValueAt(descriptors, rule.key_at), ip);
    if (value.size > rule.plain_bytes) [[unlikely]] {
      return false;
    }
    hashes[i] = shm::HashValue(a.hash_key, value.view(), rule.hash_seed);
    TableOf(a).PrefetchFirst(hashes[i]);
  }
  return true;
}

[[gnu::noinline]] bool AdmitPlain(const DirectRequest& request, uint64_t now_ns) {
  Look looks[kMaxItems];
  return AdmitAll<false>(request, request.client, request.a, request.shape.candidate_count, now_ns,
                         looks);
}

[[gnu::noinline]] bool AdmitUnusual(const DirectRequest& request, uint64_t now_ns) {
  Look looks[kMaxItems];
  const size_t count = request.shape.candidate_count;
  return IsAnyShardDegraded(request.a)
             ? AdmitAll<true>(request, request.client, request.a, count, now_ns, looks)
             : AdmitLeasing(request, request.client, request.a, count, now_ns, looks);
}

}  // namespace

bool AdmitDirect(sluice_t& client, const Attachment& a, const Shape& shape,
                 const sluice_descriptor_t* descriptors) {
  uint64_t hashes[kMaxItems];
  if (!HashDirect(a, shape, descriptors, hashes)) return false;
  const uint64_t now_ns = Clock::Now(shape.coarse_serves);
  client.attacher.Step(now_ns);
  const DirectRequest request = {client, a, shape, descriptors, hashes};
  const bool is_unusual = IsAnyShardDegraded(a) || IsLeasing();
  return is_unusual ? AdmitUnusual(request, now_ns) : AdmitPlain(request, now_ns);
}

}  // namespace sluice::client
