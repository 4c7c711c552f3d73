#include <signal.h>
#include <strings.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cli/commands.h"

namespace godwit::cli {

std::vector<std::string> program_environment(const char* const* environment,
                                             const std::vector<std::string>& extra,
                                             bool other_user) {
  std::vector<std::string> out;
  const auto key_of = [](const std::string& entry) { return entry.substr(0, entry.find('=')); };
  const auto set = [&](const std::string& entry) {
    std::erase_if(out, [&](const auto& known) { return key_of(known) == key_of(entry); });
    out.push_back(entry);
  };
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    const std::string entry = *environment;
    const std::string key = key_of(entry);
    const bool personal = key == "HOME" || key == "USER" || key == "LOGNAME" || key == "SHELL" ||
                          key == "MAIL" || key == "XDG_RUNTIME_DIR" || key.starts_with("SUDO_");
    if (key.starts_with("GODWIT_") || (other_user && personal)) continue;
    out.push_back(entry);
  }
  for (const auto& entry : extra) {
    if (entry.find('=') != std::string::npos) {
      set(entry);
    } else if (const char* value = std::getenv(entry.c_str())) {
      set(entry + "=" + value);
    }
  }
  return out;
}

int parse_signal(const std::string& text) {
  char* end = nullptr;
  const long number = std::strtol(text.c_str(), &end, 10);
  if (!text.empty() && *end == '\0')
    return number >= 1 && number <= SIGRTMAX ? static_cast<int>(number) : 0;
  const char* name = text.c_str();
  if (strncasecmp(name, "SIG", 3) == 0) name += 3;
  for (int signal = 1; signal < 32; ++signal) {
    const char* known = sigabbrev_np(signal);
    if (known != nullptr && strcasecmp(known, name) == 0) return signal;
  }
  return 0;
}

std::int64_t parse_duration_us(const std::string& text) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || number < 0 || number > 1e9) return -1;
  const std::string unit = end;
  const double scale = unit == "us"                   ? 1
                       : unit.empty() || unit == "ms" ? 1e3
                       : unit == "s"                  ? 1e6
                                                      : -1;
  return scale < 0 ? -1 : static_cast<std::int64_t>(number * scale);
}

}  // namespace godwit::cli
