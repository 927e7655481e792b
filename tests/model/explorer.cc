#include "tests/model/explorer.h"

#include <cstdio>
#include <cstdlib>

#include "shm/hash.h"

namespace sluice::model {
namespace {

uint64_t Mix(uint64_t h, uint64_t v) {
  uint64_t state = h ^ (v * 0x9e3779b97f4a7c15);
  return shm::SplitMix64(state);
}

}  // namespace

uint64_t Cell::Step() const {
  Explorer* const e = Explorer::Current();
  if (e != nullptr && !quiet) e->AtStep();
  return value;
}
void Cell::Saw(uint64_t v) const {
  Explorer* const e = Explorer::Current();
  if (e != nullptr) e->Saw(v);
}
uint64_t Cell::load(std::memory_order) const {
  const uint64_t v = Step();
  Saw(v);
  return v;
}
void Cell::store(uint64_t v, std::memory_order) {
  Step();
  Saw(0);
  value = v;
}
bool Cell::compare_exchange_strong(uint64_t& expected, uint64_t desired, std::memory_order) {
  const uint64_t seen = Step();
  Saw(seen);
  if (seen != expected) {
    expected = seen;
    return false;
  }
  value = desired;
  return true;
}
uint64_t Cell::fetch_add(uint64_t v, std::memory_order) {
  const uint64_t seen = Step();
  Saw(seen);
  value = seen + v;
  return seen;
}
uint64_t Cell::fetch_or(uint64_t v, std::memory_order) {
  const uint64_t seen = Step();
  Saw(seen);
  value = seen | v;
  return seen;
}
uint64_t Cell::fetch_and(uint64_t v, std::memory_order) {
  const uint64_t seen = Step();
  Saw(seen);
  value = seen & v;
  return seen;
}
uint64_t Cell::exchange(uint64_t v, std::memory_order) {
  const uint64_t seen = Step();
  Saw(seen);
  value = v;
  return seen;
}

void Explorer::Enter(boost::context::detail::transfer_t from) {
  Explorer* e = current_;
  e->scheduler_ = from.fctx;
  const size_t self = static_cast<size_t>(e->running_);
  e->AtStep();  // a process begins with a choice: it may be killed before its first access
  e->fibers_[self].history = 1;
  e->scenario_.processes[self]();
  e->fibers_[self].ended = true;
  boost::context::detail::jump_fcontext(e->scheduler_, nullptr);
}

size_t Explorer::AtStep(std::function<size_t()> results) {
  const size_t self = process();
  fibers_[self].results = std::move(results);
  scheduler_ = boost::context::detail::jump_fcontext(scheduler_, nullptr).fctx;
  return fibers_[self].result;
}

void Explorer::Saw(uint64_t v) {
  uint64_t& history = fibers_[process()].history;
  history = Mix(history, v + 1);
}

void Explorer::Resume(size_t process) {
  running_ = static_cast<int>(process);
  Fiber& fiber = fibers_[process];
  fiber.context = boost::context::detail::jump_fcontext(fiber.context, nullptr).fctx;
  running_ = -1;
}

// Stacks of an earlier run are simply begun anew: processes own nothing that needs unwinding.
void Explorer::Restart() {
  running_ = -1;
  scenario_.reset();
  fibers_.resize(scenario_.processes.size());
  for (size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[i];
    if (fiber.stack == nullptr) fiber.stack.reset(new char[kStackBytes]);
    fiber.history = 0;
    fiber.results = nullptr;
    fiber.ended = fiber.killed = false;
    fiber.context = boost::context::detail::make_fcontext(fiber.stack.get() + kStackBytes,
                                                          kStackBytes, &Explorer::Enter);
    Resume(i);  // to its first choice
  }
}

void Explorer::Apply(Choice choice) {
  if (choice.kill) {
    fibers_[choice.process].killed = true;
  } else {
    fibers_[choice.process].result = choice.result;
    Resume(choice.process);
  }
}

std::vector<Explorer::Choice> Explorer::Choices() const {
  std::vector<Choice> choices;
  uint32_t kills = 0;
  for (const Fiber& fiber : fibers_) kills += fiber.killed ? 1 : 0;
  for (size_t i = 0; i < fibers_.size(); ++i) {
    if (fibers_[i].ended || fibers_[i].killed) continue;
    const size_t results = fibers_[i].results ? fibers_[i].results() : 1;
    for (size_t result = 0; result < results; ++result) {
      choices.push_back({static_cast<uint8_t>(i), false, static_cast<uint8_t>(result)});
    }
    if (kills < scenario_.max_kills) choices.push_back({static_cast<uint8_t>(i), true});
  }
  return choices;
}

uint64_t Explorer::StateHash() const {
  uint64_t h = scenario_.hash ? scenario_.hash() : 0;
  for (const Cell* cell : scenario_.memory) h = Mix(h, cell->value);
  for (const Fiber& fiber : fibers_) {
    h = Mix(h, fiber.history);
    h = Mix(h, (fiber.ended ? 1 : 0) + (fiber.killed ? 2 : 0));
  }
  return h;
}

void Explorer::Trace(const std::vector<Choice>& path) {
  Restart();
  for (size_t step = 0; step < path.size(); ++step) {
    std::vector<uint64_t> before;
    for (const Cell* cell : scenario_.memory) before.push_back(cell->value);
    Apply(path[step]);
    for (size_t i = 0; i < before.size(); ++i) {
      const uint64_t now = scenario_.memory[i]->value;
      if (now == before[i]) continue;
      printf("step %zu, process %u: cell %zu, %#lx to %#lx\n", step, path[step].process, i,
             before[i], now);
    }
  }
}

Exploration Explorer::Run(uint64_t max_states) {
  current_ = this;
  Exploration result;
  std::unordered_set<uint64_t> seen;
  struct Frame {
    std::vector<Choice> choices;
    size_t next = 0;
  };
  std::vector<Frame> stack;
  std::vector<Choice> path;
  const auto fail = [&](std::string what) {
    result.failure = std::move(what);
    for (const Choice& c : path) {
      result.schedule += (c.kill ? "x" : "") + std::to_string(c.process);
      if (c.result > 0) result.schedule += static_cast<char>('a' + c.result - 1);
    }
  };
  Restart();
  bool at_path = true;  // the fibers stand where `path` ends
  stack.push_back({Choices()});
  seen.insert(StateHash());
  while (!stack.empty() && result.failure.empty() && seen.size() < max_states) {
    Frame& top = stack.back();
    if (top.next == top.choices.size()) {
      stack.pop_back();
      if (!path.empty()) path.pop_back();
      at_path = false;
      continue;
    }
    const Choice choice = top.choices[top.next++];
    if (!at_path) {
      Restart();
      for (const Choice& c : path) Apply(c);
    }
    Apply(choice);
    path.push_back(choice);
    at_path = true;
    if (path.size() > kMaxDepth) {
      fail("a process does not end");
      break;
    }
    if (!seen.insert(StateHash()).second) {
      path.pop_back();
      at_path = false;
      continue;
    }
    std::vector<Choice> next = Choices();
    if (next.empty()) {
      ++result.ends;
      std::vector<bool> killed;
      for (const Fiber& fiber : fibers_) killed.push_back(fiber.killed);
      std::string wrong = scenario_.check(killed);
      if (!wrong.empty()) fail(std::move(wrong));
      path.pop_back();
      at_path = false;
      continue;
    }
    stack.push_back({std::move(next)});
  }
  result.states = seen.size();
  result.complete = result.failure.empty() && stack.empty();
  if (!result.failure.empty() && getenv("MODEL_TRACE") != nullptr) Trace(path);
  current_ = nullptr;
  return result;
}

}  // namespace sluice::model
