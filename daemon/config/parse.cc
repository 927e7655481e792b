#include "daemon/config/parse.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "daemon/config/compile.h"
#include "daemon/config/keys.h"
#include "daemon/config/parse_redis.h"
#include "daemon/config/parse_rules.h"
#include "daemon/config/section.h"
#include "daemon/config/text.h"

namespace sluice::config {
namespace {

// Bytes of the UTF-8 character at the head of `text`; 0 when it is none, or a control character
// that YAML forbids (yaml-cpp would take some of them for the end of the file).
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) {
    return (byte(0) >= 0x20 && byte(0) != 0x7f) || absl::ascii_isspace(byte(0)) ? 1 : 0;
  }
  const size_t n = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < n) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates and what lies beyond U+10FFFF.
  const bool bad_second =
      (byte(0) == 0xe0 && byte(1) < 0xa0) || (byte(0) == 0xed && byte(1) > 0x9f) ||
      (byte(0) == 0xf0 && byte(1) < 0x90) || (byte(0) == 0xf4 && byte(1) > 0x8f);
  return bad_second ? 0 : n;
}

// False, with a problem, when the text is not YAML's kind of text.
bool CheckCharacters(std::string_view text, Findings* findings) {
  YAML::Mark mark;
  for (size_t at = 0; at < text.size();) {
    const size_t n = CharacterBytes(text.substr(at));
    if (n == 0) {
      findings->Problem(mark, "", "there is a byte here that is neither UTF-8 text nor a blank",
                        "save the file as UTF-8 text");
      return false;
    }
    ++mark.column;
    if (text[at] == '\n') {
      ++mark.line;
      mark.column = 0;
    }
    at += n;
  }
  return true;
}

// Counts documents and builds nothing.
class DocumentCounter : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override { last_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

  const YAML::Mark& last() const { return last_; }

 private:
  YAML::Mark last_;
};

// Where what follows the first document begins. YAML::LoadAll would say it too, but never ends on
// some texts: a document that begins with "," or "]" takes nothing from the input.
std::optional<YAML::Mark> SecondDocument(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  DocumentCounter counter;
  parser.HandleNextDocument(counter);
  if (!parser) return std::nullopt;
  parser.HandleNextDocument(counter);
  return counter.last();
}

std::string MendOf(std::string_view message, std::string_view line, int column) {
  const std::string_view from =
      column >= 0 && static_cast<size_t>(column) < line.size() ? line.substr(column) : "";
  const std::string_view trimmed = Trim(line);
  if (line.substr(0, line.find_first_not_of(" \t")).find('\t') != std::string_view::npos) {
    return "indent with blanks, not with tabs";
  }
  if (message.find("alias") != std::string_view::npos ||
      message.find("anchor") != std::string_view::npos || from.substr(0, 1) == "*") {
    return "put a value that begins with * or & in quotes, as in \"*\"";
  }
  if (from.substr(0, 1) == "%" || from.substr(0, 1) == "@" || from.substr(0, 1) == "`") {
    return "put a value that begins with %, @ or ` in quotes";
  }
  if (trimmed.find('[') != std::string_view::npos || trimmed.find('{') != std::string_view::npos) {
    return "close each [ and {, and put values that hold them, or ': ', in quotes";
  }
  return "check the indentation and the ':' behind each key; put values with ': ' or '#' in quotes";
}

void ReportYamlError(const YAML::Exception& error, std::string_view text, Findings* findings) {
  std::string_view line;
  if (!error.mark.is_null()) {
    const std::vector<std::string_view> lines = Split(text, '\n');
    if (static_cast<size_t>(error.mark.line) < lines.size()) line = lines[error.mark.line];
  }
  findings->Problem(error.mark, "", Cat("this is not YAML: ", error.msg),
                    MendOf(error.msg, line, error.mark.column));
}

using Texts = std::vector<std::pair<std::string, YAML::Mark>>;

// Whether the rules are there is seen when they are read: CheckChaosRules.
void ParseChaos(Section* daemon, ChaosConfig* chaos, Texts* rules, Findings* findings) {
  Section section(daemon->Value("chaos"), daemon->MarkOf("chaos"), "daemon.chaos", "daemon.chaos",
                  findings);
  section.Read("allow", &chaos->allow);
  section.ReadDuration("max_for", &chaos->max_for_ns);
  section.ReadNumber("max_share", &chaos->max_share);
  section.ReadTexts("rules", rules);
  for (const auto& [name, mark] : *rules) chaos->rules.push_back(name);
}

