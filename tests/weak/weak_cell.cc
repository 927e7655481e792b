#include "tests/weak/weak_cell.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <tuple>
#include <utility>

#include "shm/hash.h"

namespace sluice::weak {
namespace {

using model::Explorer;

uint64_t Mix(uint64_t h, uint64_t v) {
  uint64_t state = h ^ (v * 0x9e3779b97f4a7c15);
  return shm::SplitMix64(state);
}

uint64_t MixView(uint64_t h, const View& view) {
  uint64_t words[kMaxCells / 8];
  std::memcpy(words, view.data(), sizeof words);
  for (const uint64_t word : words) h = Mix(h, word);
  return h;
}

void Join(View& to, const View& from) {
  for (size_t i = 0; i < kMaxCells; ++i) to[i] = std::max(to[i], from[i]);
}

bool Acquires(std::memory_order order) {
  return order == std::memory_order_acquire || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}
bool Releases(std::memory_order order) {
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}
// What the standard makes of the order of a CAS that fails.
std::memory_order FailureOf(std::memory_order order) {
  if (order == std::memory_order_acq_rel) return std::memory_order_acquire;
  return order == std::memory_order_release ? std::memory_order_relaxed : order;
}

// The order of an access, as it is or weakened.
std::memory_order OrderAt(Where where, const Cell& cell, const char* access,
                          std::memory_order order) {
  using Place = std::tuple<const char*, const char*, const char*, const char*>;
  static std::map<Place, Site*> known;
  Site*& site = known[{where.file, where.function, cell.name, access}];
  if (site == nullptr) {
    const std::string_view function = where.function;  // "LookSlot<Cell>" or "LookSlot"
    const std::string name =
        std::string(function.substr(0, function.find('<'))) + " " + cell.name + "." + access;
    site = &Sites().try_emplace(name, Site{name, order, std::nullopt, false}).first->second;
    site->is_production = std::string_view(where.file).find("shm/") != std::string_view::npos;
  }
  return site->weakened.value_or(order);
}

}  // namespace

std::map<std::string, Site>& Sites() {
  static std::map<std::string, Site> sites;
  return sites;
}

void Memory::Reset(size_t processes) {
  views_.assign(processes, View{});
  refused_.clear();
  size_t index = 0;
  for (Cell* const cell : cells_) {
    if (cell->quiet) continue;
    cell->memory_ = this;
    cell->index_ = index++;
    cell->messages_.assign(1, {cell->value, View{}});
    cell->last_seq_cst_ = 0;
  }
  if (index > kMaxCells) refused_ = "too many cells";
}

uint64_t Memory::Hash() const {
  uint64_t h = 0;
  for (const Cell* const cell : cells_) {
    if (cell->quiet) {
      h = Mix(h, cell->value);
      continue;
    }
    h = Mix(h, cell->messages_.size() * 256 + cell->last_seq_cst_);
    for (const Cell::Message& message : cell->messages_) {
      h = MixView(Mix(h, message.value), message.view);
    }
  }
  for (const View& view : views_) h = MixView(h, view);
  return h;
}

size_t Cell::Readable(size_t process, std::memory_order order) const {
  size_t first = memory_->views_[process][index_];
  if (order == std::memory_order_seq_cst) first = std::max(first, last_seq_cst_);
  return messages_.size() - first;
}

std::vector<size_t> Cell::Met(size_t process, std::memory_order failure, uint64_t expected) const {
  std::vector<size_t> met = {0};
  const size_t readable = Readable(process, failure);
  for (size_t back = 1; back < readable; ++back) {
    if (messages_[messages_.size() - 1 - back].value != expected) met.push_back(back);
  }
  return met;
}

uint64_t Cell::Read(size_t process, size_t back, std::memory_order order) const {
  const size_t at = messages_.size() - 1 - back;
  View& view = memory_->views_[process];
  view[index_] = std::max(view[index_], static_cast<uint8_t>(at));
  if (Acquires(order)) Join(view, messages_[at].view);
  Explorer::Current()->Saw(messages_[at].value);
  return messages_[at].value;
}

void Cell::Append(size_t process, uint64_t v, std::memory_order order, bool after_read) {
  if (messages_.size() > 200) memory_->refused_ = "too many messages";
  View& view = memory_->views_[process];
  view[index_] = static_cast<uint8_t>(messages_.size());
  Message message = {v, View{}};
  if (Releases(order)) {
    message.view = view;
  } else {
    message.view[index_] = view[index_];
  }
  if (after_read) Join(message.view, messages_.back().view);
  if (order == std::memory_order_seq_cst) last_seq_cst_ = messages_.size();
  messages_.push_back(message);
  value = v;
}

uint64_t Cell::load(std::memory_order order, Where where) const {
  Explorer* const e = Explorer::Current();
  if (e == nullptr) return value;
  if (quiet) {
    e->Saw(value);
    return value;
  }
  order = OrderAt(where, *this, "load", order);
  const size_t process = e->process();
  const size_t back = e->AtStep([=, this] { return Readable(process, order); });
  return Read(process, back, order);
}

void Cell::store(uint64_t v, std::memory_order order, Where where) {
  Explorer* const e = Explorer::Current();
  if (e == nullptr || quiet) {
    value = v;
    return;
  }
  order = OrderAt(where, *this, "store", order);
  e->AtStep();
  e->Saw(0);
  const size_t process = e->process();
  if (memory_->views_[process][index_] + 1u < messages_.size()) {
    memory_->refused_ = "plain stores race";
  }
  Append(process, v, order, /*after_read=*/false);
}

bool Cell::compare_exchange_strong(uint64_t& expected, uint64_t desired, std::memory_order order,
                                   Where where) {
  Explorer* const e = Explorer::Current();
  if (e == nullptr || quiet) {
    const uint64_t seen = value;
    if (e != nullptr) e->Saw(seen);
    if (seen == expected) value = desired;
    return seen == std::exchange(expected, seen);
  }
  order = OrderAt(where, *this, "cas", order);
  const std::memory_order failure = FailureOf(order);
  const size_t process = e->process();
  const uint64_t wanted = expected;
  const size_t result = e->AtStep([=, this] { return Met(process, failure, wanted).size(); });
  const size_t back = Met(process, failure, wanted)[result];
  if (back == 0 && messages_.back().value == wanted) {
    Read(process, 0, order);
    Append(process, desired, order, /*after_read=*/true);
    return true;
  }
  expected = Read(process, back, failure);
  return false;
}

template <class Change>
uint64_t Cell::Modify(std::memory_order order, Change change) {
  Explorer* const e = Explorer::Current();
  if (e == nullptr || quiet) {
    if (e != nullptr) e->Saw(value);
    return std::exchange(value, change(value));
  }
  e->AtStep();
  const size_t process = e->process();
  const uint64_t seen = Read(process, 0, order);
  Append(process, change(seen), order, /*after_read=*/true);
  return seen;
}

uint64_t Cell::fetch_add(uint64_t v, std::memory_order order, Where where) {
  return Modify(OrderAt(where, *this, "add", order), [v](uint64_t seen) { return seen + v; });
}
uint64_t Cell::fetch_or(uint64_t v, std::memory_order order, Where where) {
  return Modify(OrderAt(where, *this, "or", order), [v](uint64_t seen) { return seen | v; });
}
uint64_t Cell::fetch_and(uint64_t v, std::memory_order order, Where where) {
  return Modify(OrderAt(where, *this, "and", order), [v](uint64_t seen) { return seen & v; });
}
uint64_t Cell::exchange(uint64_t v, std::memory_order order, Where where) {
  return Modify(OrderAt(where, *this, "exchange", order), [v](uint64_t) { return v; });
}

}  // namespace sluice::weak
