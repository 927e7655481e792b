#include "tests/simulation/network.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace sluice::simulation {
namespace {

// What a cut held back is sent anew by a timer that backs off.
constexpr uint64_t kResendMostNs = 400 * kMs;
constexpr double kPieces = 0.3;       // of the replies come in pieces though nothing is wrong
constexpr double kLostOnClose = 0.1;  // of the connections closed lose what is on its way

}  // namespace

std::string NodeHost(int node) { return "10.0.0." + std::to_string(node + 1); }

Network::Network(Timeline* timeline, Trace* trace, Random random, int hosts, int nodes)
    : timeline_(timeline),
      trace_(trace),
      random_(random),
      hosts_(hosts),
      nodes_(nodes),
      links_(static_cast<size_t>(hosts * nodes)) {}

WireId Network::Open(SimRing* ring, ring::ChannelId channel, int host, int node) {
  const WireId id = next_wire_++;
  Wire& wire = wires_[id];
  wire.host = host;
  wire.node = node;
  wire.ring = ring;
  wire.channel = channel;
  trace_->Note("connect", static_cast<uint64_t>(host), static_cast<uint64_t>(node), id);
  Push(id, /*out=*/true, {Kind::kOpen, "", false});
  return id;
}

bool Network::Send(WireId id, std::string bytes) {
  Wire& wire = wires_.at(id);
  const Link& link = this->link(wire.host, wire.node);
  trace_->Bytes("send", id, static_cast<uint64_t>(wire.host), bytes);
  if (on_sent_) on_sent_(id, bytes);
  if (random_.Chance(link.swallow)) wire.silent = true;
  // A socket takes what it has room for; beyond that the sender waits.
  const bool leaves = !link.cut_out || random_.Chance(0.7);
  if (bytes.size() > 1 && random_.Chance(kPieces)) {
    const size_t cut = 1 + random_.Below(bytes.size() - 1);
    Push(id, true, {Kind::kData, bytes.substr(0, cut), false});
    bytes.erase(0, cut);
  }
  Push(id, true, {Kind::kData, std::move(bytes), !leaves});
  return leaves;
}

void Network::CloseFromHost(WireId id) {
  const auto found = wires_.find(id);
  if (found == wires_.end()) return;
  found->second.ring = nullptr;
  if (random_.Chance(kLostOnClose)) found->second.silent = true;
  trace_->Note("close", id, found->second.silent);
  Push(id, true, {Kind::kEnd, "", false});
}

void Network::Reply(WireId id, std::string bytes) {
  const auto found = wires_.find(id);
  if (found == wires_.end() || bytes.empty()) return;
  Wire& wire = found->second;
  if (wire.deaf) return;
  const Link& link = this->link(wire.host, wire.node);
  trace_->Bytes("reply", id, static_cast<uint64_t>(wire.node), bytes);
  if (++replies_ == cut_.number) {
    cut_reply_ = bytes;
    bytes.resize(std::min(cut_.bytes, bytes.size()));
    if (!bytes.empty()) Push(id, false, {Kind::kData, std::move(bytes), false});
    return EndAfterReply(id, wire, cut_.reset);
  }
  const bool truncate = random_.Chance(link.truncate);
  const bool half_close = !truncate && random_.Chance(link.half_close);
  if (truncate) bytes.resize(random_.Below(bytes.size()));
  if (link.drip_ns != 0) {
    ReplyInPieces(id, bytes, link.drip_ns, 8);
  } else if (random_.Chance(kPieces)) {
    ReplyInPieces(id, bytes, 0, std::max<size_t>(bytes.size() / 3, 1));
  } else if (!bytes.empty()) {
    Push(id, false, {Kind::kData, std::move(bytes), false});
  }
  if (truncate || half_close) EndAfterReply(id, wire, truncate);
}

void Network::EndAfterReply(WireId id, Wire& wire, bool reset) {
  wire.deaf = true;
  Push(id, false, {reset ? Kind::kReset : Kind::kEnd, "", false});
  if (!reset) return;
  servers_->OnHangUp(wire.node, id);
  wire.served = false;
}

void Network::ReplyInPieces(WireId id, std::string_view bytes, uint64_t gap_ns, size_t most_bytes) {
  uint64_t extra_ns = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t n = std::min<size_t>(1 + random_.Below(most_bytes), bytes.size() - at);
    Push(id, false, {Kind::kData, std::string(bytes.substr(at, n)), false}, extra_ns);
    at += n;
    extra_ns += gap_ns;
  }
}

