// What happened, folded into one number that two runs of a seed must share; with `print` also a
// line each.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "tests/simulation/timeline.h"

namespace sluice::simulation {

class Trace {
 public:
  Trace(const Timeline* timeline, bool print) : timeline_(timeline), print_(print) {}

  bool print() const { return print_; }
  uint64_t hash() const { return hash_; }

  // Something happened: `what` with up to four numbers.
  void Note(std::string_view what, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0) {
    Mix(timeline_->now_ns());
    MixBytes(what);
    for (const uint64_t n : {a, b, c, d}) Mix(n);
    if (!print_) return;
    printf("%4" PRIu64 ".%09" PRIu64 " %-18.*s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
           timeline_->now_ns() / kSecond, timeline_->now_ns() % kSecond,
           static_cast<int>(what.size()), what.data(), a, b, c, d);
  }
  void Say(std::string_view text) {
    Note("wrong");
    if (print_) printf("                      %.*s\n", static_cast<int>(text.size()), text.data());
  }
  // The same with bytes that travelled, every one of them in the hash.
  void Bytes(std::string_view what, uint64_t a, uint64_t b, std::string_view bytes) {
    Note(what, a, b, bytes.size());
    MixBytes(bytes);
    if (!print_) return;
    printf("                      ");
    for (const char c : bytes.substr(0, kShownBytes)) putchar(c >= ' ' && c <= '~' ? c : '.');
    putchar('\n');
  }

 private:
  static constexpr size_t kShownBytes = 160;

  void Mix(uint64_t n) {
    hash_ = (hash_ ^ n) * 0x9fb21c651e98df25;
    hash_ ^= hash_ >> 35;
  }
  void MixBytes(std::string_view bytes) {
    for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
      uint64_t word;
      memcpy(&word, bytes.data(), 8);
      Mix(word);
    }
    uint64_t rest = bytes.size();
    for (const char c : bytes) rest = rest << 8 | static_cast<unsigned char>(c);
    Mix(rest);
  }

  const Timeline* timeline_;
  bool print_;
  uint64_t hash_ = 1;
};

}  // namespace sluice::simulation
