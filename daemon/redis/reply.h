#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::redis {

// One reply of a Redis server (RESP2), as a plain value.
struct Reply {
  enum class Kind : uint8_t { kNil, kInteger, kString, kStatus, kError, kArray };

  Kind kind = Kind::kNil;
  int64_t integer = 0;          // kInteger only
  std::string text;             // kString (any bytes), kStatus, kError ("CODE message")
  std::vector<Reply> elements;  // kArray only

  bool is_error() const { return kind == Kind::kError; }
  bool is_integer() const { return kind == Kind::kInteger; }
  bool is_array() const { return kind == Kind::kArray; }
  // A bulk string or a status line.
  bool is_string() const { return kind == Kind::kString || kind == Kind::kStatus; }
};

}  // namespace sluice::redis
