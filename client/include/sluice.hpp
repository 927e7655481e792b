// sluice for C++20: a header-only face over the C ABI of sluice.h. Nothing here throws on the way
// of a check; nothing allocates. See sluice.h for what each call promises.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "sluice.h"

namespace sluice {

// A name and a value of the request; views, which must live until the call returns.
struct Descriptor : sluice_descriptor_t {
  constexpr Descriptor(std::string_view descriptor_name, std::string_view descriptor_value)
      : sluice_descriptor_t{descriptor_name.data(), descriptor_name.size(), descriptor_value.data(),
                            descriptor_value.size()} {}
};

enum class Level : uint8_t {
  kOk = SLUICE_LEVEL_OK,
  kNear = SLUICE_LEVEL_NEAR,
  kSoft = SLUICE_LEVEL_SOFT,
  kHard = SLUICE_LEVEL_HARD
};

// The answer to one request. Converts to bool: go on or not.
class Decision {
 public:
  explicit operator bool() const { return raw_.allowed != 0; }
  bool allowed() const { return raw_.allowed != 0; }
  uint64_t limit() const { return raw_.limit; }
  uint64_t remaining() const { return raw_.remaining; }
  // Zero when allowed; nullopt when this cost can never fit.
  std::optional<std::chrono::nanoseconds> retry_after() const {
    if (raw_.retry_after_ns == SLUICE_NEVER) return std::nullopt;
    return std::chrono::nanoseconds(raw_.retry_after_ns);
  }
  std::chrono::nanoseconds reset_after() const {
    return std::chrono::nanoseconds(raw_.reset_after_ns);
  }
  // Leaky buckets: allowed, but to go on only after this time; what acquire() waited; zero else.
  std::chrono::nanoseconds delay() const { return std::chrono::nanoseconds(raw_.delay_ns); }
  // Sleeps until then; false where a signal came first.
  bool wait_turn() const { return sluice_wait_turn(&raw_) > 0; }
  bool is_emergency() const { return raw_.source == SLUICE_SOURCE_EMERGENCY; }
  bool is_default() const { return raw_.source == SLUICE_SOURCE_DEFAULT; }
  // How near the request came to its limits: of all rules, the highest.
  Level level() const { return static_cast<Level>(raw_.level); }
  // 200, 429, or 503 where Redis or the daemon is away and that is why.
  int http_status() const { return sluice_http_status(&raw_); }
  // Denied by a ban of a rule's `penalty`; retry_after() tells its end.
  bool is_banned() const { return raw_.banned != 0; }
  bool shadow_denied() const { return raw_.shadow != 0; }
  // 0, or one of enum sluice_error: then the answer is the client's default.
  int error() const { return error_; }
  const sluice_decision_t& raw() const { return raw_; }
  sluice_decision_t& raw() { return raw_; }

 private:
  friend class Client;
  friend class Handle;
  friend class Rule;
  void Take(int result) { error_ = result < 0 ? result : 0; }

  sluice_decision_t raw_;
  int error_ = 0;
};

// A request's descriptors bound once: the shortest path. Free it before its client.
class Handle {
 public:
  Decision check(uint64_t cost = 1) {
    Decision d;
    d.Take(sluice_handle_check(handle_.get(), cost, &d.raw()));
    return d;
  }
  // Only yes or no, a little faster.
  bool allow(uint64_t cost = 1) { return sluice_handle_check(handle_.get(), cost, nullptr) > 0; }

 private:
  friend class Client;
  struct Free {
    void operator()(sluice_handle_t* h) const { sluice_handle_free(h); }
  };
  explicit Handle(sluice_handle_t* handle) : handle_(handle) {}
  std::unique_ptr<sluice_handle_t, Free> handle_;
};

// One rule with a changing key.
class Rule {
 public:
  Decision check(std::string_view key, uint64_t cost = 1) {
    Decision d;
    d.Take(sluice_rule_check(rule_.get(), key.data(), key.size(), cost, &d.raw()));
    return d;
  }
  bool allow(std::string_view key, uint64_t cost = 1) {
    return sluice_rule_check(rule_.get(), key.data(), key.size(), cost, nullptr) > 0;
  }

