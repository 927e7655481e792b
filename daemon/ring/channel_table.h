#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "daemon/ring/ring.h"

namespace sluice::ring {

// The slots of a back end's channels. An id is the slot's generation above its position, and the
// generation grows with each tenant, so an id never reaches a later channel. Channels keep their
// place in memory: the kernel holds pointers into them.
template <typename Channel>
class ChannelTable {
 public:
  // A fresh channel and its id; null above kMaxChannels.
  Channel* Insert(ChannelId* id) {
    uint32_t index;
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else if (slots_.size() < kMaxChannels) {
      index = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      return nullptr;
    }
    Slot& slot = slots_[index];
    slot.channel = std::make_unique<Channel>();
    ++in_use_;
    *id = ChannelId{static_cast<uint64_t>(slot.generation) << 32 | (index + 1)};
    return slot.channel.get();
  }

  // Null for an id that is unknown, or whose channel was released.
  Channel* Find(ChannelId id) const {
    const uint64_t position = id.value & UINT32_MAX;
    if (position == 0 || position > slots_.size()) return nullptr;
    const Slot& slot = slots_[position - 1];
    return slot.generation == id.value >> 32 ? slot.channel.get() : nullptr;
  }

  // Frees the slot for a next tenant and hands its channel out.
  std::unique_ptr<Channel> Release(ChannelId id) {
    if (Find(id) == nullptr) return nullptr;
    const auto index = static_cast<uint32_t>((id.value & UINT32_MAX) - 1);
    ++slots_[index].generation;
    free_.push_back(index);
    --in_use_;
    return std::move(slots_[index].channel);
  }

  std::vector<ChannelId> Ids() const {
    std::vector<ChannelId> ids;
    for (uint64_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].channel) {
        ids.push_back(ChannelId{static_cast<uint64_t>(slots_[i].generation) << 32 | (i + 1)});
      }
    }
    return ids;
  }

  size_t in_use() const { return in_use_; }

 private:
  struct Slot {
    uint32_t generation = 1;
    std::unique_ptr<Channel> channel;
  };
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  size_t in_use_ = 0;
};

}  // namespace sluice::ring
