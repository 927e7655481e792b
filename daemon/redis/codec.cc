#include "daemon/redis/codec.h"

#include <hiredis/read.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {
namespace {

// hiredis moves the rest of its buffer as it parses: 16 ns an element with slices of 16 KiB, ten
// times that with megabytes.
constexpr size_t kSliceBytes = 16 * 1024;

void AppendNumberLine(std::string* out, char head, uint64_t number) {
  char text[24];
  text[0] = head;
  char* end = std::to_chars(text + 1, text + sizeof text - 2, number).ptr;
  *end++ = '\r';
  *end++ = '\n';
  out->append(text, static_cast<size_t>(end - text));
}

}  // namespace

void AppendArrayHead(std::string* out, uint64_t count) { AppendNumberLine(out, '*', count); }

void AppendBulk(std::string* out, std::string_view bytes) {
  AppendNumberLine(out, '$', bytes.size());
  out->append(bytes);
  out->append("\r\n", 2);
}

// "$", the length, which has one digit or two, the number: one piece.
void AppendBulkInt(std::string* out, int64_t value) {
  constexpr size_t kHead = 5;
  char text[32];
  char* end = std::to_chars(text + kHead, text + sizeof text - 2, value).ptr;
  const size_t digits = static_cast<size_t>(end - (text + kHead));
  *end++ = '\r';
  *end++ = '\n';
  char* begin = text + kHead;
  *--begin = '\n';
  *--begin = '\r';
  *--begin = static_cast<char>('0' + digits % 10);
  if (digits >= 10) *--begin = static_cast<char>('0' + digits / 10);
  *--begin = '$';
  out->append(begin, static_cast<size_t>(end - begin));
}

void AppendCommand(std::string* out, std::initializer_list<std::string_view> arguments) {
  AppendArrayHead(out, arguments.size());
  for (std::string_view argument : arguments) AppendBulk(out, argument);
}

// The default functions of hiredis allocate what an array announces: "*100000000" alone takes
// 0.8 GB. These append elements as they arrive and count what is announced against the bound.
// Appending may move earlier siblings, but only the youngest element can still be open, so no
// pointer that hiredis holds goes stale.
struct ReplyReader::Functions {
  static Reply* Place(const redisReadTask* task) {
    if (task->parent == nullptr) return new Reply;
    return &static_cast<Reply*>(task->parent->obj)->elements.emplace_back();
  }

  static void* String(const redisReadTask* task, char* text, size_t length) {
    Reply* reply = Place(task);
    reply->kind = task->type == REDIS_REPLY_ERROR    ? Reply::Kind::kError
                  : task->type == REDIS_REPLY_STATUS ? Reply::Kind::kStatus
                                                     : Reply::Kind::kString;
    reply->text.assign(text, length);
    return reply;
  }

  static void* Array(const redisReadTask* task, int elements) {
    auto* reader = static_cast<ReplyReader*>(task->privdata);
    if (elements < 0 || !reader->Announce(static_cast<size_t>(elements))) return nullptr;
    Reply* reply = Place(task);
    reply->kind = Reply::Kind::kArray;
    return reply;
  }

  static void* Integer(const redisReadTask* task, long long value) {
    Reply* reply = Place(task);
    reply->kind = Reply::Kind::kInteger;
    reply->integer = value;
    return reply;
  }

  static void* Nil(const redisReadTask* task) { return Place(task); }

  // Called for a root only: elements live inside their arrays.
  static void Free(void* reply) { delete static_cast<Reply*>(reply); }

  static redisReplyObjectFunctions* Table() {
    static redisReplyObjectFunctions table = {String, Array, Integer, Nil, Free};
    return &table;
  }
};

ReplyReader::ReplyReader(ReplyLimits limits)
    : limits_(limits),
      reader_(redisReaderCreateWithFunctions(Functions::Table()), &redisReaderFree) {
  if (reader_ == nullptr) {
    broken_ = absl::ResourceExhaustedError("no memory for a reply parser");
    return;
  }
  reader_->privdata = this;
}

ReplyReader::~ReplyReader() = default;

bool ReplyReader::Announce(size_t elements) {
  elements_ += elements;
  too_many_ = elements_ > limits_.max_elements;
  return !too_many_;
}

absl::Status ReplyReader::Feed(std::string_view bytes) {
  while (broken_.ok() && !bytes.empty()) {
    const size_t length = std::min(bytes.size(), kSliceBytes);
    broken_ = FeedSlice(bytes.substr(0, length));
    bytes.remove_prefix(length);
  }
  return broken_;
}

absl::Status ReplyReader::FeedSlice(std::string_view slice) {
  if (redisReaderFeed(reader_.get(), slice.data(), slice.size()) != REDIS_OK) {
    return absl::ResourceExhaustedError(redisReaderGetError(reader_.get()));
  }
  unparsed_bytes_ += slice.size();
  for (;;) {
    void* object = nullptr;
    if (redisReaderGetReply(reader_.get(), &object) != REDIS_OK) {
      if (too_many_) {
        return absl::InvalidArgumentError(
            absl::StrCat("a reply of more than ", limits_.max_elements, " elements"));
      }
      return absl::InvalidArgumentError(redisReaderGetError(reader_.get()));
    }
    if (object == nullptr) break;
    std::unique_ptr<Reply> reply(static_cast<Reply*>(object));
    ready_.push_back(std::move(*reply));
    elements_ = 0;
    unparsed_bytes_ = reader_->len - reader_->pos;
  }
  if (unparsed_bytes_ > limits_.max_unparsed_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a reply of more than ", limits_.max_unparsed_bytes, " bytes"));
  }
  return absl::OkStatus();
}

std::optional<Reply> ReplyReader::Next() {
  if (ready_.empty()) return std::nullopt;
  std::optional<Reply> reply(std::move(ready_.front()));
  ready_.pop_front();
  return reply;
}

}  // namespace sluice::redis