void CheckChaosRules(const Texts& names, const Config& config, Findings* findings) {
  for (const auto& text : names) {
    const bool is_there =
        std::any_of(config.rules.begin(), config.rules.end(),
                    [&](const RuleConfig& rule) { return rule.name == text.first; });
    if (is_there) continue;
    findings->Problem(text.second, "daemon.chaos.rules",
                      Cat("there is no rule ", Shown(text.first)),
                      "write the names of rules of this file");
  }
}

void ParseDaemon(Section* top, DaemonConfig* daemon, Texts* chaos_rules, Findings* findings) {
  Section section(top->Value("daemon"), top->MarkOf("daemon"), "daemon", "daemon", findings);
  if (section.Read("runtime_dir", &daemon->runtime_dir)) {
    if (daemon->runtime_dir.front() != '/') {
      section.Problem("runtime_dir", Cat(Shown(daemon->runtime_dir), " is no absolute path"),
                      "write it from the root, as in /run/sluice");
    }
    while (daemon->runtime_dir.size() > 1 && daemon->runtime_dir.back() == '/') {
      daemon->runtime_dir.pop_back();
    }
  }
  if (section.Read("checkpoints", &daemon->checkpoints) && daemon->checkpoints.front() != '/') {
    section.Problem("checkpoints", Cat(Shown(daemon->checkpoints), " is no absolute path"),
                    "write it from the root, as in /var/lib/sluice/quotas.db");
  }
  if (section.Read("group", &daemon->group) && !HasOnly(daemon->group, "_-.")) {
    section.Problem("group", Cat(Shown(daemon->group), " is no name of a group"),
                    "write it as `getent group` shows it");
  }
  if (uint64_t buckets = 0; section.Read("buckets", &buckets)) {
    daemon->buckets = std::bit_ceil(buckets);
    if (daemon->buckets != buckets) {
      section.Warning("buckets",
                      Cat(buckets, " is no power of two: ", daemon->buckets, " are kept"),
                      Cat("write ", daemon->buckets));
    }
  }
  daemon->log_keys = std::min(daemon->log_keys, daemon->buckets);
  if (uint64_t keys = 0; section.Read("log_keys", &keys)) {
    daemon->log_keys = std::bit_ceil(keys);
    if (daemon->log_keys > daemon->buckets) {
      section.Problem("log_keys",
                      Cat("rounded up are ", daemon->log_keys, ", more than the ", daemon->buckets,
                          " buckets that they are among"),
                      "write fewer, or more `buckets`");
    }
  }
  if (size_t level = 0; section.ReadChoice("log_level", &level)) {
    daemon->log_level = static_cast<LogLevel>(level);
  }
  ParseChaos(&section, &daemon->chaos, chaos_rules, findings);
}

void ParseDocument(const YAML::Node& document, ParseResult* result, Findings* findings) {
  Section top(document, document.Mark(), "", "", findings);
  if (document.IsDefined() && !document.IsNull() && !document.IsMap()) return;  // said already
  Texts chaos_rules;
  ParseDaemon(&top, &result->config.daemon, &chaos_rules, findings);
  ParseRedis(&top, &result->config, findings);
  ParseRules(&top, &result->config, findings);
  ParsePrivacy(&top, &result->config, findings);
  CheckChaosRules(chaos_rules, result->config, findings);
  if (!result->ok()) return;
  const auto compiled = Compile(result->config, shm::HashKey{}, 1);
  if (!compiled.ok()) {
    top.Problem("rules", std::string(compiled.status().message()),
                "one rule with a key serves any number of users; merge rules, or shorten patterns");
  }
}

}  // namespace

std::string Finding::ToString() const {
  std::string text = line > 0 ? Cat(file, ":", line, ":", column, ": ") : Cat(file, ": ");
  if (!path.empty()) text += Cat(path, ": ");
  text += what;
  return mend.empty() ? text : Cat(text, "; ", mend);
}

ParseResult ParseConfig(std::string_view text, std::string_view filename) {
  ParseResult result;
  Findings findings(filename, &result);
  if (text.size() > kMaxConfigBytes) {
    findings.Problem(YAML::Mark::null_mark(), "", Cat("has ", text.size(), " bytes"),
                     Cat("write at most ", kMaxConfigBytes));
    return result;
  }
  if (!CheckCharacters(text, &findings)) return result;
  try {
    const std::string copy(text);
    const YAML::Node document = YAML::Load(copy);
    if (const auto second = SecondDocument(copy)) {
      findings.Problem(*second, "", "a second document begins here",
                       "write one file, without `---` or `...` between its parts");
    }
    ParseDocument(document, &result, &findings);
  } catch (const YAML::Exception& error) {
    ReportYamlError(error, text, &findings);
  } catch (const std::exception& error) {
    findings.Problem(YAML::Mark::null_mark(), "", Cat("this is not YAML: ", error.what()), "");
  }
  return result;
}

}  // namespace sluice::config