 private:
  friend class Client;
  struct Free {
    void operator()(sluice_rule_t* r) const { sluice_rule_free(r); }
  };
  explicit Rule(sluice_rule_t* rule) : rule_(rule) {}
  std::unique_ptr<sluice_rule_t, Free> rule_;
};

// What is charged for a request whose cost is known only afterwards. Copies are of one reservation.
class Reservation {
 public:
  explicit operator bool() const { return raw_.decision.allowed != 0; }
  // As charged: at most what the smallest of the buckets can hold.
  uint64_t estimate() const { return raw_.estimate; }
  const sluice_reservation_t& raw() const { return raw_; }
  // The answer to the request.
  Decision decision() const {
    Decision d;
    d.raw() = raw_.decision;
    return d;
  }
  // 0, or one of enum sluice_error.
  int error() const { return error_; }

 private:
  friend class Client;
  sluice_reservation_t raw_;
  int error_ = 0;
};

// The place of a request in flight, given back when it goes out of scope. Its client must outlive
// it. Moved, not copied. In a forked child it gives back nothing.
class Place {
 public:
  Place(Place&& other) noexcept
      : client_(std::exchange(other.client_, nullptr)), raw_(other.raw_), error_(other.error_) {}
  Place& operator=(Place&& other) noexcept {
    if (this != &other) {
      leave();
      client_ = std::exchange(other.client_, nullptr);
      raw_ = other.raw_;
      error_ = other.error_;
    }
    return *this;
  }
  ~Place() { leave(); }

  // Whether the request may go on. It may also where nothing is held: no rule says how many.
  explicit operator bool() const { return raw_.decision.allowed != 0; }
  // The answer to the request.
  Decision decision() const {
    Decision d;
    d.raw() = raw_.decision;
    return d;
  }
  // Gives it back now. True where this call did.
  bool leave() {
    sluice_t* const client = std::exchange(client_, nullptr);
    return client != nullptr && sluice_leave(client, &raw_) > 0;
  }
  // 0, or one of enum sluice_error.
  int error() const { return error_; }
  const sluice_place_t& raw() const { return raw_; }

 private:
  friend class Client;
  explicit Place(sluice_t* client) : client_(client) { raw_.decision.allowed = 0; }

  sluice_t* client_;
  sluice_place_t raw_;
  int error_ = 0;
};

// Until when a caller waits: a time, or so long from now. On CLOCK_MONOTONIC.
inline uint64_t DeadlineNs(std::chrono::steady_clock::time_point at) {
  const auto since = std::chrono::nanoseconds(at.time_since_epoch()).count();
  return since > 0 ? static_cast<uint64_t>(since) : 0;
}
inline uint64_t DeadlineNs(std::chrono::nanoseconds from_now) {
  const auto now = std::chrono::steady_clock::now();
  return DeadlineNs(now + std::min(from_now, std::chrono::steady_clock::time_point::max() - now));
}
template <class T>
concept Deadline = requires(T deadline) {
  DeadlineNs(deadline);
};

struct Options {
  bool default_allowed = true;        // the answer while no daemon was ever there
  const char* runtime_dir = nullptr;  // $SLUICE_RUNTIME_DIR, else /run/sluice
  const char* label = nullptr;        // shown to operators
};

// A connection to the local daemon. Never blocks, not even here: it attaches by itself.
class Client {
 public:
  explicit Client(const Options& options = {}) {
    const sluice_options_t raw = {sizeof(sluice_options_t), options.default_allowed ? 1 : 0,
                                  options.runtime_dir, options.label};
    sluice_t* client = nullptr;
    error_ = sluice_open(&raw, &client);
    client_.reset(client);
  }

  // 0, or SLUICE_E_MEMORY: then every check answers with an error.
  int error() const { return error_; }

  Decision check(std::span<const Descriptor> descriptors, uint64_t cost = 1) {
    Decision d;
    d.raw().allowed = 0;
    d.Take(sluice_check(client_.get(), descriptors.data(), descriptors.size(), cost, &d.raw()));
    return d;
  }
  Decision check(std::initializer_list<Descriptor> descriptors, uint64_t cost = 1) {
    return check(std::span(descriptors.begin(), descriptors.size()), cost);
  }

