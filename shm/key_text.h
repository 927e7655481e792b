// Writing and reading the text of a slot's bucket name. Several processes may write it at a time,
// each under another key: a torn text does not hash to its slot's fingerprint, so readers check
// that and nothing is locked.
//
// Memory orders: the words are relaxed. The tag's release store, after them, pairs with the
// reader's acquire load of it: who sees the tag of a tenancy sees words at least as new as those
// that were written before it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "shm/layout.h"

namespace sluice::shm {

// `key`: of the text's slot; its word is what the text is tagged with.
template <class Cell>
inline void StoreText(BasicKeyText<Cell>& text, const char (&parts)[kKeyTextBytes],
                      const Cell& key) {
  text.tag.store(0, std::memory_order_release);
  for (size_t i = 0; i < kKeyTextWords; ++i) {
    uint64_t word;
    std::memcpy(&word, parts + i * sizeof word, sizeof word);
    text.words[i].store(word, std::memory_order_relaxed);
  }
  text.tag.store(key.load(std::memory_order_acquire), std::memory_order_release);
}

// False when the text was not written for the tenant `key` (a key word). True is no promise: what
// was read must still hash to the fingerprint.
template <class Cell>
inline bool LoadText(const BasicKeyText<Cell>& text, uint64_t key, char (&parts)[kKeyTextBytes]) {
  if (text.tag.load(std::memory_order_acquire) != key) return false;
  for (size_t i = 0; i < kKeyTextWords; ++i) {
    const uint64_t word = text.words[i].load(std::memory_order_relaxed);
    std::memcpy(parts + i * sizeof word, &word, sizeof word);
  }
  return true;
}

}  // namespace sluice::shm
