#include "ctl/access_log.h"

#include <arpa/inet.h>

#include <array>
#include <charconv>
#include <vector>

namespace sluice::ctl {
namespace {

// A time stands in brackets; a user's name may hold brackets too, so a few places are tried.
constexpr int kMaxTimeCandidates = 8;
// address, ident and user are 3 fields; a virtual host, forwarded addresses and the words of a
// user's name come on top.
constexpr size_t kMaxHeadFields = 64;
constexpr size_t kMaxMethodBytes = 32;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

std::string_view StripSpaces(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::string_view DashIsEmpty(std::string_view text) {
  return text == "-" || text == "\"\"" ? std::string_view() : text;
}

// Takes `digits` digits off the front of `text`.
bool TakeNumber(std::string_view* text, size_t digits, int* value) {
  if (text->size() < digits) return false;
  *value = 0;
  for (size_t i = 0; i < digits; ++i) {
    if (!IsDigit((*text)[i])) return false;
    *value = *value * 10 + ((*text)[i] - '0');
  }
  text->remove_prefix(digits);
  return true;
}
bool TakeChar(std::string_view* text, char c) {
  if (text->empty() || text->front() != c) return false;
  text->remove_prefix(1);
  return true;
}

// Days since 1970-01-01 of a date of the Gregorian calendar.
int64_t DaysFromDate(int year, int month, int day) {
  const int64_t y = year - (month <= 2 ? 1 : 0);
  const int64_t era = (y >= 0 ? y : y - 399) / 400;
  const int64_t year_of_era = y - era * 400;
  const int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
         719468;
}

int DaysInMonth(int year, int month) {
  static constexpr std::array<int, 12> kDays = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return month == 2 && is_leap ? 29 : kDays[static_cast<size_t>(month - 1)];
}

bool TakeMonthName(std::string_view* text, int* month) {
  static constexpr std::array<std::string_view, 12> kNames = {
      "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"};
  if (text->size() < 3) return false;
  for (size_t i = 0; i < kNames.size(); ++i) {
    bool is_equal = true;
    for (size_t j = 0; j < 3; ++j) {
      is_equal = is_equal && static_cast<char>((*text)[j] | 0x20) == kNames[i][j];
    }
    if (is_equal) {
      *month = static_cast<int>(i) + 1;
      text->remove_prefix(3);
      return true;
    }
  }
  return false;
}

// "+0200", "+02:00", "Z" or nothing.
bool TakeZone(std::string_view* text, int* minutes) {
  *minutes = 0;
  *text = StripSpaces(*text);
  if (text->empty() || TakeChar(text, 'Z')) return true;
  const bool is_west = text->front() == '-';
  if (!TakeChar(text, '+') && !TakeChar(text, '-')) return false;
  int hours = 0;
  int rest = 0;
  if (!TakeNumber(text, 2, &hours)) return false;
  TakeChar(text, ':');
  if (!TakeNumber(text, 2, &rest) || hours > 15 || rest > 59) return false;
  *minutes = (hours * 60 + rest) * (is_west ? -1 : 1);
  return true;
}

// After the closing quote of a request comes its status: " 200 ", " -", or a cut line's end.
bool IsStatusNext(std::string_view rest) {
  if (rest.size() < 2 || rest[0] != ' ') return false;
  if (rest[1] == '-') return rest.size() == 2 || rest[2] == ' ';
  if (rest.size() < 4 || !IsDigit(rest[1]) || !IsDigit(rest[2]) || !IsDigit(rest[3])) return false;
  return rest.size() == 4 || rest[4] == ' ';
}
bool IsFieldEnd(std::string_view rest) { return rest.empty() || rest[0] == ' '; }

// The closing quote of a field that begins at `text`. A server escapes quotes inside; an old one
// does not, and some leave a backslash at the end bare. So: the first unescaped quote after which
// `is_end` holds, else the first quote of any kind after which it holds, else the first unescaped.
template <class IsEnd>
size_t FindClosingQuote(std::string_view text, IsEnd is_end) {
  size_t first = std::string_view::npos;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      if (is_end(text.substr(i + 1))) return i;
      if (first == std::string_view::npos) first = i;
    }
  }
  for (size_t i = text.find('"'); i != std::string_view::npos; i = text.find('"', i + 1)) {
    if (is_end(text.substr(i + 1))) return i;
  }
  return first;
}

int HexDigit(char c) {
  if (IsDigit(c)) return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// Undoes \xNN, \", \\ and C's letters.
void Unescape(std::string_view text, std::string* out) {
  out->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out->push_back(text[i]);
      continue;
    }
    const char c = text[++i];
    if (c == 'x' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out->push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2])));
      i += 2;
      continue;
    }
    switch (c) {
      case 'n':
        out->push_back('\n');
        break;
      case 't':
        out->push_back('\t');
        break;
      case 'r':
        out->push_back('\r');
        break;
      case 'b':
        out->push_back('\b');
        break;
      case 'v':
        out->push_back('\v');
        break;
      case '"':
      case '\\':
        out->push_back(c);
        break;
      default:
        out->push_back('\\');
        out->push_back(c);
    }
  }
}

