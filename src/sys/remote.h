// System calls executed by a stopped tracee on our behalf, such that our death at any instruction
// does no harm: the tracee then finishes what was begun and goes on with its own context by itself.
//
// The essay at the top of remote.cc says how. Typical use:
//
//   RemoteProcess process = TRY(RemoteProcess::open(pid, pid_inside));
//   TRY(process.map_arena(thread));
//   RemoteBatch batch(process);
//   RemoteAddr old = batch.space(sizeof(stack_t));
//   std::size_t asked = batch.call(SYS_sigaltstack, 0, old);
//   TRY(process.run(thread, batch));
//   if (batch.result(asked) == 0) use(batch.get<stack_t>(old));
//   TRY(process.unmap_arena(thread));
//
// Preconditions, everywhere: the caller is the thread that seized; the tracee is in a ptrace stop;
// its freezer cgroup is thawed (a frozen task can't execute anything).
#pragma once

#include <sys/uio.h>

#include <array>
#include <concepts>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/remote_code.h"
#include "sys/tracing.h"

namespace godwit::sys {

// A thread in ptrace stop, and the context with which it will go on. Injection may change `regs`:
// a signal that arrives meanwhile is delivered, and the thread then stands in its handler.
struct StoppedThread {
  pid_t tid = 0;         // As we see it.
  pid_t tid_inside = 0;  // As it sees itself.
  Regs regs{};
};

class RemoteProcess;

// A list of system calls with the data they read and write, built here, executed there.
class RemoteBatch {
 public:
  explicit RemoteBatch(const RemoteProcess& process);

  // Appends a call; the answer is the index of its result.
  template <typename... Args>
  std::size_t call(long nr, Args... args) {
    static_assert(sizeof...(Args) <= 6);
    return append(nr, {word(args)...});
  }
  RemoteAddr put(std::span<const std::byte> data);  // Data for a call to read. Aligned to 16.
  RemoteAddr space(std::size_t bytes);              // Zeroed room for a call to write to.
  template <typename T>
  RemoteAddr put_value(const T& value) {
    return put(std::as_bytes(std::span(&value, 1)));
  }
  RemoteAddr put_string(const std::string& text) {
    return put(std::as_bytes(std::span(text.c_str(), text.size() + 1)));
  }

  // Runs `look` here while the tracee waits between two calls of the batch. If we die before,
  // the tracee doesn't wait. What `look` fails with ends run(), after the rest of the batch.
  void pause(std::function<Result<void>()> look);

  std::size_t calls() const { return entries_.size(); }
  bool has_room(std::size_t calls, std::size_t data_bytes) const;

  // After run().
  std::int64_t result(std::size_t index) const;
  template <typename T>
  T get(RemoteAddr from) const {
    T value;
    std::memcpy(&value, view(from, sizeof value), sizeof value);
    return value;
  }

 private:
  friend class RemoteProcess;
  using Entry = remote_code::Entry;
  struct Pause {
    std::size_t entry;
    std::function<Result<void>()> look;
  };

  struct Memory {  // Where it is here and there.
    iovec local[2], remote[2];
    ssize_t bytes;
  };
  Memory memory();

  static std::uint64_t word(RemoteAddr a) { return a.value; }
  template <std::integral T>
  static std::uint64_t word(T v) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(v));
  }
  static std::uint64_t word(std::uint64_t v) { return v; }
  std::size_t append(long nr, std::array<std::uint64_t, 6> args);
  const std::byte* view(RemoteAddr from, std::size_t bytes) const;

  RemoteAddr arena_;
  std::size_t arena_bytes_;
  std::vector<Entry> entries_;   // Grow up from the start of the arena...
  std::vector<std::byte> data_;  // ...while data grows down from its end: byte i from below is
  std::size_t data_bytes_ = 0;   // data_[data_.size() - data_bytes_ + i].
  std::vector<Pause> pauses_;
};

class RemoteProcess {
 public:
  // `pid_inside`: the process id in the innermost PID namespace, which is what it sees itself.
  static Result<RemoteProcess> open(pid_t pid, pid_t pid_inside);

  // One call without an arena: two ptrace stops, about 20 us. After an error it may have been
  // executed or not; the thread stands with its own registers all the same, or see adrift().
  Result<std::int64_t> call(StoppedThread& thread, long nr, std::array<std::uint64_t, 6> args);

  // Anonymous memory inside the tracee for batches. One that a dead tracer left behind is found
  // and used again (its size then rules).
  Result<void> map_arena(StoppedThread& thread, std::size_t bytes = arena_bytes_default);
  Result<void> unmap_arena(StoppedThread& thread);
  // A call failed, and a thread could not be brought back from injected code afterwards: nothing
  // may be taken away from under it. It goes on by itself, and whoever comes next finds the arena.
  bool adrift() const { return adrift_; }
  bool has_arena() const { return arena_.value != 0; }
  RemoteAddr arena() const { return arena_; }
  std::size_t arena_bytes() const { return arena_bytes_; }

