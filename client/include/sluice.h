/* libsluice: rate limit checks in shared memory, in nanoseconds.
 *
 * A process opens one client and checks requests against the rules that the local sluiced has
 * published. A check makes no system call, takes no lock, allocates nothing and never blocks. No
 * function throws, aborts, or changes signal masks or handlers.
 *
 * Threads: a client, its handles and its rule handles may be used from any number of threads at
 * once; close or free them only when no other thread is in a call on them. After fork() the child
 * may go on using the client.
 * Time: all durations are nanoseconds unless the name says otherwise.
 * Text: names and values are byte strings with a length, any byte may occur; no NUL is needed. */
#ifndef SLUICE_H
#define SLUICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SLUICE_API __attribute__((visibility("default")))
#else
#define SLUICE_API
#endif

#define SLUICE_VERSION_MAJOR 0
#define SLUICE_VERSION_MINOR 1

/* Bounds. Beyond them a call answers an error code and the client's default; it never crashes. */
#define SLUICE_MAX_DESCRIPTORS 64u        /* per request */
#define SLUICE_MAX_NAME_BYTES 255u        /* a descriptor's name */
#define SLUICE_MAX_VALUE_BYTES 65536u     /* a descriptor's value */
#define SLUICE_MAX_RULES_PER_REQUEST 16u  /* rules that match one request */
#define SLUICE_MAX_COST 1000000000000u    /* cost of one request */
#define SLUICE_WAIT_BY_RULE INT64_MAX     /* max_wait_ns: for the rule's `wait`, if it has one */
#define SLUICE_MAX_HOLD_NS 3600000000000u /* a reservation is held at most so long: an hour */
#define SLUICE_NEVER UINT64_MAX           /* retry_after_ns of a cost that can never fit */

/* Negative results. */
enum sluice_error {
  SLUICE_E_ARGUMENT = -1,    /* a NULL that must not be, or cost above SLUICE_MAX_COST */
  SLUICE_E_DESCRIPTORS = -2, /* more than SLUICE_MAX_DESCRIPTORS, or one is too long or nameless */
  SLUICE_E_RULES = -3,       /* more rules match than SLUICE_MAX_RULES_PER_REQUEST */
  SLUICE_E_NO_RULE = -4,     /* no rule of that name, or its key is not a single value */
  SLUICE_E_MEMORY = -5,      /* out of memory (open and bind only) */
  SLUICE_E_BUFFER = -6,      /* the buffer is too small */
  SLUICE_E_STALE = -7,       /* the decision belongs to an earlier generation of buckets */
  SLUICE_E_FULL = -8,        /* no slot is free to hold a reservation; nothing was spent */
  SLUICE_E_CANCELLED = -9    /* a signal, or the caller's own word, ended the wait; not admitted */
};

/* Where an answer came from. */
enum sluice_source {
  SLUICE_SOURCE_RULES = 0,     /* the rules decided in the normal way */
  SLUICE_SOURCE_NO_MATCH = 1,  /* no rule matches: allowed */
  SLUICE_SOURCE_DEFAULT = 2,   /* not attached, or an error: the client's default */
  SLUICE_SOURCE_EMERGENCY = 3, /* the deciding rule is degraded (see when_degraded) */
  SLUICE_SOURCE_OVERFLOW = 4   /* no slot was free near the key: the rule's overflow bucket */
};

/* How near a request came to its limits: of all rules that matched, the highest. */
enum sluice_level {
  SLUICE_LEVEL_OK = 0,
  SLUICE_LEVEL_NEAR = 1, /* allowed; a rule's `near` part of what may be used is used */
  SLUICE_LEVEL_SOFT = 2, /* allowed; its `soft` part is */
  SLUICE_LEVEL_HARD = 3  /* denied, or it would be but for a shadow rule */
};
typedef struct sluice_client sluice_t;
typedef struct sluice_handle sluice_handle_t;
typedef struct sluice_rule sluice_rule_t;

typedef struct sluice_descriptor {
  const char* name;
  size_t name_len;
  const char* value;
  size_t value_len;
} sluice_descriptor_t;

