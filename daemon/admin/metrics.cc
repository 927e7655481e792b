#include "daemon/admin/metrics.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "shm/layout.h"

namespace sluice::admin {
namespace {

constexpr MetricType kCounter = MetricType::kCounter;
constexpr MetricType kGauge = MetricType::kGauge;
constexpr MetricType kHistogram = MetricType::kHistogram;

constexpr MetricSpec kMetrics[] = {
    {"sluice_build_info", kGauge, "Always 1; the version is its label.", "version"},
    {"sluice_uptime_seconds", kGauge, "Time since this daemon process started.", ""},
    {"sluice_incarnation", kGauge, "How many daemon processes these segments have had.", ""},
    {"sluice_policy_seq", kGauge, "Rises with each change of the rules in force.", ""},
    {"sluice_rules", kGauge, "Compiled rules in force; each tier counts as one.", ""},
    {"sluice_config_ok", kGauge, "1: the configuration file is in force; 0: it is bad.", ""},
    {"sluice_config_reloads_total", kCounter, "Reloads of the configuration.", "result"},
    {"sluice_checks_total", kCounter,
     "Tokens that checks asked for, per rule: allowed or denied. A check of cost 1 is one token.",
     "rule,result"},
    {"sluice_class_denied_total", kCounter,
     "Denied requests of each class of a rule with `priority`, over all its tiers. Classes that "
     "may "
     "use equal parts count as the first of them.",
     "rule,class"},
    {"sluice_degraded_checks_total", kCounter,
     "Tokens decided by a rule's when_degraded while its shard was in emergency.", "rule"},
    {"sluice_near_limit_total", kCounter,
     "Buckets that came near their limit (the rule's `near` part of it used), each counted once in "
     "a "
     "period. Not of rules whose limit is lent.",
     "rule"},
    {"sluice_bans_total", kCounter,
     "Bans that this host's denials have begun, by rules with a `penalty`; over all hosts each ban "
     "counts once.",
     "rule"},
    {"sluice_unreconciled_age_seconds", kGauge,
     "Age of the oldest use that Redis does not know yet; 0 without Redis.", ""},
    {"sluice_shard_mode", kGauge, "Per virtual shard: 0 healthy, 1 stale, 2 emergency.", "shard"},
    {"sluice_shards", kGauge, "Virtual shards by mode.", "mode"},
    {"sluice_emergency", kGauge, "Virtual shards in emergency.", ""},
    {"sluice_transport_info", kGauge, "Always 1 with Redis; how its sockets are driven.",
     "transport"},
    {"sluice_redis_connected", kGauge, "1: connected to this primary.", "primary"},
    {"sluice_redis_breaker", kGauge, "1 for the state that this primary's breaker is in.",
     "primary,state"},
    {"sluice_redis_call_seconds", kHistogram, "Latency of script calls.", "primary"},
    {"sluice_redis_failures_total", kCounter, "Calls without a usable reply.", "primary"},
    {"sluice_redis_batches_total", kCounter, "Batches sent; resends not counted.", ""},
    {"sluice_redis_batched_buckets_total", kCounter, "Buckets in those batches.", ""},
    {"sluice_redis_resends_total", kCounter, "Batches sent again for want of an answer.", ""},
    {"sluice_redis_requeues_total", kCounter,
     "Batches counted again because a failover had lost them.", ""},
    {"sluice_redis_script_errors_total", kCounter, "Scripts that ended with an error.", ""},
    {"sluice_redis_redirects_total", kCounter, "MOVED and ASK answers.", ""},
    {"sluice_redis_map_refreshes_total", kCounter, "Maps of the cluster taken over.", ""},
    {"sluice_lease_buckets", kGauge, "Buckets of strict rules that are known.", ""},
    {"sluice_lease_held_tokens", kGauge, "Tokens on loan that this host may still spend.", ""},
    {"sluice_lease_calls_total", kCounter,
     "Calls that ask for tokens of strict rules; resends not counted.", ""},
    {"sluice_lease_called_buckets_total", kCounter, "Buckets in those calls.", ""},
    {"sluice_lease_resends_total", kCounter, "Those calls sent again for want of an answer.", ""},
    {"sluice_lease_lent_tokens_total", kCounter, "Tokens lent to this host.", ""},
    {"sluice_lease_returned_tokens_total", kCounter, "Tokens given back, unspent.", ""},
    {"sluice_lease_lost_tokens_total", kCounter,
     "Tokens given up, unspent: their slot was reused, or written by nobody in order.", ""},
    {"sluice_chaos", kGauge, "1 while an operator injects faults on purpose.", ""},
    {"sluice_chaos_calls_total", kCounter, "Calls that chaos failed or held back.", ""},
    {"sluice_harvested_tokens_total", kCounter, "Use taken from the buckets.", ""},
    {"sluice_table_slots", kGauge, "Capacity of the bucket table.", ""},
    {"sluice_table_live_slots", kGauge, "Slots that hold a bucket.", ""},
    {"sluice_table_load_ratio", kGauge, "Live slots / slots; above 0.55 keys find no slot.", ""},
    {"sluice_table_claims_total", kCounter, "Slots taken for a new bucket.", ""},
    {"sluice_table_evictions_total", kCounter, "Slots taken from an expired bucket.", ""},
    {"sluice_table_abandoned_tokens_total", kCounter, "Use lost when its slot was reused.", ""},
    {"sluice_table_overflows_total", kCounter,
     "Checks answered by a rule's overflow bucket: no slot was free near the key.", ""},
    {"sluice_table_gave_up_total", kCounter,
     "Checks answered by the rule's fail mode: the slot kept changing.", ""},
    {"sluice_table_leases_total", kCounter, "Leases taken by threads that met others at a key.",
     ""},
    {"sluice_table_heals_total", kCounter, "Outdated or wild words put right.", ""},
    {"sluice_table_duplicates_total", kCounter, "Slots emptied: their key stood in two.", ""},
    {"sluice_table_repairs_total", kCounter, "Impossible words put right.", ""},
    {"sluice_clients_attached", kGauge, "Client processes attached now.", ""},
    {"sluice_clients_same_user", kGauge, "Of those, such as run as the daemon's user.", ""},
    {"sluice_clients_attaches_total", kCounter, "Attachments since the daemon started.", ""},
    {"sluice_clients_refused_total", kCounter, "Connections that were not attached.", ""},
    {"sluice_alarm", kGauge, "1 for each alarm that stands; see GET /status for its mend.", "id"},
};

const char* TypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      return "histogram";
  }
  return "untyped";
}

