// Errors are values: Result<T> is either a T or an Error that carries what was tried.
//
// Three kinds of failure are never mixed (CONTRIBUTING.md, "Errors"): the world failed -> Result;
// we failed -> INVARIANT, which aborts also in release builds; the tracee died -> an ordinary
// Result with Errc::tracee_gone, since a program may be killed at any ptrace call.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace godwit {

enum class Errc {
  os,              // A system call failed; Error::sys_errno says how.
  tracee_gone,     // The traced thread or process no longer exists.
  refused,         // The request is understood and will not be done; the message says why.
  not_found,       // No such capsule, node, migration, file.
  permission,      // The requester may not do this.
  invalid,         // Malformed input: arguments, messages, images.
  unsupported,     // This kernel or machine lacks what is needed.
  peer_lost,       // The other node or process closed the connection.
  timeout,         // A bounded wait ran out.
  in_doubt,        // Neither success nor failure is known.
  cancelled,       // Asked to stop.
  internal,        // A library failed in a way that is not the user's doing.
  busy,            // Not now; the same may succeed in a moment.
};

std::string_view errc_name(Errc code);

class [[nodiscard]] Error {
 public:
  Error(Errc code, std::string what, int sys_errno = 0)
      : code_(code), sys_errno_(sys_errno), what_(std::move(what)) {}

  Errc code() const { return code_; }
  int sys_errno() const { return sys_errno_; }
  const std::string& what() const { return what_; }

  // Each layer adds one phrase: "restore fd 3: open(/a/b): No such file or directory".
  Error with(std::string_view phrase) && {
    what_ = fmt::format("{}: {}", phrase, what_);
    return std::move(*this);
  }

 private:
  Errc code_;
  int sys_errno_;
  std::string what_;
};

// Takes errno as the failed call left it. `call` is the call with its arguments.
Error os_error(std::string_view call);
Error os_error(std::string_view call, int sys_errno);

template <typename... Args>
Error make_error(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit by design: `return value;` and `return error;` both make a Result.
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

  // Adds a phrase to an error, leaves a value alone.
  Result with(std::string_view phrase) && {
    if (ok()) return std::move(*this);
    return std::get<1>(std::move(state_)).with(phrase);
  }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  void value() const {}
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }
  Result with(std::string_view phrase) && {
    if (ok()) return {};
    return std::move(*error_).with(phrase);
  }

 private:
  std::optional<Error> error_;
};

[[noreturn]] void invariant_failed(const char* file, int line, const char* condition,
                                   const std::string& detail);

}  // namespace godwit

// Evaluates to the value of a Result, or returns its error from the enclosing function.
#define TRY(expr)                                                  \
  ({                                                               \
    auto try_result_ = (expr);                                     \
    if (!try_result_.ok()) return std::move(try_result_).error();  \
    std::move(try_result_).value();                                \
  })

// Checked in every build: a broken invariant must not reach somebody's running program.
#define INVARIANT(cond, ...)                                                               \
  do {                                                                                     \
    if (!(cond)) [[unlikely]]                                                              \
      ::godwit::invariant_failed(__FILE__, __LINE__, #cond, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