/* One matched rule in a decision. For sluice_refund and sluice_http_fields; opaque otherwise. */
typedef struct sluice_spend {
  uint64_t new_ns;  /* TAT, or what the algorithm has in its place, after this cost (spent) or
                       before it (not spent) */
  uint64_t cost_ns; /* as charged; tokens that remain where there is no TAT */
  uint64_t tokens;
  uint64_t given; /* the limit that the request brought; 0: the rule's own */
  uint32_t slot;
  uint16_t gen;
  uint16_t rule;
  uint16_t flags;
  uint16_t floor_q16; /* the part of the bucket that is not for the request's class */
  uint16_t reserved[2];
} sluice_spend_t;

typedef struct sluice_decision {
  int32_t allowed;    /* 1 or 0; the same as the function's result unless that is negative */
  uint8_t source;     /* enum sluice_source */
  uint8_t banned;     /* 1: denied by a rule's ban (`penalty`), which retry_after_ns outlasts */
  uint8_t shadow;     /* 1: a shadow rule would have denied; `allowed` is not changed by it */
  uint8_t level;      /* enum sluice_level; OK where no rule decided */
  uint64_t limit;     /* of the deciding rule: tokens per period; 0 when no rule decided */
  uint64_t period_ns; /* 0 of a limit of requests in flight */
  uint64_t burst;
  uint64_t remaining;      /* tokens left under the deciding rule after this decision */
  uint64_t retry_after_ns; /* 0 when allowed; until this very cost fits; SLUICE_NEVER: it cannot */
  uint64_t reset_after_ns; /* until the deciding rule's bucket is full again */
  uint64_t delay_ns;       /* allowed, but to go on so long after now_ns (leaky buckets, and
                              calls that have waited for it, as sluice_acquire); else 0 */
  uint64_t now_ns;         /* of the decision, CLOCK_MONOTONIC */
  /* what follows serves the functions below */
  uint64_t policy;
  uint64_t generation;
  uint16_t rule; /* index of the deciding rule; 0xffff: none */
  uint8_t spend_count;
  uint8_t candidate_count; /* further spends behind those: of limits that are only tried */
  uint32_t lag_ns;         /* now_ns may be this much behind */
  sluice_spend_t spends[SLUICE_MAX_RULES_PER_REQUEST];
} sluice_decision_t;

typedef struct sluice_options {
  uint32_t struct_size;    /* sizeof(sluice_options_t) */
  int32_t default_allowed; /* the answer while not attached: 1 (default) or 0 */
  const char* runtime_dir; /* NULL: $SLUICE_RUNTIME_DIR, else /run/sluice */
  const char* label;       /* shown to operators; NULL: the program's name; at most 31 bytes */
} sluice_options_t;

typedef struct sluice_info {
  int32_t attached;          /* 1: decisions come from the rules */
  int32_t daemon_alive;      /* 1: the daemon's heartbeat is fresh */
  int32_t same_user;         /* 1: this process runs as the daemon's user and could harm it */
  uint32_t shards_emergency; /* shards that are in emergency */
  uint64_t generation;
  uint64_t policy_seq;   /* rises with each change of the rules */
  uint64_t attach_count; /* how often this client attached */
  char message[160];     /* why it is not attached, and the mend */
} sluice_info_t;

/* Opens a client. Never blocks: without a daemon it answers by `default_allowed` and attaches by
 * itself when the daemon comes. `options` may be NULL. Returns 0, or SLUICE_E_MEMORY /
 * SLUICE_E_ARGUMENT. */
SLUICE_API int sluice_open(const sluice_options_t* options, sluice_t** client);

/* Frees the client. Its handles must be freed before. NULL is ignored. */
SLUICE_API void sluice_close(sluice_t* client);

/* Waits until attached, at most `timeout_ms`; in a forked child, for a connection of its own.
 * Returns 1 when attached, 0 when not. This one may block; checks never need it. */
SLUICE_API int sluice_wait(sluice_t* client, uint32_t timeout_ms);