std::string EscapeLabel(const std::string& value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text.push_back('\\');
    if (c == '\n') {
      text.append("\\n");
    } else {
      text.push_back(c);
    }
  }
  return text;
}

double Seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

// Writes samples in the order of the table; a name that is not in it ends the program, as the
// first test that renders a page will notice.
class Page {
 public:
  // Begins a metric; what follows belongs to it.
  Page& Of(const std::string& name) {
    for (const MetricSpec& spec : kMetrics) {
      if (spec.name != name) continue;
      spec_ = &spec;
      labels_ = absl::StrSplit(spec.labels, ',', absl::SkipEmpty());
      absl::StrAppend(&text_, "# HELP ", name, " ", spec.help, "\n# TYPE ", name, " ",
                      TypeName(spec.type), "\n");
      return *this;
    }
    std::fprintf(stderr, "sluiced: no metric %s\n", name.c_str());
    std::abort();
  }

  // `values` of the labels, in the order of the table.
  void Add(const std::vector<std::string>& values, double value, const std::string& suffix = "",
           const std::string& le = "") {
    std::string pairs;
    for (size_t i = 0; i < values.size() && i < labels_.size(); ++i) {
      absl::StrAppend(&pairs, pairs.empty() ? "" : ",", labels_[i], "=\"", EscapeLabel(values[i]),
                      "\"");
    }
    if (!le.empty()) absl::StrAppend(&pairs, pairs.empty() ? "" : ",", "le=\"", le, "\"");
    absl::StrAppend(&text_, spec_->name, suffix);
    if (!pairs.empty()) absl::StrAppend(&text_, "{", pairs, "}");
    absl::StrAppendFormat(&text_, " %.17g\n", value);
  }

  void One(const std::string& name, double value) { Of(name).Add({}, value); }
  void Count(const std::string& name, uint64_t value) { One(name, static_cast<double>(value)); }