void Network::Reset(int host, int node) {
  for (auto& [id, wire] : wires_) {
    if (wire.host != host || wire.node != node || !wire.served) continue;
    servers_->OnHangUp(node, id);
    HangUp(id);
  }
}

void Network::HangUp(WireId id) {
  const auto found = wires_.find(id);
  if (found == wires_.end()) return;
  found->second.served = false;
  found->second.deaf = true;
  Push(id, false, {Kind::kReset, "", false});
}

void Network::DropNode(int node, bool silent) {
  for (auto& [id, wire] : wires_) {
    if (wire.node != node || !wire.served) continue;
    wire.served = false;
    if (silent) {
      wire.silent = true;
    } else {
      wire.deaf = true;
      Push(id, false, {Kind::kReset, "", false});
    }
  }
}

void Network::Push(WireId id, bool out, Segment segment, uint64_t extra_ns) {
  Wire& wire = wires_.at(id);
  const Link& link = this->link(wire.host, wire.node);
  Direction& direction = out ? wire.out : wire.back;
  const uint64_t at_ns =
      timeline_->now_ns() + random_.Between(link.least_ns, link.most_ns) + extra_ns;
  direction.last_ns = std::max(direction.last_ns, at_ns);
  timeline_->At(direction.last_ns, [this, id, out, segment = std::move(segment)]() mutable {
    Arrive(id, out, std::move(segment));
  });
}

void Network::Arrive(WireId id, bool out, Segment segment) {
  const auto found = wires_.find(id);
  if (found == wires_.end()) return;
  Wire& wire = found->second;
  if (wire.silent) return;
  const Link& link = this->link(wire.host, wire.node);
  Direction& direction = out ? wire.out : wire.back;
  if ((out ? link.cut_out : link.cut_back) || !direction.parked.empty()) {
    direction.parked.push_back(std::move(segment));
    return;
  }
  if (out) {
    DeliverOut(id, wire, std::move(segment));
  } else {
    DeliverBack(wire, segment);
  }
}

void Network::DeliverOut(WireId id, Wire& wire, Segment segment) {
  if (segment.tell_sent && wire.ring != nullptr) wire.ring->OnSent(wire.channel);
  switch (segment.kind) {
    case Kind::kOpen:
      switch (servers_->OnConnect(wire.node, id)) {
        case Servers::Answer::kAccept:
          wire.served = true;
          return Push(id, false, {Kind::kAccepted, "", false});
        case Servers::Answer::kRefuse:
          return Push(id, false, {Kind::kRefused, "", false});
        case Servers::Answer::kSilence:
          return;
      }
      return;
    case Kind::kData:
      if (wire.served) return servers_->OnRequest(wire.node, id, std::move(segment.bytes));
      if (!wire.deaf) Push(id, false, {Kind::kReset, "", false});
      return;
    default:
      if (wire.served) servers_->OnHangUp(wire.node, id);
      wires_.erase(id);
  }
}

void Network::DeliverBack(Wire& wire, const Segment& segment) {
  if (wire.ring == nullptr) return;
  switch (segment.kind) {
    case Kind::kAccepted:
      return wire.ring->OnOpened(wire.channel, 0);
    case Kind::kRefused:
      return wire.ring->OnOpened(wire.channel, ECONNREFUSED);
    case Kind::kData:
      return wire.ring->OnBytes(wire.channel, segment.bytes);
    case Kind::kReset:
      return wire.ring->OnEnd(wire.channel, ECONNRESET);
    default:
      return wire.ring->OnEnd(wire.channel, 0);
  }
}

void Network::Heal(int host, int node) {
  const Link& link = this->link(host, node);
  std::vector<WireId> ids;
  for (const auto& [id, wire] : wires_) {
    if (wire.host == host && wire.node == node) ids.push_back(id);
  }
  for (const WireId id : ids) {
    if (!link.cut_out) Unpark(id, true);
    if (!link.cut_back) Unpark(id, false);
  }
}

void Network::Unpark(WireId id, bool out) {
  Wire& wire = wires_.at(id);
  Direction& direction = out ? wire.out : wire.back;
  if (direction.parked.empty()) return;
  const uint64_t late_ns = random_.Below(kResendMostNs);
  for (Segment& segment : std::exchange(direction.parked, {})) {
    Push(id, out, std::move(segment), late_ns);
  }
}