/* Checks one request: all rules that match apply, the strictest decides, and a rejected request
 * spends nothing anywhere. Returns 1 allowed, 0 denied, or a negative error (then *decision holds
 * the client's default). `cost` 0 only looks, as sluice_peek: it is allowed when the bucket is not
 * in debt beyond its burst. `decision` may be NULL. */
SLUICE_API int sluice_check(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                            uint64_t cost, sluice_decision_t* decision);

/* What sluice_check would answer now, and changes no byte of what is shared: nothing is spent, no
 * denial is counted, no bucket begins. For pages that show what is left, and for asking before work
 * that is spent for later. */
SLUICE_API int sluice_peek(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                           uint64_t cost, sluice_decision_t* decision);
/* The same as sluice_check for a caller that may wait. Where nothing but a strict rule denies,
 * because too little is lent to this host, it sleeps until more is, for at most `max_wait_ns`: 20
 * ms is enough for a host that held nothing, where the bucket has tokens. Never longer than the
 * rule's `wait`, where it has one; SLUICE_WAIT_BY_RULE: for that, and not at all without. Ends
 * early with the denial when a signal comes, or nothing is expected in time. Everything else is
 * answered at once. */
SLUICE_API int sluice_check_wait(sluice_t* client, const sluice_descriptor_t* descriptors,
                                 size_t count, uint64_t cost, uint64_t max_wait_ns,
                                 sluice_decision_t* decision);

/* The same for a caller that waits for its turn under the limit, as one that makes calls to others
 * does: at most until `deadline_ns` (CLOCK_MONOTONIC; one that is past: not at all).
 *   Token and leaky buckets: the turn is taken at once, so that all processes of the host have
 * theirs in the order in which they came, then slept for. Turns are told for as long in advance as
 * debt may stand (the burst's time, a second at least); who comes for a later one sleeps until it
 * can be told, without an order among those. Windows, logs, strict rules and emergencies: sleeps
 * until tokens come, and tries again; in no order. Several rules: admitted by all or by none, and
 * the longest of the delays is slept for. Where the deadline cannot be kept it is denied at once
 * and nothing is spent; a leaky bucket's `max_delay` gives way to the deadline.
 * `cancel_fd`: a file such as an eventfd whose readability ends the wait (it is not read), or -1. A
 * signal that the thread handles ends it too; then the answer is SLUICE_E_CANCELLED,
 * decision->allowed is 0, and the turn is given back unless somebody stands behind it, whose turn
 * stays as it was told: it passes unused. `cost` is at least 1. */
SLUICE_API int sluice_acquire(sluice_t* client, const sluice_descriptor_t* descriptors,
                              size_t count, uint64_t cost, uint64_t deadline_ns, int cancel_fd,
                              sluice_decision_t* decision);

/* Binds a list of descriptors once, for the shortest path. Values are copied. The handle follows
 * changes of the rules and re-attachments by itself. */
SLUICE_API int sluice_handle_bind(sluice_t* client, const sluice_descriptor_t* descriptors,
                                  size_t count, sluice_handle_t** handle);
SLUICE_API int sluice_handle_check(sluice_handle_t* handle, uint64_t cost,
                                   sluice_decision_t* decision);
SLUICE_API void sluice_handle_free(sluice_handle_t* handle);

/* Binds one rule by its label ("name", or "name@tier") whose key is at most one value, for checks
 * with a changing key and no matching. Where the rule has a priority, a class may stand behind it
 * ("name:class", "name@tier:class"); without one the checks are of the rule's `otherwise`. */
SLUICE_API int sluice_rule_bind(sluice_t* client, const char* label, sluice_rule_t** rule);
SLUICE_API int sluice_rule_check(sluice_rule_t* rule, const char* key, size_t key_len,
                                 uint64_t cost, sluice_decision_t* decision);
SLUICE_API void sluice_rule_free(sluice_rule_t* rule);

/* Checks many at once, each on its own (one may be denied while others are not); memory latency
 * overlaps. results[i] is what the single call would return; decisions may be NULL, else holds
 * `count` items. Returns how many were allowed, or a negative error that applies to all. */
