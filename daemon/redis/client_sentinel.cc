// Where the primary is, as sentinels say: the map of a cluster of one.

#include <utility>

#include "absl/strings/str_cat.h"
#include "acl_lines.h"
#include "daemon/redis/client_core.h"

namespace sluice::redis {

// SENTINEL MASTER has been answered.
void ClusterClient::Impl::TakeMaster(const Reply& reply) {
  slots_request_ = 0;
  const std::string subject = ToString(seeds_[source_.index]);
  if (reply.is_error()) return MasterRefused(subject, reply.text);
  const absl::StatusOr<SentinelReply> master = ParseSentinelMaster(reply);
  if (!master.ok()) {
    return SourceFailed(
        {FailureKind::kProtocol, absl::StrCat(subject, ": ", master.status().message()),
         "check redis.addresses: something else than a sentinel listens there"},
        AlarmKind::kGarbage);
  }
  ClearSeedAlarms(subject);
  // A sentinel that slept through a failover still names the former primary.
  if (master->epoch < sentinel_epoch_) {
    if (!stale_master_ || stale_master_->epoch < master->epoch) stale_master_ = *master;
    return SourceFailed({FailureKind::kRetryLater,
                         absl::StrCat(subject, ": knows less than another sentinel did"), ""},
                        std::nullopt);
  }
  ObeySentinel(*master);
  FinishRefresh(/*taken=*/true, Now());
}

void ClusterClient::Impl::MasterRefused(const std::string& subject, const std::string& line) {
  Failure failure{FailureKind::kDenied, absl::StrCat(subject, ": ", Printable(line)), ""};
  if (IsUnknownMaster(line)) {
    failure.message = absl::StrCat("no sentinel that answers knows a primary named \"",
                                   options_.sentinel.master, "\"; asked last: ", subject);
    failure.mend =
        "write the name that sentinel.conf has (sentinel monitor NAME ...) in "
        "redis.sentinel.master";
    unknown_master_ = failure;
    return SourceFailed(failure, std::nullopt);
  }
  ErrorVerdict verdict = JudgeError(line);
  if (verdict.what == ErrorClass::kRetryLater) failure.kind = FailureKind::kRetryLater;
  failure.mend = std::move(verdict.mend);
  SourceFailed(failure, verdict.alarm);
}

// What was told of a seed in general, in terms of sentinels.
void ClusterClient::Impl::ForSentinels(Failure* failure, std::optional<AlarmKind>* alarm) const {
  if (*alarm == AlarmKind::kWrongPassword) {
    failure->mend =
        "correct redis.sentinel.username and its password: sentinels have users of their own";
  } else if (*alarm == AlarmKind::kMissingPermission) {
    failure->mend = absl::StrCat("give the user its rights on sentinels: ACL SETUSER ",
                                 std::string(kSentinelAcl));
  } else if (*alarm == AlarmKind::kUnsupported) {
    *alarm = AlarmKind::kWrongMode;
    failure->mend =
        "it is no sentinel: name the sentinels in redis.addresses (port 26379), or set "
        "redis.mode: single";
  }
}

void ClusterClient::Impl::ObeySentinel(const SentinelReply& master) {
  sentinel_epoch_ = master.epoch;
  if (map_.SetOwner(master.primary)) FitNodesToMap();
}

// The refresh has ended: with an answer, or with what every sentinel lacked.
void ClusterClient::Impl::FinishSentinels(bool taken) {
  const std::optional<SentinelReply> stale = std::exchange(stale_master_, std::nullopt);
  const std::optional<Failure> unknown = std::exchange(unknown_master_, std::nullopt);
  if (taken) return alarms_.Clear(AlarmKind::kNoMaster, "redis");
  scout_.Close();
  // All of them know less than was known: they were set up anew (or those that know more are gone).
  // That is believed only where it can do no harm.
  const PrimaryIndex owner = map_.Owner(0);
  if (stale && (owner == kNoPrimary || !nodes_[owner]->connection.ready())) ObeySentinel(*stale);
  if (unknown && !stale) {
    alarms_.Raise(AlarmKind::kNoMaster, "redis", unknown->message, unknown->mend);
  }
}

}  // namespace sluice::redis
