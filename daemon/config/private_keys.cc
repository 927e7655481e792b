#include "daemon/config/private_keys.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "daemon/config/text.h"
#include "shm/layout.h"

namespace sluice::config {
namespace {

constexpr size_t kHashBytes = 16;
constexpr std::string_view kFoldedDescriptor = "~";  // no descriptor has that name
constexpr size_t kMaxOuterBytes = 3 * shm::kKeyTextBytes + 512;

bool IsAll(std::string_view text, bool (*is_good)(unsigned char)) {
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return is_good(static_cast<unsigned char>(c)); });
}

absl::Status Bad(size_t line, std::string_view what, std::string_view mend) {
  return absl::InvalidArgumentError(Cat("line ", line, ": ", what, "; ", mend));
}

}  // namespace

absl::StatusOr<PrivateKeys> PrivateKeys::Parse(std::string_view text) {
  PrivateKeys keys;
  size_t number = 0;
  for (std::string_view line : Split(text, '\n')) {
    ++number;
    line = Trim(line);
    if (line.empty() || line.front() == '#') continue;
    const size_t blank = line.find_first_of(" \t");
    if (blank == std::string_view::npos) {
      return Bad(number, "is no key", "write `ID HEX`, HEX as `openssl rand -hex 32` prints it");
    }
    const std::string_view id = line.substr(0, blank);
    const std::string_view hex = Trim(line.substr(blank));
    if (id.size() > kMaxPrivateKeyIdBytes || !IsAll(id, absl::ascii_isalnum)) {
      return Bad(number, "the ID is not good",
                 Cat("write 1 to ", kMaxPrivateKeyIdBytes, " letters and digits"));
    }
    if (!IsAll(hex, absl::ascii_isxdigit) || hex.size() % 2 != 0 ||
        hex.size() / 2 < kMinSecretBytes || hex.size() / 2 > kMaxSecretBytes) {
      return Bad(number, "the secret is not good",
                 Cat("write ", 2 * kMinSecretBytes, " to ", 2 * kMaxSecretBytes,
                     " hexadecimal digits, as `openssl rand -hex 32` prints them"));
    }
    for (const Key& other : keys.keys_) {
      if (other.id == id) return Bad(number, "that ID stands twice", "give each key its own");
    }
    if (keys.keys_.size() == kMaxPrivateKeys) {
      return Bad(
          number, "is one key too many",
          Cat("keep at most ", kMaxPrivateKeys, ": those that made names which Redis still holds"));
    }
    keys.keys_.push_back({std::string(id), absl::HexStringToBytes(ToAbsl(hex))});
  }
  if (keys.keys_.empty()) {
    return absl::InvalidArgumentError(
        "has no key; write `echo \"1 $(openssl rand -hex 32)\"` into it, the same on all hosts");
  }
  return keys;
}

std::string PrivateKeys::Hash(size_t place, std::string_view descriptor,
                              std::string_view value) const {
  const Key& key = keys_[place];
  const std::string message = Cat(descriptor, std::string_view("\0", 1), value);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.secret.data(), static_cast<int>(key.secret.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest, &size);
  const std::string head(reinterpret_cast<const char*>(digest), kHashBytes);
  return Cat("#", key.id, ".", absl::BytesToHexString(head));
}

std::string OuterName(const shm::ParsedName& name, const Privacy& privacy, size_t place) {
  std::string hashes[shm::ParsedName::kMaxValues];
  std::string_view values[shm::ParsedName::kMaxValues];
  for (size_t i = 0; i < name.count; ++i) {
    values[i] = name.values[i];
    const bool is_known = i < privacy.descriptors.size();
    if (!name.is_folded && is_known && privacy.descriptors[i].empty()) continue;
    const std::string_view descriptor =
        name.is_folded || !is_known ? kFoldedDescriptor : privacy.descriptors[i];
    hashes[i] = privacy.keys->Hash(place, descriptor, name.values[i]);
    values[i] = hashes[i];
  }
  char text[kMaxOuterBytes];
  const size_t n = shm::WriteNameText(name.label, values, name.count, text, sizeof text);
  return {text, std::min(n, sizeof text)};
}

std::string WireName(const shm::ParsedName& name, const Privacy& privacy) {
  std::string wire = OuterName(name, privacy, 0);
  for (size_t place = 1; place < privacy.keys->size(); ++place) {
    wire += '\0';
    wire += OuterName(name, privacy, place);
  }
  return wire;
}

}  // namespace sluice::config
