// What the rows check: segments served by a thread of this process through the same socket and
// handshake as sluiced's, with Redis said to be there and all shards healthy (what checks meet in
// production), and a client on them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "bench/floors.h"
#include "client/include/sluice.h"
#include "tests/support/served_segments.h"

namespace sluice::bench {

// A key as long as a UUID is.
inline constexpr char kKey[] = "6f9619ff-8b86-d011-b42d-00c04fc964ff";
inline constexpr size_t kKeyBytes = sizeof kKey - 1;
static_assert(kKeyBytes == 36);

// Ends the process when `ok` is false.
void Require(bool ok, const char* what);

// A client of the segments served in that folder, attached.
sluice_t* OpenClient(const std::string& runtime_dir, const char* label);

// The memory and numbers of the rule `label` of those segments.
FloorRule FloorOf(test::ServedSegments& served, const char* label);

// Used by one thread.
class Stage {
 public:
  // For the life of the process: with a million cold keys, and with eight. Twice as many slots, as
  // operators are told to plan.
  static Stage& Get();
  static Stage& Large();
  // With a million cold keys and room for three million buckets more.
  static Stage& Wide();

  sluice_t* client() const { return client_; }
  // A handle on the one descriptor `name` with kKey; a bound rule. For the life of the process.
  sluice_handle_t* Handle(const char* name) const;
  // The same with `value`.
  sluice_handle_t* Handle(const char* name, std::string_view value) const;
  sluice_rule_t* Rule(const char* label) const;
  // Lends the bucket of the rule `label` and kKey, which has been asked for once, as much as it can
  // hold: credits of a strict rule, places of one of requests in flight.
  void Lend(const char* label);
  FloorRule Floor(const char* label) { return FloorOf(served_, label); }

  // `n` keys of kKeyBytes each, in random order; each call goes on where the last one ended. The
  // first call makes all keys and their buckets.
  const char* NextCold(uint64_t n);

  // From now on no thread but the caller's works here; clients attached so far go on.
  void Freeze() { served_.StopServing(); }

 private:
  Stage(uint64_t cold_keys, uint64_t slots);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  void MakeColdKeys();

  const uint64_t cold_count_;
  test::ServedSegments served_;
  sluice_t* client_ = nullptr;
  std::string cold_keys_;
  uint64_t cold_at_ = 0;
};

}  // namespace sluice::bench