typedef struct sluice_request {
  const sluice_descriptor_t* descriptors;
  size_t count;
  uint64_t cost;
} sluice_request_t;
SLUICE_API int sluice_check_many(sluice_t* client, const sluice_request_t* requests, size_t count,
                                 int* results, sluice_decision_t* decisions);
typedef struct sluice_key {
  const char* key;
  size_t len;
} sluice_key_t;
SLUICE_API int sluice_rule_check_many(sluice_rule_t* rule, const sluice_key_t* keys, size_t count,
                                      uint64_t cost, int* results, sluice_decision_t* decisions);

/* Sleeps until an allowed decision's delay is over, if it has any (leaky buckets). With
 * sluice_wait, sluice_check_wait, sluice_acquire and sluice_enter_until the only call that may
 * block: for the rule's max_delay at most.
 * Returns 1 when the time has come, 0 when a signal came first (call it again to go on waiting, or
 * refund the decision), or SLUICE_E_ARGUMENT. Not needed by callers that wait by a timer of their
 * own. */
SLUICE_API int sluice_wait_turn(const sluice_decision_t* decision);

/* Gives back what an allowed decision spent, as far as it still stands: nothing once its time has
 * passed. A decision is refunded at most once (it is marked). Returns the number of rules that got
 * something back, or SLUICE_E_STALE / SLUICE_E_ARGUMENT. */
SLUICE_API int sluice_refund(sluice_t* client, sluice_decision_t* decision);

/* What is reserved for a request whose cost is known only afterwards. Plain bytes: any process on
 * the host that is attached to the same daemon may settle a copy. */
typedef struct sluice_reservation {
  uint64_t expires_ns; /* CLOCK_MONOTONIC; from then on the estimate stands. 0: nothing is held */
  uint64_t key;        /* serves the functions below, as `slot` */
  uint64_t estimate;   /* as charged: at most what the smallest of the buckets can hold */
  uint32_t slot;
  uint32_t reserved;
  sluice_decision_t decision;
} sluice_reservation_t;
/* Charges an estimate, and holds it for `hold_ns` (1 ms to SLUICE_MAX_HOLD_NS), within which it may
 * be settled. An estimate above what a bucket can hold at most counts as that, so that no request
 * is denied for its estimate alone. Returns as sluice_check, or SLUICE_E_FULL; `estimate` is at
 * least 1. */
SLUICE_API int sluice_reserve(sluice_t* client, const sluice_descriptor_t* descriptors,
                              size_t count, uint64_t estimate, uint64_t hold_ns,
                              sluice_reservation_t* reservation);
/* Tells what the request cost in truth: what was charged too much is given back as by
 * sluice_refund, what was charged too little is charged now, even where that leaves the buckets in
 * debt (as far as their rules' bound; of strict rules, what this host has been lent). `actual` 0
 * cancels. Of all who settle one reservation, the first counts. Returns 1 when this call did, 0
 * when it was settled before or its time is over and the estimate stands, or SLUICE_E_STALE /
 * SLUICE_E_ARGUMENT. */
SLUICE_API int sluice_settle(sluice_t* client, const sluice_reservation_t* reservation,
                             uint64_t actual);

/* A place of a request in flight, see sluice_enter. Plain bytes, of the client that entered: what
 * another process or client does with a copy changes nothing. */
typedef struct sluice_place {
  uint64_t name; /* 0: nothing is held */
  sluice_decision_t decision;
} sluice_place_t;
/* As sluice_check, and where a rule says how many requests may be in flight at once (`in_flight`),
 * takes `cost` times the rule's cost of its places, all or none, until sluice_leave. What other
 * rules spend is spent for good. A place that is not left comes back within a second of the
 * process's end, however it ends, and when the client is closed; never before. `cost` is at least
 * 1. A forked child holds none of its parent's places, and may enter once it has a connection of
 * its own, see sluice_wait; until then, as while not attached, the client's default answers and
 * nothing is held. Of a denial by such a rule, `remaining` are the free places, `period_ns` is 0,
 * and `retry_after_ns` a guess of a second, for nobody knows. */
