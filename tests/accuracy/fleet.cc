#include "tests/accuracy/fleet.h"

#include <algorithm>
#include <utility>

#include "daemon/lease/session.h"

namespace sluice::accuracy {
namespace {

constexpr uint64_t kEpochUs = 1'700'000'000'000'000;
constexpr double kClockErrorMax = 500e-6;
constexpr double kCrashMeanNs = 0.5 * kSecondNs;
constexpr uint64_t kCrashedNs = 300 * kMilliNs;
constexpr uint64_t kFailoverNs = 5 * kSecondNs;
constexpr uint64_t kLostMaxNs = 500 * kMilliNs;
constexpr double kJumpMeanNs = 5.0 * kSecondNs;
constexpr uint64_t kBackMaxUs = 1'000'000;
constexpr uint64_t kOffsetMaxNs = 1'000 * kSecondNs;
// Redis stands still from the first to the second.
constexpr uint64_t kPausesNs[][2] = {{5 * kSecondNs, 6'500 * kMilliNs},
                                     {12 * kSecondNs, 17 * kSecondNs},
                                     {22 * kSecondNs, 23 * kSecondNs}};

Scenario WithSeed(Scenario scenario, uint64_t seed) {
  scenario.seed = seed;
  return scenario;
}

}  // namespace

Fleet::Fleet(const Scenario& scenario, Scheme scheme, uint64_t seed, std::string script)
    : scenario_(WithSeed(scenario, seed)),
      scheme_(scheme),
      backend_(scheme == Scheme::kApproximate ? Backend{"rl:4:{0}", std::move(script), false}
                                              : Backend{"rl:5:{0}", std::move(script), true}),
      random_(seed),
      network_(scenario_, random_.Fork()),
      terms_(*lease::MakeTerms(scenario.limit_per_s, 1'000'000, scenario.burst, scenario.wait_ns,
                               scheme == Scheme::kOverdraft ? lease::kSpareUs : 0)),
      redis_(seed),
      hosts_(scenario.hosts),
      judges_(scenario.keys, Judge(terms_)) {
  result_.bins.resize(scenario.duration_ns / kBinNs + 1);
  for (uint32_t i = 0; i < hosts_.size(); ++i) {
    hosts_[i].clock_rate = 1 + kClockErrorMax * (2 * random_.Unit() - 1);
    hosts_[i].clock_offset_ns = kOffsetMaxNs + random_.Below(kOffsetMaxNs);
    if (scenario_.late_ns != 0) hosts_[i].late = random_.Unit();
    Boot(i);
  }
}

uint64_t Fleet::LocalNs(const Host& host) const {
  return host.clock_offset_ns +
         static_cast<uint64_t>(static_cast<double>(now_ns_) * host.clock_rate);
}

uint64_t Fleet::TrueNs(const Host& host, uint64_t local_ns) const {
  if (local_ns <= host.clock_offset_ns) return 0;
  return static_cast<uint64_t>(static_cast<double>(local_ns - host.clock_offset_ns) /
                               host.clock_rate) +
         1;
}

void Fleet::Push(uint64_t at_ns, Kind kind, uint32_t host, std::unique_ptr<Message> message) {
  events_.push({at_ns, ++order_, kind, host, std::move(message)});
}

void Fleet::Boot(uint32_t index) {
  Host& host = hosts_[index];
  ++host.incarnation;
  host.dead = false;
  const uint64_t now_ns = LocalNs(host);
  if (host.member != nullptr && scenario_.adopt) {
    host.member->StartDaemon(now_ns);
  } else {
    const MemberOptions options{.scenario = scenario_,
                                .host = index,
                                .wire = this,
                                .number = index + host.incarnation * uint64_t{scenario_.hosts},
                                .random = random_.Fork()};
    host.member = scheme_ == Scheme::kApproximate
                      ? NewApproximateMember(options, now_ns)
                      : NewLeaseMember(options, terms_.spare_us, now_ns);
  }
  host.wake_ns = now_ns_ + 1;
  Push(host.wake_ns, Kind::kWake, index);
}

redis::Reply Fleet::Eval(std::vector<std::string>* args) {
  if (backend_.fenced) (*args)[lease::kPrimaryArg] = std::to_string(primary_);
  ++result_.executed;
  return redis_.Eval(backend_.script, backend_.key, *args);
}

// So long before the start that the bursts have come in behind the first fence.
void Fleet::StartFull() {
  if (scheme_ == Scheme::kApproximate) return;
  redis_.time_us = kEpochUs - (4 + scenario_.burst / scenario_.limit_per_s) * 1'000'000;
  for (uint32_t key = 0; key < scenario_.keys; ++key) {
    lease::Session session({0, key}, kSyncNs / 1000);
    const lease::Asked asked{"b" + std::to_string(key), terms_, lease::Ask{}};
    std::vector<std::string> args = session.Start({&asked, 1}, 0, 0).args;
    if (Eval(&args).is_error()) result_.fault = "the script fails";
  }
}

Result Fleet::Run() {
  StartFull();
  Arrivals arrivals(scenario_, random_.Fork());
  if (scenario_.crash || scenario_.adopt) {
    Push(Exponential(&random_, kCrashMeanNs), Kind::kCrash, 0);
  }
  if (scenario_.jump != Jump::kNone) Push(Exponential(&random_, kJumpMeanNs), Kind::kJump, 0);
  if (scenario_.failover) {
    Push(kFailoverNs - random_.Below(kLostMaxNs), Kind::kCopy, 0);
    Push(kFailoverNs, Kind::kFailover, 0);
  }
  for (Arrival next = arrivals.Next(); next.at_ns < scenario_.duration_ns && result_.fault.empty();
       next = arrivals.Next()) {
    HappenUntil(next.at_ns);
    now_ns_ = next.at_ns;
    Arrive(next);
  }
  // Who still waits is answered.
  const uint64_t answered_ns = scenario_.duration_ns + scenario_.wait_ns + kSecondNs;
  while (!waiting_.empty() && !events_.empty() && events_.top().at_ns <= answered_ns &&
         result_.fault.empty()) {
    HappenUntil(events_.top().at_ns);
  }
  return Sum();
}

void Fleet::HappenUntil(uint64_t at_ns) {
  while (!events_.empty() && events_.top().at_ns <= at_ns) {
    Event event = std::move(const_cast<Event&>(events_.top()));
    events_.pop();
    now_ns_ = event.at_ns;
    Happen(event);
  }
}

Result Fleet::Sum() {
  uint64_t perfect = 0;
  for (const Judge& judge : judges_) {
    result_.over_1s_percent = std::max(result_.over_1s_percent, judge.over_1s_percent());
    result_.over_10s_percent = std::max(result_.over_10s_percent, judge.over_10s_percent());
    result_.over_tokens = std::max(result_.over_tokens, judge.over_tokens());
    result_.admitted += judge.tokens();
    perfect += judge.perfect_tokens();
  }
  result_.used_percent = 100 * static_cast<double>(result_.admitted) /
                         static_cast<double>(std::max<uint64_t>(1, perfect));
  result_.calls_per_s_host = static_cast<double>(sent_) / static_cast<double>(scenario_.hosts) /
                             (static_cast<double>(scenario_.duration_ns) / 1e9);
  return result_;
}

void Fleet::Arrive(const Arrival& arrival) {
  Host& host = hosts_[arrival.host];
  if (host.dead && !scenario_.adopt) return;  // its clients are dead with it
  BinNow().asked += arrival.cost;
  if (IsJudged() && judges_[arrival.key].Ask(arrival.cost, now_ns_))
    BinNow().perfect += arrival.cost;
  const uint64_t ticket = ++tickets_;
  switch (host.member->Check(arrival.key, arrival.cost, ticket, LocalNs(host))) {
    case lease::Verdict::kAllow:
      Admit(arrival.key, arrival.cost);
      break;
    case lease::Verdict::kWait:
      waiting_[ticket] = {arrival.key, arrival.cost};
      break;
    case lease::Verdict::kDeny:
      break;
  }
  Poll(arrival.host);
}

void Fleet::Admit(uint32_t key, uint64_t cost) {
  BinNow().admitted += cost;
  if (IsJudged()) judges_[key].Admit(cost, now_ns_);
}

void Fleet::Poll(uint32_t index) {
  Host& host = hosts_[index];
  const uint64_t local_ns = LocalNs(host);
  host.member->Poll(local_ns);
  for (const lease::Lease::Answer& answer : host.member->Answered(local_ns)) {
    const auto found = waiting_.find(answer.ticket);
    if (found == waiting_.end()) {
      result_.fault = "a caller was answered twice";
      return;
    }
    if (answer.allowed) Admit(found->second.key, found->second.cost);
    waiting_.erase(found);
  }
  if (!host.member->fault().empty()) result_.fault = host.member->fault();
  const uint64_t until_ns = host.member->NextNs();
  if (until_ns == UINT64_MAX) return;
  const uint64_t next_ns = std::max(now_ns_ + 1000, TrueNs(host, until_ns));
  if (next_ns < host.wake_ns || host.wake_ns <= now_ns_) {
    host.wake_ns = next_ns;
    Push(next_ns, Kind::kWake, index);
  }
}

void Fleet::Send(uint32_t host, const Message& message) {
  if (message.args != nullptr) ++sent_;
  auto copy = std::make_unique<Message>(message);
  copy->incarnation = hosts_[host].incarnation;
  Transmit(Kind::kRequest, Way::kThere, host, std::move(copy));
}

void Fleet::Transmit(Kind kind, Way way, uint32_t host, std::unique_ptr<Message> message) {
  const std::optional<uint64_t> at_ns = network_.ArrivesNs(host, way, now_ns_);
  if (at_ns) Push(*at_ns, kind, host, std::move(message));
}

// Now, or when the host reaches Redis again.
uint64_t Fleet::RedisBackNs(const Host& host) const {
  uint64_t back_ns = std::max(now_ns_, down_until_ns_);
  if (!scenario_.pause) return back_ns;
  const auto late_ns = static_cast<uint64_t>(host.late * static_cast<double>(scenario_.late_ns));
  for (const auto& pause : kPausesNs) {
    if (back_ns >= pause[0] && back_ns < pause[1] + late_ns) back_ns = pause[1] + late_ns;
  }
  return back_ns;
}

void Fleet::Execute(uint32_t index, std::unique_ptr<Message> message) {
  redis_.time_us =
      static_cast<uint64_t>(static_cast<int64_t>(kEpochUs + now_ns_ / 1000) + jumped_us_);
  if (message->args != nullptr) {
    message->reply = Eval(message->args.get());
    if (message->reply.is_error()) result_.fault = message->reply.text;
  }
  Transmit(Kind::kReply, Way::kBack, index, std::move(message));
}

void Fleet::Receive(uint32_t index, const Message& message) {
  Host& host = hosts_[index];
  if (host.dead || host.incarnation != message.incarnation) return;
  host.member->OnReply(message, LocalNs(host));
  Poll(index);
}

void Fleet::FailOver() {
  redis_.data = copy_;
  ++primary_;
  down_until_ns_ = now_ns_ + 200 * kMilliNs;
  const uint64_t next_ns = now_ns_ + kFailoverNs;
  Push(next_ns - random_.Below(kLostMaxNs), Kind::kCopy, 0);
  Push(next_ns, Kind::kFailover, 0);
}

// A host, or where segments are adopted its daemon alone.
void Fleet::Crash() {
  const uint32_t victim = static_cast<uint32_t>(random_.Below(hosts_.size()));
  Host& host = hosts_[victim];
  if (!host.dead) {
    host.dead = true;
    host.member->KillDaemon(LocalNs(host));
    Push(now_ns_ + kCrashedNs, Kind::kReturn, victim);
  }
  Push(now_ns_ + Exponential(&random_, kCrashMeanNs), Kind::kCrash, 0);
}

void Fleet::JumpClock() {
  jumped_us_ += scenario_.jump == Jump::kBack ? -static_cast<int64_t>(random_.Below(kBackMaxUs))
                                              : static_cast<int64_t>(kForwardNs / 1000);
  if (scenario_.jump == Jump::kForward) result_.set_forward_ns += kForwardNs;
  Push(now_ns_ + Exponential(&random_, kJumpMeanNs), Kind::kJump, 0);
}

void Fleet::Happen(Event& event) {
  Host& host = hosts_[event.host];
  switch (event.kind) {
    case Kind::kWake:
      if (host.wake_ns != event.at_ns) return;
      host.wake_ns = UINT64_MAX;
      if (!host.dead || scenario_.adopt) Poll(event.host);
      return;
    case Kind::kRequest:
      if (const uint64_t back_ns = RedisBackNs(host); back_ns > now_ns_) {
        Push(back_ns, Kind::kRequest, event.host, std::move(event.message));
        return;
      }
      if (scenario_.service_ns != 0) {  // one after another
        busy_until_ns_ = std::max(busy_until_ns_, now_ns_) +
                         scenario_.service_ns * std::max<uint64_t>(1, event.message->buckets);
        Push(busy_until_ns_, Kind::kRun, event.host, std::move(event.message));
        return;
      }
      Execute(event.host, std::move(event.message));
      return;
    case Kind::kRun:
      Execute(event.host, std::move(event.message));
      return;
    case Kind::kReply:
      Receive(event.host, *event.message);
      return;
    case Kind::kCrash:
      Crash();
      return;
    case Kind::kReturn:
      Boot(event.host);
      return;
    case Kind::kCopy:
      copy_ = redis_.data;
      return;
    case Kind::kFailover:
      FailOver();
      return;
    case Kind::kJump:
      JumpClock();
      return;
  }
}

}  // namespace sluice::accuracy
