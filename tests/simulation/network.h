// The network between hosts and Redis nodes: connections of bytes in order, each link with its own
// delays and faults, and the ring that a daemon sees of it.
//
// What TCP promises holds: bytes of one connection come in order and once. What it does not promise
// is made use of: they come late, in pieces cut anywhere, after the other side has closed, or not
// at all; and what was sent on an old connection may arrive after what was sent on a new one.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/ring/channel_table.h"
#include "daemon/ring/ring.h"
#include "tests/simulation/random.h"
#include "tests/simulation/timeline.h"
#include "tests/simulation/trace.h"

namespace sluice::simulation {

using WireId = uint64_t;

// Between one host and one node.
struct Link {
  uint64_t least_ns = 100 * kUs;  // one way
  uint64_t most_ns = 600 * kUs;
  bool cut_out = false;   // requests stand still
  bool cut_back = false;  // replies stand still
  double truncate = 0;    // chance that a reply is cut at some byte and the connection reset
  double half_close = 0;  // chance that the node's side ends after a reply, and yet goes on reading
  double swallow = 0;     // chance that a connection falls silent for good
  uint64_t drip_ns = 0;   // replies come a few bytes at a time, so far apart
};

// The nodes' side.
class Servers {
 public:
  enum class Answer { kAccept, kRefuse, kSilence };
  virtual ~Servers() = default;
  virtual Answer OnConnect(int node, WireId wire) = 0;
  virtual void OnRequest(int node, WireId wire, std::string bytes) = 0;
  virtual void OnHangUp(int node, WireId wire) = 0;
};

class SimRing;

class Network {
 public:
  Network(Timeline* timeline, Trace* trace, Random random, int hosts, int nodes);

  Link& link(int host, int node) {
    return links_[static_cast<size_t>(host) * static_cast<size_t>(nodes_) +
                  static_cast<size_t>(node)];
  }
  int hosts() const { return hosts_; }
  int nodes() const { return nodes_; }
  void set_servers(Servers* servers) { servers_ = servers; }
  // Hears of all that hosts send, in order.
  using OnSent = std::function<void(WireId wire, std::string_view bytes)>;
  void set_on_sent(OnSent on_sent) { on_sent_ = std::move(on_sent); }
  // After a change of cut_out or cut_back: what stood still goes on its way.
  void Heal(int host, int node);

  // The reply of this number, from 1 on, comes in so many bytes, and with them its connection ends:
  // is reset, or closed by the node, which goes on reading.
  struct CutOfReply {
    uint64_t number = 0;
    size_t bytes = 0;
    bool reset = false;
  };
  void CutReply(const CutOfReply& cut) { cut_ = cut; }
  // As it was before; empty: not sent yet.
  const std::string& cut_reply() const { return cut_reply_; }

  // Every connection between the two ends at once.
  void Reset(int host, int node);

  // The nodes' side.
  void Reply(WireId wire, std::string bytes);
  // The node is gone; its peers hear of it, unless `silent`.
  void DropNode(int node, bool silent);
  void HangUp(WireId wire);

  // The host's side, for SimRing.
  WireId Open(SimRing* ring, ring::ChannelId channel, int host, int node);
  // True when the bytes have left at once; else the ring is told when they have.
  bool Send(WireId wire, std::string bytes);
  void CloseFromHost(WireId wire);

 private:
  enum class Kind : uint8_t { kOpen, kData, kEnd, kReset, kAccepted, kRefused };
  struct Segment {
    Kind kind = Kind::kData;
    std::string bytes;
    bool tell_sent = false;
  };
  struct Direction {
    uint64_t last_ns = 0;        // arrival of the latest segment
    std::deque<Segment> parked;  // arrived at a cut
  };
  struct Wire {
    int host = 0;
    int node = 0;
    SimRing* ring = nullptr;  // null once closed by the host
    ring::ChannelId channel;
    bool served = false;  // the node has it
    bool silent = false;  // nothing comes through any more, in either direction
    bool deaf = false;    // nothing more comes back
    Direction out;
    Direction back;
  };

  void Push(WireId id, bool out, Segment segment, uint64_t extra_ns = 0);
  void Arrive(WireId id, bool out, Segment segment);
  void DeliverOut(WireId id, Wire& wire, Segment segment);
  void DeliverBack(Wire& wire, const Segment& segment);
  void EndAfterReply(WireId id, Wire& wire, bool reset);
  void ReplyInPieces(WireId id, std::string_view bytes, uint64_t gap_ns, size_t most_bytes);
  void Unpark(WireId id, bool out);

  Timeline* timeline_;
  Trace* trace_;
  Random random_;
  int hosts_;
  int nodes_;
  Servers* servers_ = nullptr;
  OnSent on_sent_;
  std::vector<Link> links_;
  std::map<WireId, Wire> wires_;
  WireId next_wire_ = 1;
  CutOfReply cut_;
  std::string cut_reply_;
  uint64_t replies_ = 0;
};

// One host's ring::Ring. Wait never waits: it runs what is ready; the host decides when to call it.
class SimRing final : public ring::Ring {
 public:
  // `on_ready` is called when something becomes ready.
  SimRing(Network* network, int host, std::function<void()> on_ready)
      : network_(network), host_(host), on_ready_(std::move(on_ready)) {}
  ~SimRing() override;

  absl::StatusOr<ring::ChannelId> Connect(const ring::Address& address,
                                          ring::Handler* handler) override;
  absl::StatusOr<ring::ChannelId> Adopt(int fd, ring::Handler* handler) override;
  absl::Status Send(ring::ChannelId channel, std::string bytes) override;
  absl::Status Recv(ring::ChannelId channel) override;
  absl::Status FinishSending(ring::ChannelId channel) override;
  void Close(ring::ChannelId channel) override;
  absl::StatusOr<size_t> Wait(int64_t timeout_ns) override;
  void Wake() override { on_ready_(); }
  size_t channel_count() const override { return channels_.in_use(); }

  bool has_ready() const { return !ready_.empty(); }

  // From the network.
  void OnOpened(ring::ChannelId channel, int error);
  void OnSent(ring::ChannelId channel);
  void OnBytes(ring::ChannelId channel, std::string_view bytes);
  void OnEnd(ring::ChannelId channel, int error);  // 0: the peer has finished sending

 private:
  struct Channel {
    WireId wire = 0;
    ring::Handler* handler = nullptr;
    bool queued = false;  // in ready_
    bool opened = false, sending = false, sent = false, receiving = false, ended = false;
    int open_error = 0, end_error = 0;
    std::string buffer;  // of the send, given back
    std::string inbox;
  };
  static bool IsReady(const Channel& c) {
    return c.opened || c.sent || (c.receiving && (!c.inbox.empty() || c.ended));
  }
  void MarkReady(ring::ChannelId id, Channel* channel);
  void Complete(ring::ChannelId id, Channel* channel);

  Network* network_;
  int host_;
  std::function<void()> on_ready_;
  ring::ChannelTable<Channel> channels_;
  std::deque<ring::ChannelId> ready_;
};

// Where node n listens: 10.0.0.(n+1):7000.
std::string NodeHost(int node);
inline constexpr uint16_t kNodePort = 7000;

}  // namespace sluice::simulation