SLUICE_API int sluice_enter(sluice_t* client, const sluice_descriptor_t* descriptors, size_t count,
                            uint64_t cost, sluice_place_t* place);
/* The same for a caller that waits for a place, as sluice_acquire does for its turn, with the same
 * `deadline_ns`, `cancel_fd`, signals and SLUICE_E_CANCELLED: makes no system call where one is
 * free at once and nobody waits (without a `cancel_fd`), else sleeps and looks, 50 ms apart at
 * most; who has waited for longest on the host is about the first. While no place is free nothing
 * is spent under other rules, and none is taken while those deny; a turn that token and leaky
 * buckets tell for later is slept for with the place held. It is counted as a denied check when it
 * begins to wait and twice a second from then on. Denied at once where the deadline cannot be kept
 * by what is known: the cost is above the limit, or another rule admits it only later. */
SLUICE_API int sluice_enter_until(sluice_t* client, const sluice_descriptor_t* descriptors,
                                  size_t count, uint64_t cost, uint64_t deadline_ns, int cancel_fd,
                                  sluice_place_t* place);
/* Gives the places back: once, however often it is called and with whatever copies. Never blocks.
 * Returns 1 when this call did, 0 when nothing was held (any more) or it is not this client's to
 * give back, or SLUICE_E_STALE / SLUICE_E_ARGUMENT. */
SLUICE_API int sluice_leave(sluice_t* client, sluice_place_t* place);

/* Tells how an allowed request ended, by a status of 0 to 999 such as HTTP's: each rule whose
 * `outcomes` speak of it counts the request as so many tokens as they say. What was charged too
 * much is given back as by sluice_refund, what was charged too little as by sluice_settle. A rule
 * that has been corrected is not again, and not refunded (the decision is marked). Rules that say
 * nothing of it, or have changed since the decision, leave what was charged. Returns the number of
 * rules that spoke of it, or SLUICE_E_STALE / SLUICE_E_ARGUMENT. */
SLUICE_API int sluice_report(sluice_t* client, sluice_decision_t* decision, uint32_t status);
/* The label of the deciding rule, NUL-terminated. Returns its length, 0 when no rule decided or
 * the rules have changed since, or SLUICE_E_BUFFER. */
SLUICE_API int sluice_decision_rule(sluice_t* client, const sluice_decision_t* decision,
                                    char* buffer, size_t size);

/* The text of that name in the deciding rule's `metadata`, NUL-terminated. Returns its length, 0
 * when there is none or the rules have changed since, or SLUICE_E_BUFFER (256 bytes suffice). */
SLUICE_API int sluice_decision_metadata(sluice_t* client, const sluice_decision_t* decision,
                                        const char* name, char* buffer, size_t size);
/* The HTTP status for a decision: 200, 429, or 503 where it was denied because Redis or the daemon
 * is away, not because the limit is used up. 0 for NULL. */
SLUICE_API int sluice_http_status(const sluice_decision_t* decision);
/* The body for a denial, NUL-terminated: application/problem+json of RFC 9457 with the types of the
 * draft below, the status and the labels of the rules that denied (`violated-policies`). Returns
 * the bytes written without the NUL, 0 for a decision that allows, or SLUICE_E_BUFFER (2 KiB
 * suffice). */
SLUICE_API int sluice_problem_json(sluice_t* client, const sluice_decision_t* decision,
                                   char* buffer, size_t size);
/* HTTP fields for a decision, each line ended by CRLF, the whole NUL-terminated:
 *   Retry-After (when denied and it can ever fit), RateLimit-Policy and RateLimit
 * (draft-ietf-httpapi-ratelimit-headers-10, structured fields of RFC 9651).
 * Returns the bytes written without the NUL, or SLUICE_E_BUFFER (1 KiB suffices for 8 rules). */
SLUICE_API int sluice_http_fields(sluice_t* client, const sluice_decision_t* decision, char* buffer,
                                  size_t size);

SLUICE_API void sluice_get_info(sluice_t* client, sluice_info_t* info);

/* One sentence for an error code; never NULL. */
SLUICE_API const char* sluice_strerror(int code);

#ifdef __cplusplus
}
#endif
#endif
