#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "daemon/redis/reply.h"

struct redisReader;
struct redisReadTask;

namespace sluice::redis {

// Commands are arrays of bulk strings, written by hand into one growing string: a batch of 250
// buckets is some thousand arguments, and a formatting call for each costs more than the rest.

// Appends "*count\r\n": the head of a command of `count` arguments.
void AppendArrayHead(std::string* out, uint64_t count);
// Appends one argument.
void AppendBulk(std::string* out, std::string_view bytes);
void AppendBulkInt(std::string* out, int64_t value);
// Appends a whole command.
void AppendCommand(std::string* out, std::initializer_list<std::string_view> arguments);

// Bounds on what a server may send; nesting is bounded by hiredis (7 levels; CLUSTER SLOTS has 4).
// Our largest honest replies are an array of about a thousand integers (a batch) and the CLUSTER
// SLOTS of a shattered map of 400 nodes.
struct ReplyLimits {
  size_t max_elements = 1u << 16;        // of one reply, all levels together
  size_t max_unparsed_bytes = 1u << 20;  // of a reply that has not ended yet, its strings included
};

// Parses replies out of a byte stream. Any error is final: the stream has lost its frame, and the
// connection must be closed. One thread.
class ReplyReader {
 public:
  explicit ReplyReader(ReplyLimits limits = {});
  ~ReplyReader();
  ReplyReader(const ReplyReader&) = delete;
  ReplyReader& operator=(const ReplyReader&) = delete;

  // Takes more bytes. InvalidArgument when they are not RESP2 or break a bound; replies that were
  // complete before the error still come out of Next.
  absl::Status Feed(std::string_view bytes);

  // The next complete reply, or nothing while bytes are missing.
  std::optional<Reply> Next();

 private:
  struct Functions;  // what hiredis calls to build our values

  absl::Status FeedSlice(std::string_view slice);
  bool Announce(size_t elements);

  const ReplyLimits limits_;
  absl::Status broken_;
  std::unique_ptr<redisReader, void (*)(redisReader*)> reader_;
  std::deque<Reply> ready_;
  size_t elements_ = 0;        // announced in the reply that is being parsed
  size_t unparsed_bytes_ = 0;  // fed since the last complete reply
  bool too_many_ = false;
};

}  // namespace sluice::redis