  // max_wait of callers that wait as their rule says, see SLUICE_WAIT_BY_RULE.
  static constexpr std::chrono::nanoseconds kWaitByRule{SLUICE_WAIT_BY_RULE};
  // May block for so long where a strict rule is lent too little, see sluice_check_wait.
  Decision check_wait(std::span<const Descriptor> descriptors, std::chrono::nanoseconds max_wait,
                      uint64_t cost = 1) {
    Decision d;
    d.raw().allowed = 0;
    const auto max_wait_ns = static_cast<uint64_t>(
        max_wait.count() > 0 ? max_wait.count() : std::chrono::nanoseconds::rep{0});
    d.Take(sluice_check_wait(client_.get(), descriptors.data(), descriptors.size(), cost,
                             max_wait_ns, &d.raw()));
    return d;
  }
  Decision check_wait(std::initializer_list<Descriptor> descriptors,
                      std::chrono::nanoseconds max_wait, uint64_t cost = 1) {
    return check_wait(std::span(descriptors.begin(), descriptors.size()), max_wait, cost);
  }

  // Sleeps until its turn under the limit has come, at most until `deadline`; see sluice_acquire.
  // `cancel_fd`: ends the wait when it can be read; error() is SLUICE_E_CANCELLED then.
  Decision acquire(std::span<const Descriptor> descriptors, Deadline auto deadline,
                   uint64_t cost = 1, int cancel_fd = -1) {
    Decision d;
    d.raw().allowed = 0;
    d.Take(sluice_acquire(client_.get(), descriptors.data(), descriptors.size(), cost,
                          DeadlineNs(deadline), cancel_fd, &d.raw()));
    return d;
  }
  Decision acquire(std::initializer_list<Descriptor> descriptors, Deadline auto deadline,
                   uint64_t cost = 1, int cancel_fd = -1) {
    return acquire(std::span(descriptors.begin(), descriptors.size()), deadline, cost, cancel_fd);
  }

  // The yes or no alone, without the numbers of a decision: the shortest path for a list.
  bool allow(std::span<const Descriptor> descriptors, uint64_t cost = 1) {
    return sluice_check(client_.get(), descriptors.data(), descriptors.size(), cost, nullptr) > 0;
  }
  bool allow(std::initializer_list<Descriptor> descriptors, uint64_t cost = 1) {
    return allow(std::span(descriptors.begin(), descriptors.size()), cost);
  }

  std::optional<Handle> bind(std::span<const Descriptor> descriptors) {
    sluice_handle_t* handle = nullptr;
    if (sluice_handle_bind(client_.get(), descriptors.data(), descriptors.size(), &handle) != 0) {
      return std::nullopt;
    }
    return Handle(handle);
  }
  std::optional<Handle> bind(std::initializer_list<Descriptor> descriptors) {
    return bind(std::span(descriptors.begin(), descriptors.size()));
  }
  std::optional<Rule> bind_rule(const char* label) {
    sluice_rule_t* rule = nullptr;
    if (sluice_rule_bind(client_.get(), label, &rule) != 0) return std::nullopt;
    return Rule(rule);
  }

  // What check() would answer now; changes no byte of what is shared.
  Decision peek(std::span<const Descriptor> descriptors, uint64_t cost = 1) {
    Decision d;
    d.raw().allowed = 0;
    d.Take(sluice_peek(client_.get(), descriptors.data(), descriptors.size(), cost, &d.raw()));
    return d;
  }
  Decision peek(std::initializer_list<Descriptor> descriptors, uint64_t cost = 1) {
    return peek(std::span(descriptors.begin(), descriptors.size()), cost);
  }

