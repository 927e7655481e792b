#include <charconv>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "ctl/workload.h"
#include "ctl/zipf.h"

namespace sluice::ctl {
namespace {

// What users ask for. An API's usual mix: much reading, some dear work.
struct Route {
  std::string_view path;
  std::string_view method;
  uint32_t per_mille;
};
constexpr Route kRoutes[] = {
    {"/v1/chat", "POST", 400}, {"/v1/metadata", "GET", 250}, {"/v1/generate", "POST", 200},
    {"/v1/files", "GET", 100}, {"/v1/files", "PUT", 30},     {"/v1/account", "GET", 20},
};

uint64_t Mix(uint64_t h) {
  h += 0x9e3779b97f4a7c15;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  return h ^ (h >> 31);
}

// Writes into a fixed buffer; a generated value is short.
class Text {
 public:
  Text& Set(std::string_view prefix) {
    std::memcpy(data_, prefix.data(), prefix.size());
    size_ = prefix.size();
    return *this;
  }
  Text& Add(char c) {
    data_[size_++] = c;
    return *this;
  }
  Text& Add(uint64_t number) {
    size_ = static_cast<size_t>(std::to_chars(data_ + size_, data_ + sizeof(data_), number).ptr -
                                data_);
    return *this;
  }
  std::string_view view() const { return {data_, size_}; }

 private:
  char data_[48];
  size_t size_ = 0;
};

// Requests k = index, index + count, ... of the whole workload.
class GeneratedStream : public Stream {
 public:
  GeneratedStream(const GeneratorOptions& options, uint32_t index, uint32_t count)
      : options_(options),
        zipf_(options.keys, options.skew),
        at_(index),
        step_(count),
        random_(Mix(options.seed * 0x10001 + index)) {
    paid_.reserve(options.tenants);
    Text text;
    for (uint32_t t = 0; t < options.tenants; ++t) {
      paid_.push_back(TierOf(text.Set("tenant-").Add(uint64_t{t} + 1).view(), options.paid_share) ==
                      "paid");
    }
  }

  bool Next(Request* request) override {
    const uint64_t rank = zipf_.Draw([this] { return Uniform(); });
    const uint64_t traits = Mix(rank);
    const uint64_t tenant = traits % options_.tenants;
    const uint64_t address = (traits >> 32) % options_.addresses;
    user_.Set("user-").Add(rank);
    tenant_.Set("tenant-").Add(tenant + 1);
    ip_.Set("10.")
        .Add(address / 62'500)
        .Add('.')
        .Add(address / 250 % 250)
        .Add('.')
        .Add(address % 250 + 1);
    const Route& route = PickRoute();
    size_t n = 0;
    Put(&n, "ip", ip_.view());
    Put(&n, "route", route.path);
    Put(&n, "method", route.method);
    Put(&n, "user", user_.view());
    Put(&n, "tenant", tenant_.view());
    Put(&n, "tier", paid_[tenant] ? "paid" : "free");
    request->descriptors = descriptors_;
    request->count = n;
    request->due_ns = options_.rate > 0
                          ? static_cast<uint64_t>(static_cast<double>(at_) * 1e9 / options_.rate)
                          : 0;
    at_ += step_;
    return true;
  }

 private:
  uint64_t Random() { return Mix(++random_); }
  double Uniform() { return static_cast<double>(Random() >> 11) * 0x1p-53; }
  const Route& PickRoute() {
    uint32_t at = static_cast<uint32_t>((Random() >> 32) % 1000);
    for (const Route& route : kRoutes) {
      if (at < route.per_mille) return route;
      at -= route.per_mille;
    }
    return kRoutes[0];
  }
  void Put(size_t* n, std::string_view name, std::string_view value) {
    descriptors_[(*n)++] = {name.data(), name.size(), value.data(), value.size()};
  }

  GeneratorOptions options_;
  Zipf zipf_;
  uint64_t at_;
  uint64_t step_;
  uint64_t random_;
  std::vector<bool> paid_;
  Text user_;
  Text tenant_;
  Text ip_;
  sluice_descriptor_t descriptors_[6];
};

template <class Number>
bool ParseInto(std::string_view text, double low, double high, Number* out) {
  Number value{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return false;
  // Written so that "nan" fails.
  if (!(static_cast<double>(value) >= low && static_cast<double>(value) <= high)) return false;
  *out = value;
  return true;
}

}  // namespace

absl::StatusOr<GeneratorOptions> ParseGeneratorOptions(std::string_view text) {
  GeneratorOptions options;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string_view part = text.substr(at, end - at);
    at = end + 1;
    const size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : part.substr(equals + 1);
    const char* range = nullptr;
    bool is_good = false;
    if (name == "keys") {
      range = "1 to 100000000";
      is_good = ParseInto(value, 1, 1e8, &options.keys);
    } else if (name == "skew") {
      range = "0 to 4";
      is_good = ParseInto(value, 0, 4, &options.skew);
    } else if (name == "rate") {
      range = "requests/s from 0 (as fast as can be) to 1000000000";
      is_good = ParseInto(value, 0, 1e9, &options.rate);
    } else if (name == "tenants") {
      range = "1 to 1000000";
      is_good = ParseInto(value, 1, 1e6, &options.tenants);
    } else if (name == "addresses") {
      range = "1 to 1000000";
      is_good = ParseInto(value, 1, 1e6, &options.addresses);
    } else if (name == "seed") {
      range = "a number from 0";
      is_good = ParseInto(value, 0, 1.9e19, &options.seed);
    } else if (name == "paid") {
      range = "a share from 0 to 1";
      is_good = ParseInto(value, 0, 1, &options.paid_share);
    }
    if (is_good) continue;
    return absl::InvalidArgumentError(
        range == nullptr
            ? absl::StrCat("--generate: '", std::string(part),
                           "' is not one of keys=N skew=S rate=R tenants=N addresses=N seed=N "
                           "paid=SHARE")
            : absl::StrCat("--generate: ", std::string(name), " takes ", range, ", not '",
                           std::string(value), "'"));
  }
  return options;
}

std::unique_ptr<Stream> GeneratedWorkload::NewStream(uint32_t index, uint32_t count) const {
  return std::make_unique<GeneratedStream>(options_, index, count);
}

}  // namespace sluice::ctl