// "METHOD target PROTOCOL/n"; HTTP/0.9 has no protocol. The target may hold spaces.
bool ParseRequestLine(std::string_view request, LogEntry* entry) {
  const size_t space = request.find(' ');
  if (space == std::string_view::npos || space == 0 || space > kMaxMethodBytes) return false;
  const std::string_view method = request.substr(0, space);
  for (const char c : method) {
    if (!IsLetter(c) && c != '-' && c != '_') return false;
  }
  std::string_view target = StripSpaces(request.substr(space + 1));
  bool has_protocol = false;
  const size_t last = target.rfind(' ');
  const std::string_view tail =
      last == std::string_view::npos ? std::string_view() : target.substr(last + 1);
  if (const size_t slash = tail.find('/'); slash != std::string_view::npos && slash > 0 &&
                                           slash + 1 < tail.size() && IsLetter(tail[0]) &&
                                           IsDigit(tail[slash + 1])) {
    if (tail.substr(0, 4) != "HTTP" && tail.substr(0, 4) != "http") return false;  // RTSP, SIP
    has_protocol = true;
    target = StripSpaces(target.substr(0, last));
  }
  if (target.empty()) return false;
  if (!has_protocol && target[0] != '/' && target.find("://") == std::string_view::npos) {
    return false;
  }
  entry->method = method;
  entry->target = target;
  return true;
}

// Takes the brackets off "[::1]" and "[::1]:443", and the port off "192.0.2.1:443".
std::string_view StripPort(std::string_view address) {
  if (address.size() > 2 && address.front() == '[') {
    const size_t close = address.find(']');
    if (close != std::string_view::npos) return address.substr(1, close - 1);
  }
  const size_t colon = address.find(':');
  if (colon != std::string_view::npos && address.find(':', colon + 1) == std::string_view::npos &&
      IsIpAddress(address.substr(0, colon))) {
    return address.substr(0, colon);
  }
  return address;
}

struct Head {
  std::string_view fields[kMaxHeadFields];
  size_t count = 0;
};

// Splits what stands before the time; the last field takes what does not fit.
Head SplitHead(std::string_view text) {
  Head head;
  size_t at = 0;
  while (at < text.size() && head.count < kMaxHeadFields) {
    if (text[at] == ' ' || text[at] == '\t') {
      ++at;
      continue;
    }
    const size_t end = std::min(text.find(' ', at), text.size());
    head.fields[head.count++] = text.substr(at, end - at);
    at = end;
  }
  return head;
}

// [vhost] address[, address...] ident user words...
bool ParseHead(std::string_view text, LogEntry* entry) {
  const Head head = SplitHead(text);
  if (head.count == 0) return false;
  size_t at = 0;
  const auto field = [&](size_t i) {
    std::string_view f = i < head.count ? head.fields[i] : std::string_view();
    if (f.size() >= 2 && f.front() == '"' && f.back() == '"') f = f.substr(1, f.size() - 2);
    return f;
  };
  const auto is_address = [&](std::string_view f) {
    if (!f.empty() && f.back() == ',') f.remove_suffix(1);
    return IsIpAddress(StripPort(f));
  };
  // A virtual host or a "-" stands before the address.
  if (!is_address(field(0)) && is_address(field(1)) && !field(0).ends_with(',')) at = 1;
  // Of forwarded addresses the first that is one is the client.
  std::string_view address;
  bool is_list = true;
  while (is_list && at < head.count) {
    std::string_view f = field(at++);
    is_list = !f.empty() && f.back() == ',';
    if (is_list) f.remove_suffix(1);
    const size_t comma = f.find(',');
    if (comma != std::string_view::npos) f = f.substr(0, comma);
    if ((address.empty() || address == "unknown") && f != "-") address = StripPort(f);
  }
  if (address.empty()) return false;
  entry->address = address;
  if (at + 1 < head.count) {
    const char* begin = head.fields[at + 1].data();
    entry->user =
        DashIsEmpty(StripSpaces({begin, static_cast<size_t>(text.data() + text.size() - begin)}));
  }
  return true;
}

// A quoted field at the front of `rest`, or nothing.
std::string_view TakeQuoted(std::string_view* rest) {
  *rest = StripSpaces(*rest);
  if (rest->empty() || rest->front() != '"') return {};
  const std::string_view text = rest->substr(1);
  const size_t end = FindClosingQuote(text, IsFieldEnd);
  const std::string_view value = text.substr(0, end);
  *rest = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return DashIsEmpty(value);
}

std::string_view TakeWord(std::string_view* rest) {
  *rest = StripSpaces(*rest);
  const size_t end = std::min(rest->find(' '), rest->size());
  const std::string_view word = rest->substr(0, end);
  if (!word.empty() && word.front() == '"') return {};
  rest->remove_prefix(end);
  return word;
}