  void Latency(const std::string& primary, const redis::LatencySnapshot& latency) {
    uint64_t sum = 0;
    for (size_t i = 0; i < redis::kLatencyBoundsUs.size(); ++i) {
      sum += latency.counts[i];
      const double bound = static_cast<double>(redis::kLatencyBoundsUs[i]) * 1e-6;
      Add({primary}, static_cast<double>(sum), "_bucket", absl::StrFormat("%g", bound));
    }
    sum += latency.counts.back();
    Add({primary}, static_cast<double>(sum), "_bucket", "+Inf");
    Add({primary}, static_cast<double>(latency.sum_us) * 1e-6, "_sum");
    Add({primary}, static_cast<double>(sum), "_count");
  }

  std::string Take() { return std::move(text_); }

 private:
  const MetricSpec* spec_ = nullptr;
  std::vector<std::string> labels_;
  std::string text_;
};

void AddShards(const DaemonStatus& status, Page* page) {
  uint64_t by_mode[3] = {};
  page->Of("sluice_shard_mode");
  for (size_t i = 0; i < status.shards.size(); ++i) {
    const auto mode = static_cast<uint32_t>(shm::shard_state::Mode(status.shards[i]));
    ++by_mode[mode];
    page->Add({absl::StrCat(i)}, mode);
  }
  page->Of("sluice_shards");
  page->Add({"healthy"}, static_cast<double>(by_mode[0]));
  page->Add({"stale"}, static_cast<double>(by_mode[1]));
  page->Add({"emergency"}, static_cast<double>(by_mode[2]));
  page->Count("sluice_emergency", by_mode[2]);
}

void AddRules(const EngineSnapshot& engine, Page* page) {
  page->Of("sluice_checks_total");
  for (const RuleCounts& rule : engine.rules) {
    page->Add({rule.label, "allowed"}, static_cast<double>(rule.allowed));
    page->Add({rule.label, "denied"}, static_cast<double>(rule.denied));
  }
  page->Of("sluice_class_denied_total");
  for (const ClassCounts& c : engine.classes) {
    page->Add({c.rule, c.value}, static_cast<double>(c.denied));
  }
  page->Of("sluice_degraded_checks_total");
  for (const RuleCounts& rule : engine.rules) {
    page->Add({rule.label}, static_cast<double>(rule.degraded));
  }
  page->Of("sluice_near_limit_total");
  for (const RuleCounts& rule : engine.rules) {
    page->Add({rule.label}, static_cast<double>(rule.near_limit));
  }
  page->Of("sluice_bans_total");
  for (const RuleCounts& rule : engine.rules) {
    page->Add({rule.label}, static_cast<double>(rule.bans));
  }
}

void AddRedis(const EngineSnapshot& engine, Page* page) {
  page->Of("sluice_transport_info");
  if (engine.has_redis) page->Add({engine.transport}, 1);
  page->Of("sluice_redis_connected");
  for (const PrimaryStatus& p : engine.primaries) page->Add({p.address}, p.connected ? 1 : 0);
  page->Of("sluice_redis_breaker");
  for (const PrimaryStatus& p : engine.primaries) {
    for (const char* state : {"closed", "half-open", "open"}) {
      page->Add({p.address, state}, p.breaker == state ? 1 : 0);
    }
  }
  page->Of("sluice_redis_call_seconds");
  for (const PrimaryStatus& p : engine.primaries) page->Latency(p.address, p.calls);
  page->Of("sluice_redis_failures_total");
  for (const PrimaryStatus& p : engine.primaries) {
    page->Add({p.address}, static_cast<double>(p.failures));
  }
  page->Count("sluice_redis_batches_total", engine.batches);
  page->Count("sluice_redis_batched_buckets_total", engine.batched_buckets);
  page->Count("sluice_redis_resends_total", engine.resends);
  page->Count("sluice_redis_requeues_total", engine.requeues);
  page->Count("sluice_redis_script_errors_total", engine.script_errors);
  page->Count("sluice_redis_redirects_total", engine.redirects);
  page->Count("sluice_redis_map_refreshes_total", engine.map_refreshes);
}