  // Charges an estimate, to be settled within `hold` (1 ms to 1 h); see sluice_reserve.
  Reservation reserve(std::span<const Descriptor> descriptors, uint64_t estimate,
                      std::chrono::nanoseconds hold) {
    Reservation r;
    r.raw_.decision.allowed = 0;
    const auto hold_ns =
        static_cast<uint64_t>(hold.count() > 0 ? hold.count() : std::chrono::nanoseconds::rep{0});
    const int result = sluice_reserve(client_.get(), descriptors.data(), descriptors.size(),
                                      estimate, hold_ns, &r.raw_);
    r.error_ = result < 0 ? result : 0;
    return r;
  }
  Reservation reserve(std::initializer_list<Descriptor> descriptors, uint64_t estimate,
                      std::chrono::nanoseconds hold) {
    return reserve(std::span(descriptors.begin(), descriptors.size()), estimate, hold);
  }
  // What it cost in truth; 0 cancels. True when this call settled it, false when it was settled
  // before or its time is over: then the estimate stands.
  bool settle(const Reservation& reservation, uint64_t actual) {
    return sluice_settle(client_.get(), &reservation.raw_, actual) > 0;
  }

  // Takes a place where rules say how many requests may be in flight; see sluice_enter.
  Place enter(std::span<const Descriptor> descriptors, uint64_t cost = 1) {
    Place p(client_.get());
    const int result =
        sluice_enter(client_.get(), descriptors.data(), descriptors.size(), cost, &p.raw_);
    p.error_ = result < 0 ? result : 0;
    return p;
  }
  Place enter(std::initializer_list<Descriptor> descriptors, uint64_t cost = 1) {
    return enter(std::span(descriptors.begin(), descriptors.size()), cost);
  }
  // Sleeps until there is one, at most until `deadline`; see sluice_enter_until. `cancel_fd` as in
  // acquire().
  Place enter(std::span<const Descriptor> descriptors, Deadline auto deadline, uint64_t cost = 1,
              int cancel_fd = -1) {
    Place p(client_.get());
    const int result = sluice_enter_until(client_.get(), descriptors.data(), descriptors.size(),
                                          cost, DeadlineNs(deadline), cancel_fd, &p.raw_);
    p.error_ = result < 0 ? result : 0;
    return p;
  }
  Place enter(std::initializer_list<Descriptor> descriptors, Deadline auto deadline,
              uint64_t cost = 1, int cancel_fd = -1) {
    return enter(std::span(descriptors.begin(), descriptors.size()), deadline, cost, cancel_fd);
  }

  // How many rules got something back; negative: enum sluice_error.
  int refund(Decision& decision) { return sluice_refund(client_.get(), &decision.raw()); }

  // How an allowed request ended, 0 to 999: what it costs then is what the rules' `outcomes` say.
  // How many of them did; negative: enum sluice_error.
  int report(Decision& decision, uint32_t status) {
    return sluice_report(client_.get(), &decision.raw(), status);
  }

  // Retry-After, RateLimit-Policy and RateLimit lines, each ended by CRLF.
  std::string http_fields(const Decision& decision) {
    char buffer[4096];
    const int n = sluice_http_fields(client_.get(), &decision.raw(), buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  // The text of that name in the deciding rule's metadata; empty where there is none.
  std::string metadata_of(const Decision& decision, const char* name) {
    char buffer[256];
    const int n =
        sluice_decision_metadata(client_.get(), &decision.raw(), name, buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  // The body for a denial, application/problem+json; empty for a decision that allows.
  std::string problem_json(const Decision& decision) {
    char buffer[4096];
    const int n = sluice_problem_json(client_.get(), &decision.raw(), buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  // The deciding rule's label; empty when no rule decided.
  std::string rule_of(const Decision& decision) {
    char buffer[128];
    const int n = sluice_decision_rule(client_.get(), &decision.raw(), buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }

  bool wait(std::chrono::milliseconds timeout) {
    return sluice_wait(client_.get(), static_cast<uint32_t>(timeout.count())) != 0;
  }
  sluice_info_t info() {
    sluice_info_t info = {};
    sluice_get_info(client_.get(), &info);
    return info;
  }
  sluice_t* raw() { return client_.get(); }

 private:
  struct Close {
    void operator()(sluice_t* c) const { sluice_close(c); }
  };
  std::unique_ptr<sluice_t, Close> client_;
  int error_ = 0;
};

}  // namespace sluice