// Finds " [time]"; `*head` is what stands before, `*tail` what comes after.
bool SplitAtTime(std::string_view line, std::string_view* head, std::string_view* tail,
                 int64_t* time_ms) {
  size_t open = line.find('[');
  for (int i = 0; i < kMaxTimeCandidates && open != std::string_view::npos; ++i) {
    const size_t close = line.find(']', open);
    if (close == std::string_view::npos) return false;
    if (ParseLogTime(line.substr(open + 1, close - open - 1), time_ms)) {
      *head = line.substr(0, open);
      *tail = line.substr(close + 1);
      return true;
    }
    open = line.find('[', open + 1);
  }
  return false;
}

}  // namespace

bool ParseLogTime(std::string_view text, int64_t* time_ms) {
  text = StripSpaces(text);
  int year = 0;
  int month = 0;
  int day = 0;
  int hour = 0;
  int minute = 0;
  int second = 0;
  int zone_minutes = 0;
  const bool is_iso = text.size() > 4 && text[4] == '-';
  if (is_iso) {
    if (!TakeNumber(&text, 4, &year) || !TakeChar(&text, '-') || !TakeNumber(&text, 2, &month) ||
        !TakeChar(&text, '-') || !TakeNumber(&text, 2, &day) ||
        (!TakeChar(&text, 'T') && !TakeChar(&text, ' '))) {
      return false;
    }
  } else {
    const size_t day_digits = text.size() > 1 && text[1] == '/' ? 1 : 2;
    if (!TakeNumber(&text, day_digits, &day) || !TakeChar(&text, '/') ||
        !TakeMonthName(&text, &month) || !TakeChar(&text, '/') || !TakeNumber(&text, 4, &year) ||
        !TakeChar(&text, ':')) {
      return false;
    }
  }
  if (!TakeNumber(&text, 2, &hour) || !TakeChar(&text, ':') || !TakeNumber(&text, 2, &minute) ||
      !TakeChar(&text, ':') || !TakeNumber(&text, 2, &second)) {
    return false;
  }
  int ms = 0;
  if (TakeChar(&text, '.') || TakeChar(&text, ',')) {
    for (int scale = 100; !text.empty() && IsDigit(text.front()); scale /= 10) {
      ms += (text.front() - '0') * scale;
      text.remove_prefix(1);
    }
  }
  if (!TakeZone(&text, &zone_minutes) || !text.empty()) return false;
  if (month < 1 || month > 12 || day < 1 || day > DaysInMonth(year, month) || hour > 23 ||
      minute > 59 || second > 60) {  // 60: a leap second
    return false;
  }
  const int64_t minutes = (DaysFromDate(year, month, day) * 24 + hour) * 60 + minute - zone_minutes;
  *time_ms = (minutes * 60 + second) * 1000 + ms;
  return true;
}

bool IsIpAddress(std::string_view text) {
  const size_t zone = text.find('%');
  if (zone != std::string_view::npos) text = text.substr(0, zone);
  char copy[INET6_ADDRSTRLEN] = {};
  if (text.empty() || text.size() >= sizeof(copy)) return false;
  text.copy(copy, text.size());
  in6_addr address;
  return inet_pton(text.find(':') == std::string_view::npos ? AF_INET : AF_INET6, copy, &address) ==
         1;
}

LineKind LineParser::Parse(std::string_view line, bool is_cut, LogEntry* entry,
                           const char** reason) {
  *entry = LogEntry{};
  *reason = "";
  if (line.substr(0, 3) == "\xef\xbb\xbf") line.remove_prefix(3);  // a byte order mark
  while (!line.empty() && line.front() == '\0') line.remove_prefix(1);
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n')) line.remove_suffix(1);
  line = StripSpaces(line);
  if (line.empty()) return LineKind::kBlank;
  if (line.front() == '#') return LineKind::kComment;
  if (line.front() == '{') {
    *reason = "JSON, not common or combined log format";
    return LineKind::kMalformed;
  }

  std::string_view head;
  std::string_view rest;
  if (!SplitAtTime(line, &head, &rest, &entry->time_ms)) {
    *reason = "no [time]";
    return LineKind::kMalformed;
  }
  if (!ParseHead(head, entry)) {
    *reason = "no client address before the [time]";
    return LineKind::kMalformed;
  }
  const size_t open = rest.find('"');
  if (open == std::string_view::npos) {
    *reason = "no \"request\" after the [time]";
    return LineKind::kMalformed;
  }
  const std::string_view text = rest.substr(open + 1);
  size_t close = FindClosingQuote(text, IsStatusNext);
  if (close == std::string_view::npos) {
    if (!is_cut) {
      *reason = "no closing quote after the request: the line is cut";
      return LineKind::kMalformed;
    }
    close = text.size();
  }
  Unescape(text.substr(0, close), &request_);
  entry->is_http = ParseRequestLine(request_, entry);

  rest = close < text.size() ? text.substr(close + 1) : std::string_view();
  const std::string_view status = TakeWord(&rest);
  int value = 0;
  const auto parsed = std::from_chars(status.data(), status.data() + status.size(), value);
  if (parsed.ec == std::errc() && parsed.ptr == status.data() + status.size() && value > 0 &&
      value < 1000) {
    entry->status = value;
  }
  TakeWord(&rest);  // bytes
  entry->referrer = TakeQuoted(&rest);
  entry->user_agent = TakeQuoted(&rest);
  return LineKind::kEntry;
}

}  // namespace sluice::ctl
