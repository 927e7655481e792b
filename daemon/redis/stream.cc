#include "daemon/redis/stream.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::redis {

absl::Status PlainStream::Open(const ring::Address& address, const std::string&) {
  absl::StatusOr<ring::ChannelId> channel = ring_->Connect(address, this);
  if (!channel.ok()) return channel.status();
  channel_ = *channel;
  return absl::OkStatus();
}

absl::Status PlainStream::Write(std::string bytes) {
  return ring_->Send(channel_, std::move(bytes));
}

void PlainStream::Close() { ring_->Close(std::exchange(channel_, {})); }

void PlainStream::CloseWith(std::string_view last_words) {
  ring_->CloseWith(std::exchange(channel_, {}), last_words);
}

void PlainStream::End(const StreamEnd& why) {
  Close();
  observer_->OnEnd(why);
}

void PlainStream::OnConnected(ring::ChannelId channel, int error) {
  if (error != 0) return End({std::strerror(error)});
  absl::Status status = ring_->Recv(channel);
  if (!status.ok()) return End({std::string(status.message())});
  observer_->OnOpen();
}

void PlainStream::OnSent(ring::ChannelId, std::string buffer, int error) {
  // The peer has gone, yet its last words may lie there unread: the receive in flight tells them,
  // and then the end.
  if (error == EPIPE || error == ECONNRESET) return;
  if (error != 0) return End({std::strerror(error)});
  buffer.clear();
  observer_->OnWritten(std::move(buffer));
}

void PlainStream::OnReceived(ring::ChannelId channel, absl::Span<const char> bytes, int error) {
  if (error != 0) return End({std::strerror(error)});
  if (bytes.empty()) return End({"the server closed the connection"});
  observer_->OnBytes(std::string_view(bytes.data(), bytes.size()));
  if (channel != channel_) return;  // closed, or already another, by the observer
  absl::Status status = ring_->Recv(channel);
  if (!status.ok()) End({std::string(status.message())});
}

}  // namespace sluice::redis
