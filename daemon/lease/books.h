// What a keeper knows of each of its buckets, by a number that stays and by name.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace sluice::lease {

// `Book` has a `text`, which is empty where it is nobody's. Books stay where they are. Not
// thread-safe.
template <class Book>
class Books {
 public:
  // The number of that bucket's book, which is a new one where there is none.
  uint32_t Open(const std::string& text) {
    if (const auto found = by_text_.find(text); found != by_text_.end()) return found->second;
    uint32_t id = static_cast<uint32_t>(books_.size());
    if (free_.empty()) {
      books_.emplace_back();
    } else {
      id = free_.back();
      free_.pop_back();
    }
    books_[id].text = text;
    by_text_.emplace(text, id);
    return id;
  }
  // False: it has none.
  bool Find(const std::string& text, uint32_t* id) const {
    const auto found = by_text_.find(text);
    if (found == by_text_.end()) return false;
    *id = found->second;
    return true;
  }
  // Its number may become another bucket's.
  void Close(uint32_t id) {
    by_text_.erase(books_[id].text);
    books_[id] = Book{};
    free_.push_back(id);
  }

  Book& operator[](uint32_t id) { return books_[id]; }
  const Book& operator[](uint32_t id) const { return books_[id]; }
  // Numbers are below; those of closed books too.
  size_t size() const { return books_.size(); }
  bool empty() const { return books_.empty(); }
  size_t open() const { return by_text_.size(); }
  auto begin() { return books_.begin(); }
  auto end() { return books_.end(); }

 private:
  std::deque<Book> books_;
  std::vector<uint32_t> free_;
  absl::flat_hash_map<std::string, uint32_t> by_text_;
};

}  // namespace sluice::lease