  // After an error, too, the thread stands with its own registers and signal mask, or see adrift().
  Result<void> run(StoppedThread& thread, RemoteBatch& batch);

  static constexpr std::size_t arena_bytes_default = 64 * 1024;

  // Whether a context lies in injected code: a batch whose tracer has died and that isn't through.
  bool in_injected_code(const Regs& regs) const;
  // Lets such a thread get through; afterwards `thread.regs` is the program's own context.
  Result<void> settle(StoppedThread& thread);

  // Where injected code lives; the [vdso] of the tracee must not be moved while a batch runs.
  RemoteAddr code() const { return code_; }
  pid_t pid() const { return pid_; }

  Result<void> read(RemoteAddr from, std::span<std::byte> to) const;  // Also what is PROT_NONE.
  Result<void> write(RemoteAddr to, std::span<const std::byte> from) const;

 private:
  enum class Next { go_on, begin_again, finished };
  struct Run {  // One execution of a batch.
    explicit Run(RemoteBatch& of) : batch(of) {}
    RemoteBatch& batch;
    std::uint64_t sigmask = 0;    // The program's.
    int marker = 0;               // 0: watched by PTRACE_SYSCALL.
    std::uint64_t first = 0;      // Addresses of entries: the first,
    std::uint64_t unblocked = 0;  // the one that puts the signal mask back,
    std::uint64_t last = 0;       // the final marker.
    std::optional<Error> look_error = std::nullopt;

    bool begun = false;                         // The thread has injected registers.
    bool sure = true;                           // No call has failed since it was last seen.
    std::optional<Error> error = std::nullopt;  // What failed first.
  };
  RemoteProcess() = default;
  Result<void> find_code();
  Result<void> adopt_arena();
  Result<bool> is_mapped(std::uint64_t start, std::uint64_t bytes) const;
  Result<void> save_context(const Regs& regs);
  Result<void> deliver(StoppedThread& thread, int signal);
  Result<Regs> to_interrupt_stop(pid_t tid);
  Result<std::int64_t> try_call(StoppedThread& thread, long nr, std::array<std::uint64_t, 6> args);
  Result<void> withdraw(StoppedThread& thread);
  Result<void> enter(StoppedThread& thread, Run& run);
  Result<void> store_batch(RemoteBatch& batch) const;
  Result<void> load_batch(RemoteBatch& batch) const;

  // Where a filter would kill (remote_guard.cc).
  struct Guarded;
  Result<bool> needs_guard(pid_t tid, std::span<const remote_code::Entry> calls, std::size_t at);
  Result<void> run_guarded(StoppedThread& thread, RemoteBatch& batch, std::size_t last);
  Result<std::int64_t> call_guarded(StoppedThread& thread, const remote_code::Entry& call);
  Result<void> finish_guarded(StoppedThread& thread, Guarded& run);
  Result<bool> guarded_slice(StoppedThread& thread, Guarded& run);
  Result<bool> after_slice(StoppedThread& thread, Guarded& run, const Stop& stop);
  Result<bool> on_signal_guarded(StoppedThread& thread, Guarded& run, int signal);
  Result<void> advance_guarded(const Regs& regs, Guarded& run) const;
  Result<void> come_home_guarded(StoppedThread& thread);
  Result<void> keep_alive(std::int64_t for_us) const;
  bool in_guarded_code(const Regs& regs) const;

  Result<void> set_out(StoppedThread& thread, Run& run);
  Result<Next> advance(StoppedThread& thread, Run& run);
  Result<Next> after_failure(StoppedThread& thread, const Run& run);
  bool executed(const Regs& regs, std::uint64_t entry) const;
  Result<Next> on_signal(StoppedThread& thread, Run& run, int signal);
  Result<Next> on_syscall(StoppedThread& thread, Run& run);
  void on_pause(Run& run, std::uint64_t entry);
  Result<bool> settle_a_little(StoppedThread& thread);
  int choose_marker(std::uint64_t sigmask) const;

  pid_t pid_ = 0;
  pid_t pid_inside_ = 0;
  UniqueFd mem_;                      // /proc/PID/mem
  std::uint64_t signals_caught_ = 0;  // SigCgt
  RemoteAddr code_;
  std::size_t code_room_ = 0;
  RemoteAddr arena_;
  std::size_t arena_bytes_ = 0;
  bool adrift_ = false;
  bool can_guard_ = false;
  std::map<pid_t, std::vector<SeccompProgram>> filters_;  // Of the threads asked so far.
};

// The context as the kernel would make it when an interrupted system call is restarted: the
// program counter on the `syscall` instruction again, or the call replaced by restart_syscall.
Regs restart_applied(const Regs& regs);

// Whether the time stamp counter is a clock that all processors share.
bool has_invariant_tsc();

}  // namespace godwit::sys
