// The JSON of the admin socket. Fields are only ever added; ids and words do not change.
//
// /status  version, pid, uptime_s, adopted, incarnation, generation (hex), mode (the worst of the
//          shards'), policy {seq, rules, version_hash (hex)}, config {path, ok, reloads,
//          failed_reloads, problems[], warnings[], pending},
//          shards {count, healthy, stale, emergency, troubled[{shard, mode, since_s}]},
//          redis: null, or {transport, unreconciled_age_s, batches, batched_buckets, resends,
//            requeues, script_errors, redirects, map_refreshes, primaries[{address, connected,
//            breaker, shards, p50_us, p99_us, calls, failures, last_error}]},
//          leases: null without redis, or {buckets, held_tokens, calls, called_buckets, resends,
//            lent_tokens, returned_tokens, lost_tokens},
//          table {capacity, live, load, claims, evictions, abandoned_tokens, overflows, gave_up,
//            leases, heals, duplicates, repairs},
//          clients {attached, attached_total, refused_total, same_user, list[{pid, uid, label,
//            since_s, same_user}]}, alarms[{id, text, mend, since_s}]
//          chaos: null, or {text, left_s}
// /chaos   a line a second: chaos, left_s, mode, emergency (shards), unreconciled_age_s, and since
// it
//          began calls (failed or held back) and degraded (tokens decided by when_degraded)
// /rules   policy_seq, rules[{label, name, tier, limit, period_ns, burst, cost, algorithm,
//          max_delay_ns, match[{descriptor, op, values[]}], key[], consistency, wait_ns, shadow,
//          when_degraded {mode, factor, for_ns, then, then_factor, alert}, allowed, denied,
//          degraded, penalty: null, or {after, within_ns, for_ns, deny_costs}, bans, candidate:
//          null, or {label, limit, period_ns, burst, cost, max_delay_ns, would_allow, would_deny}}]
#pragma once

#include <nlohmann/json.hpp>

#include "daemon/admin/status.h"

namespace sluice::admin {

nlohmann::ordered_json StatusJson(const DaemonStatus& status);
// `before`: as it began.
nlohmann::ordered_json ChaosLine(const Chaos& chaos, const DaemonStatus& before,
                                 const DaemonStatus& status);
// `engine` gives the counts.
nlohmann::ordered_json RulesJson(const RulesInForce& in_force, const EngineSnapshot& engine);

}  // namespace sluice::admin
