// The log of a process. Errors are logged once, at the top, where they are decided on.
//
// Usage: LOG(info, "adopted capsule {}", id). Lines go to stderr, which godwitd's starter sends to
// a file or the journal.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace godwit {

enum class LogLevel { debug, info, warn, error };

// Threads: call once in main before any thread starts. `who` precedes each line.
void log_init(std::string_view who, LogLevel least);
bool log_enabled(LogLevel level);
void log_line(LogLevel level, const std::string& line);

}  // namespace godwit

#define LOG(level, ...)                                                                  \
  do {                                                                                   \
    if (::godwit::log_enabled(::godwit::LogLevel::level))                                \
      ::godwit::log_line(::godwit::LogLevel::level, ::fmt::format(__VA_ARGS__));         \
  } while (false)