void AddLeases(const LeaseCounts& leases, Page* page) {
  page->Count("sluice_lease_buckets", leases.buckets);
  page->Count("sluice_lease_held_tokens", leases.held_tokens);
  page->Count("sluice_lease_calls_total", leases.calls);
  page->Count("sluice_lease_called_buckets_total", leases.called_buckets);
  page->Count("sluice_lease_resends_total", leases.resends);
  page->Count("sluice_lease_lent_tokens_total", leases.lent_tokens);
  page->Count("sluice_lease_returned_tokens_total", leases.returned_tokens);
  page->Count("sluice_lease_lost_tokens_total", leases.lost_tokens);
}

void AddTable(const DaemonStatus& status, Page* page) {
  const auto count = [&](shm::Counter counter) {
    const size_t i = static_cast<size_t>(counter);
    return i < status.counters.size() ? status.counters[i] : 0;
  };
  page->Count("sluice_chaos", status.chaos.token != 0 ? 1 : 0);
  page->Count("sluice_chaos_calls_total", status.engine.chaos_calls);
  page->Count("sluice_harvested_tokens_total", status.engine.harvested_tokens);
  page->Count("sluice_table_slots", status.capacity);
  page->Count("sluice_table_live_slots", status.engine.live_buckets);
  page->One("sluice_table_load_ratio",
            static_cast<double>(status.engine.live_buckets) /
                static_cast<double>(std::max<uint64_t>(status.capacity, 1)));
  page->Count("sluice_table_claims_total", count(shm::Counter::kClaims));
  page->Count("sluice_table_evictions_total", count(shm::Counter::kEvictions));
  page->Count("sluice_table_abandoned_tokens_total", count(shm::Counter::kAbandonedUse));
  page->Count("sluice_table_overflows_total", count(shm::Counter::kOverflows));
  page->Count("sluice_table_gave_up_total", count(shm::Counter::kGaveUp));
  page->Count("sluice_table_leases_total", count(shm::Counter::kLeases));
  page->Count("sluice_table_heals_total", count(shm::Counter::kHeals));
  page->Count("sluice_table_duplicates_total", count(shm::Counter::kDuplicates));
  page->Count("sluice_table_repairs_total", count(shm::Counter::kRepairs));
}

}  // namespace

absl::Span<const MetricSpec> AllMetrics() { return kMetrics; }

std::string RenderMetrics(const DaemonStatus& status) {
  Page page;
  page.Of("sluice_build_info").Add({status.version}, 1);
  page.One("sluice_uptime_seconds", Seconds(status.now_ns - status.started_ns));
  page.Count("sluice_incarnation", status.incarnation);
  page.Count("sluice_policy_seq", status.policy_seq);
  page.Count("sluice_rules", status.rule_count);
  page.One("sluice_config_ok", status.config.ok ? 1 : 0);
  page.Of("sluice_config_reloads_total");
  page.Add({"ok"}, static_cast<double>(status.config.reloads));
  page.Add({"refused"}, static_cast<double>(status.config.failed_reloads));
  AddRules(status.engine, &page);
  page.One("sluice_unreconciled_age_seconds", Seconds(status.engine.unreconciled_age_ns));
  AddShards(status, &page);
  AddRedis(status.engine, &page);
  AddLeases(status.engine.leases, &page);
  AddTable(status, &page);
  page.Count("sluice_clients_attached", status.clients.attached);
  page.Count("sluice_clients_same_user", status.clients.same_user);
  page.Count("sluice_clients_attaches_total", status.clients.attached_total);
  page.Count("sluice_clients_refused_total", status.clients.refused_total);
  page.Of("sluice_alarm");
  for (const Alarm& alarm : status.alarms) page.Add({alarm.id}, 1);
  return page.Take();
}

std::string MetricsReference() {
  std::string text =
      "# Metrics\n\n"
      "`GET /metrics` on the admin socket answers in the Prometheus text format:\n\n"
      "    curl --unix-socket /run/sluice/admin.sock http://localhost/metrics\n\n"
      "This page is made from the table in `daemon/admin/metrics.cc` by\n"
      "`sluiced --print-metrics-reference`. Counters start at 0 with each daemon process, but for\n"
      "`sluice_table_*_total`, which live as long as the segments.\n\n"
      "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n";
  for (const MetricSpec& spec : kMetrics) {
    absl::StrAppend(&text, "| `", spec.name, "` | ", TypeName(spec.type), " | ",
                    absl::StrReplaceAll(spec.labels, {{",", ", "}}), " | ", spec.help, " |\n");
  }
  return text;
}

}  // namespace sluice::admin
