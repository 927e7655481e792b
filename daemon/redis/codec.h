#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "daemon/redis/reply.h"

struct redisReader;

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

// Bounds on what a server may send. Our largest honest replies are one array of about a thousand
// integers (a batch) and CLUSTER SLOTS of a shattered 400-node map.
struct ReplyLimits {
  size_t max_elements = 1u << 16;        // of one reply, all levels together
  size_t max_unparsed_bytes = 1u << 20;  // of a reply that has not ended yet, its strings included
  size_t max_depth = 7;                  // CLUSTER SLOTS needs 4, its metadata 5
};

// Parses replies out of a byte stream. Any error is final: the stream has lost its frame, and the
// connection must be closed. One thread.
class ReplyReader {
 public:
  explicit ReplyReader(ReplyLimits limits = {});
  ~ReplyReader();
  ReplyReader(const ReplyReader&) = delete;
  ReplyReader& operator=(const ReplyReader&) = delete;

  // Takes more bytes, at most ring::kRecvBytes at a time (longer input is cut into slices).
  // Complete replies come out of Next. InvalidArgument when a bound is broken.
  absl::Status Feed(std::string_view bytes);

  // The next complete reply, nothing if bytes are missing, or the error that ended the stream.
  absl::StatusOr<std::optional<Reply>> Next();

 private:
  struct Functions;
  ReplyLimits limits_;
  absl::Status broken_;
  std::unique_ptr<redisReader, void (*)(redisReader*)> reader_;
  size_t elements_ = 0;        // announced or seen in the reply being parsed
  size_t unparsed_bytes_ = 0;  // fed since the last complete reply
};

}  // namespace sluice::redis