SimRing::~SimRing() {
  for (const ring::ChannelId id : channels_.Ids()) Close(id);
}

absl::StatusOr<ring::ChannelId> SimRing::Connect(const ring::Address& address,
                                                 ring::Handler* handler) {
  const auto* ip = reinterpret_cast<const sockaddr_in*>(&address.storage);
  const int node = static_cast<int>(ntohl(ip->sin_addr.s_addr) & 0xff) - 1;
  if (address.family() != AF_INET || node < 0 || node >= network_->nodes()) {
    return absl::UnavailableError("no such address");
  }
  ring::ChannelId id;
  Channel* channel = channels_.Insert(&id);
  if (channel == nullptr) return absl::ResourceExhaustedError("too many channels are open");
  channel->handler = handler;
  channel->wire = network_->Open(this, id, host_, node);
  return id;
}

absl::StatusOr<ring::ChannelId> SimRing::Adopt(int, ring::Handler*) {
  return absl::UnimplementedError("a simulation has no sockets");
}

absl::Status SimRing::Send(ring::ChannelId id, std::string bytes) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr) return absl::NotFoundError("send on a closed channel");
  if (channel->sending) return absl::FailedPreconditionError("a send is in flight already");
  if (bytes.empty()) return absl::InvalidArgumentError("nothing to send");
  channel->sending = true;
  channel->buffer = bytes;
  if (network_->Send(channel->wire, std::move(bytes))) OnSent(id);
  return absl::OkStatus();
}

absl::Status SimRing::Recv(ring::ChannelId id) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr) return absl::NotFoundError("receive on a closed channel");
  if (channel->receiving) return absl::FailedPreconditionError("a receive is in flight already");
  channel->receiving = true;
  MarkReady(id, channel);
  return absl::OkStatus();
}

absl::Status SimRing::FinishSending(ring::ChannelId) { return absl::OkStatus(); }

void SimRing::Close(ring::ChannelId id) {
  const std::unique_ptr<Channel> channel = channels_.Release(id);
  if (channel != nullptr) network_->CloseFromHost(channel->wire);
}

absl::StatusOr<size_t> SimRing::Wait(int64_t) {
  size_t ran = 0;
  for (size_t left = ready_.size(); left > 0; --left) {
    const ring::ChannelId id = ready_.front();
    ready_.pop_front();
    Channel* channel = channels_.Find(id);
    if (channel == nullptr) continue;
    channel->queued = false;
    if (!IsReady(*channel)) continue;
    Complete(id, channel);
    ++ran;
    channel = channels_.Find(id);
    if (channel != nullptr) MarkReady(id, channel);
  }
  return ran;
}

void SimRing::Complete(ring::ChannelId id, Channel* channel) {
  if (std::exchange(channel->opened, false)) {
    return channel->handler->OnConnected(id, channel->open_error);
  }
  if (std::exchange(channel->sent, false)) {
    channel->sending = false;
    return channel->handler->OnSent(id, std::exchange(channel->buffer, {}), 0);
  }
  channel->receiving = false;
  if (channel->inbox.empty()) return channel->handler->OnReceived(id, {}, channel->end_error);
  const std::string bytes = channel->inbox.substr(0, ring::kRecvBytes);
  channel->inbox.erase(0, bytes.size());
  channel->handler->OnReceived(id, absl::MakeConstSpan(bytes.data(), bytes.size()), 0);
}

void SimRing::MarkReady(ring::ChannelId id, Channel* channel) {
  if (channel->queued || !IsReady(*channel)) return;
  channel->queued = true;
  ready_.push_back(id);
  on_ready_();
}

void SimRing::OnOpened(ring::ChannelId id, int error) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr) return;
  channel->opened = true;
  channel->open_error = error;
  MarkReady(id, channel);
}

void SimRing::OnSent(ring::ChannelId id) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr) return;
  channel->sent = true;
  MarkReady(id, channel);
}

void SimRing::OnBytes(ring::ChannelId id, std::string_view bytes) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr) return;
  channel->inbox.append(bytes);
  MarkReady(id, channel);
}

void SimRing::OnEnd(ring::ChannelId id, int error) {
  Channel* channel = channels_.Find(id);
  if (channel == nullptr || channel->ended) return;
  channel->ended = true;
  channel->end_error = error;
  MarkReady(id, channel);
}

}  // namespace sluice::simulation
