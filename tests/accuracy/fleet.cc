#include "tests/accuracy/fleet.h"

#include <algorithm>
#include <utility>

namespace sluice::accuracy {
namespace {

constexpr uint64_t kSyncNs = 50 * kMilliNs;
constexpr uint64_t kEpochUs = 1'700'000'000'000'000;
constexpr double kClockErrorMax = 500e-6;
constexpr double kCrashMeanNs = 0.5 * kSecondNs;
constexpr uint64_t kCrashedNs = 300 * kMilliNs;
constexpr double kLateMeanNs = 100.0 * kMilliNs;
constexpr uint64_t kFailoverNs = 5 * kSecondNs;
constexpr uint64_t kLostMaxNs = 500 * kMilliNs;
constexpr char kKey[] = "rl:5:{0}";
constexpr char kField[] = "bucket";
// Redis stands still from the first to the second.
constexpr uint64_t kPausesNs[][2] = {{5 * kSecondNs, 6'500 * kMilliNs},
                                     {12 * kSecondNs, 17 * kSecondNs},
                                     {22 * kSecondNs, 23 * kSecondNs}};

}  // namespace

Fleet::Fleet(const Scenario& scenario, uint64_t seed, std::string script)
    : scenario_(scenario),
      script_(std::move(script)),
      random_(seed),
      terms_(*lease::MakeTerms(scenario.limit_per_s, 1'000'000, scenario.burst, scenario.wait_ns)),
      redis_(seed),
      hosts_(scenario.hosts),
      perfect_(terms_),
      shadow_(terms_) {
  for (Host& host : hosts_) {
    host.clock_rate = 1 + kClockErrorMax * (2 * random_.Unit() - 1);
    host.clock_offset_ns = random_.Below(1'000 * kSecondNs);
    Boot(host);
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

void Fleet::Boot(Host& host) {
  ++host.incarnation;
  host.dead = false;
  host.lease.emplace(lease::Lease::Options{terms_, kSyncNs});
  host.session.emplace(lease::Instance{random_.Next(), random_.Next()}, kSyncNs / 1000);
}

redis::Reply Fleet::Eval(std::vector<std::string>* args) {
  (*args)[lease::kPrimaryArg] = std::to_string(primary_);
  ++result_.executed;
  return redis_.Eval(script_, kKey, *args);
}

// So long before the start that the burst has come in behind the first fence.
void Fleet::StartFull() {
  lease::Session session({0, 0}, kSyncNs / 1000);
  const lease::Asked asked{kField, terms_, lease::Ask{}};
  std::vector<std::string> args = session.Start({&asked, 1}, 0, 0).args;
  redis_.time_us = kEpochUs - (4 + scenario_.burst / scenario_.limit_per_s) * 1'000'000;
  if (Eval(&args).is_error()) result_.fault = "the script fails";
}

Result Fleet::Run() {
  StartFull();
  Arrivals arrivals(scenario_, random_.Fork());
  if (scenario_.crash) Push(Exponential(&random_, kCrashMeanNs), Kind::kCrash, 0);
  if (scenario_.failover) {
    Push(kFailoverNs - random_.Below(kLostMaxNs), Kind::kCopy, 0);
    Push(kFailoverNs, Kind::kFailover, 0);
  }
  for (Arrival next = arrivals.Next(); next.at_ns < scenario_.duration_ns && result_.fault.empty();
       next = arrivals.Next()) {
    while (!events_.empty() && events_.top().at_ns <= next.at_ns) {
      Event event = std::move(const_cast<Event&>(events_.top()));
      events_.pop();
      now_ns_ = event.at_ns;
      Happen(event);
    }
    now_ns_ = next.at_ns;
    Arrive(next);
  }
  result_.over_1s_percent = second_.over_percent(terms_);
  result_.over_10s_percent = ten_seconds_.over_percent(terms_);
  result_.over_tokens = shadow_.over_tokens();
  result_.used_percent = 100 * static_cast<double>(result_.admitted) /
                         static_cast<double>(std::max<uint64_t>(1, perfect_admitted_));
  result_.calls_per_s_host = static_cast<double>(sent_) / static_cast<double>(scenario_.hosts) /
                             (static_cast<double>(scenario_.duration_ns) / 1e9);
  return result_;
}

void Fleet::Arrive(const Arrival& arrival) {
  Host& host = hosts_[arrival.host];
  if (host.dead) return;  // its clients are dead with it
  if (perfect_.Take(arrival.cost, now_ns_)) perfect_admitted_ += arrival.cost;
  const uint64_t ticket = ++tickets_;
  switch (host.lease->Check(arrival.cost, LocalNs(host), ticket)) {
    case lease::Verdict::kAllow:
      Admit(arrival.cost);
      break;
    case lease::Verdict::kWait:
      waiting_[ticket] = arrival.cost;
      break;
    case lease::Verdict::kDeny:
      break;
  }
  Poll(arrival.host);
}

void Fleet::Admit(uint64_t cost) {
  result_.admitted += cost;
  shadow_.Force(cost, now_ns_);
  second_.Add(cost, now_ns_);
  ten_seconds_.Add(cost, now_ns_);
}

void Fleet::Poll(uint32_t index) {
  Host& host = hosts_[index];
  const uint64_t now_ns = LocalNs(host);
  if (host.session->Resend(now_ns)) Send(index);
  if (host.lease->Tick(now_ns, host.session->rtt(), random_.Unit())) {
    const lease::Asked asked{kField, terms_,
                             host.lease->Freeze(now_ns, host.session->rtt(), random_.Unit())};
    host.session->Start({&asked, 1}, 0, now_ns);
    Send(index);
  }
  for (const lease::Lease::Answer& answer : host.lease->Answered(now_ns)) {
    const auto found = waiting_.find(answer.ticket);
    if (found == waiting_.end()) {
      result_.fault = "a caller was answered twice";
      return;
    }
    if (answer.allowed) Admit(found->second);
    waiting_.erase(found);
  }
  const uint64_t next_ns = std::max(
      now_ns_ + 1000, TrueNs(host, std::min({host.lease->NextTickNs(), host.session->NextResendNs(),
                                             host.lease->NextDeadlineNs() - 1}) +
                                       1));
  if (next_ns < host.wake_ns || host.wake_ns <= now_ns_) {
    host.wake_ns = next_ns;
    Push(next_ns, Kind::kWake, index);
  }
}

void Fleet::Send(uint32_t index) {
  ++sent_;
  const Host& host = hosts_[index];
  const lease::Call& call = *host.session->call();
  auto message = std::make_unique<Message>();
  message->incarnation = host.incarnation;
  message->seq = call.seq;
  message->args = std::make_shared<std::vector<std::string>>(call.args);
  Transmit(Kind::kRequest, index, std::move(message));
}

void Fleet::Transmit(Kind kind, uint32_t host, std::unique_ptr<Message> message) {
  if (random_.Chance(scenario_.loss)) return;
  const double half_ns = static_cast<double>(scenario_.rtt_ns) / 2;
  uint64_t takes_ns = static_cast<uint64_t>(0.8 * half_ns) + Exponential(&random_, 0.2 * half_ns);
  if (random_.Chance(scenario_.loss)) takes_ns += Exponential(&random_, kLateMeanNs);
  Push(now_ns_ + takes_ns, kind, host, std::move(message));
}

// Now, or when Redis is back.
uint64_t Fleet::RedisBackNs() const {
  uint64_t back_ns = std::max(now_ns_, down_until_ns_);
  if (!scenario_.pause) return back_ns;
  for (const auto& pause : kPausesNs) {
    if (back_ns >= pause[0] && back_ns < pause[1]) back_ns = pause[1];
  }
  return back_ns;
}

void Fleet::Execute(uint32_t index, Message& message) {
  redis_.time_us = kEpochUs + now_ns_ / 1000;
  auto reply = std::make_unique<Message>();
  reply->incarnation = message.incarnation;
  reply->seq = message.seq;
  reply->reply = Eval(message.args.get());
  if (reply->reply.is_error()) result_.fault = reply->reply.text;
  Transmit(Kind::kReply, index, std::move(reply));
}

void Fleet::Receive(uint32_t index, const Message& message) {
  Host& host = hosts_[index];
  if (host.dead || host.incarnation != message.incarnation) return;
  const uint64_t now_ns = LocalNs(host);
  const lease::Call* const call = host.session->call();
  const uint64_t first_sent_ns = call != nullptr ? call->first_sent_ns : 0;
  const auto grants = host.session->OnReply(message.seq, message.reply, now_ns);
  if (!grants.ok()) {
    result_.fault = std::string(grants.status().message());
    return;
  }
  if (!grants->has_value()) return;
  host.lease->OnGrant((**grants)[0], first_sent_ns, now_ns, host.session->rtt());
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

void Fleet::Happen(Event& event) {
  Host& host = hosts_[event.host];
  switch (event.kind) {
    case Kind::kWake:
      if (host.dead || host.wake_ns != event.at_ns) return;
      host.wake_ns = UINT64_MAX;
      Poll(event.host);
      return;
    case Kind::kRequest:
      if (const uint64_t back_ns = RedisBackNs(); back_ns > now_ns_) {
        Push(back_ns, Kind::kRequest, event.host, std::move(event.message));
      } else {
        Execute(event.host, *event.message);
      }
      return;
    case Kind::kReply:
      Receive(event.host, *event.message);
      return;
    case Kind::kCrash: {
      const uint32_t victim = static_cast<uint32_t>(random_.Below(hosts_.size()));
      if (!hosts_[victim].dead) {
        hosts_[victim].dead = true;
        Push(now_ns_ + kCrashedNs, Kind::kReturn, victim);
      }
      Push(now_ns_ + Exponential(&random_, kCrashMeanNs), Kind::kCrash, 0);
      return;
    }
    case Kind::kReturn:
      host.wake_ns = UINT64_MAX;
      Boot(host);
      return;
    case Kind::kCopy:
      copy_ = redis_.data;
      return;
    case Kind::kFailover:
      FailOver();
      return;
  }
}

}  // namespace sluice::accuracy
