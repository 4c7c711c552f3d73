// Many system calls in a skeleton for one stop of it.
//
// A skeleton is a process without a program: it exists to be filled. Ptrace can make it execute one
// call at a time (three stops, 15 to 30 us), which for 10,000 mappings is 0.3 s. So a skeleton gets
// two extra areas while it is built:
//
//   code   one page, r-x: 58 bytes that walk an array of calls and end in int3
//   arena  a memfd mapped shared by the skeleton and by us: calls, their arguments, their results
//
// Since the arena is shared memory, filling it and reading results costs no system call; a batch is
// set-registers, continue, wait: about 10 us plus what the calls themselves take (mmap 1.2 us).
// Before the start grant a dead tracer takes its skeletons along (PTRACE_O_EXITKILL), so unlike
// capture's injection this one needs no code that puts a context back.
//
// The arena is cut into lanes so that the threads of one skeleton run their batches side by side.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace godwit::restore {

// How the code sees a call; the offsets are known to the machine code in remote_batch.cc.
struct RemoteCall {
  std::uint64_t nr;
  std::uint64_t args[6];
  std::int64_t result;
  std::uint64_t tolerate;  // Not 0: an error doesn't end the batch.
};
static_assert(sizeof(RemoteCall) == 72);
static_assert(offsetof(RemoteCall, result) == 56);

std::span<const std::uint8_t> batch_code();

// The memory shared with one skeleton. Lane 0 is the leader's, the others are for its threads.
class Arena {
 public:
  static constexpr std::size_t lane0_bytes = 4u << 20;
  static constexpr std::size_t lane_bytes = 32u << 10;
  static constexpr unsigned lanes_max = 257;
  static constexpr std::size_t bytes = lane0_bytes + (lanes_max - 1) * lane_bytes;

  static Result<Arena> create();
  Arena(Arena&& other) noexcept
      : fd_(std::move(other.fd_)),
        base_(std::exchange(other.base_, nullptr)),
        remote_(other.remote_) {}
  Arena& operator=(Arena&&) = delete;
  ~Arena();

  int fd() const { return fd_.get(); }
  void set_remote(std::uint64_t address) { remote_ = address; }
  std::uint64_t remote() const { return remote_; }

  // Where a lane begins and ends, as an offset.
  static std::pair<std::size_t, std::size_t> lane(unsigned index);
  std::byte* local_at(std::size_t offset) { return base_ + offset; }
  std::uint64_t remote_at(std::size_t offset) const { return remote_ + offset; }

 private:
  Arena(UniqueFd fd, std::byte* base) : fd_(std::move(fd)), base_(base) {}
  UniqueFd fd_;
  std::byte* base_ = nullptr;
  std::uint64_t remote_ = 0;
};

// Calls grow upwards from the beginning of the lane, their data downwards from its end.
class Batch {
 public:
  Batch(Arena& arena, std::uint64_t code, unsigned lane);

  // All calls added from here on are described so in errors: "fd 3 (/etc/passwd)".
  void about(std::string text);
  std::size_t call(long nr, const char* name, std::initializer_list<std::uint64_t> args);
  std::size_t call_tolerant(long nr, const char* name, std::initializer_list<std::uint64_t> args);

  // Copies bytes (or reserves room) into the arena; returns the address in the skeleton.
  std::uint64_t put(std::span<const std::byte> bytes);
  std::uint64_t put_string(std::string_view text);  // With a final NUL.
  std::uint64_t reserve(std::size_t bytes);         // Zeroed.
  template <typename T>
  std::uint64_t put_value(const T& value) {
    return put(std::as_bytes(std::span(&value, 1)));
  }
  template <typename T>
  T value_at(std::uint64_t remote) const {
    T value;
    std::memcpy(&value, local(remote), sizeof value);
    return value;
  }

  std::int64_t result(std::size_t index) const { return calls_[index].result; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Whether `calls` more with `data_bytes` fit; if not, run and clear first.
  bool has_room(std::size_t calls, std::size_t data_bytes) const;
  void clear();

  // Runs on `tid`, a thread of the skeleton in a ptrace stop. An untolerated error of a call is
  // the error of the run.
  Result<void> run(pid_t tid);
  // The same in two steps, for several threads side by side. start with no calls does nothing.
  Result<void> start(pid_t tid);
  Result<void> wait(pid_t tid);
  // Registers for a start by hand (system call restarts).
  std::uint64_t code() const { return code_; }
  std::uint64_t first_call_remote() const { return arena_.remote_at(begin_); }

 private:
  std::byte* local(std::uint64_t remote) const { return arena_.local_at(remote - arena_.remote()); }
  Error call_error(std::size_t index) const;

  Arena& arena_;
  std::uint64_t code_;
  std::size_t begin_, end_, data_;
  RemoteCall* calls_;
  std::size_t size_ = 0;
  std::vector<const char*> names_;
  std::vector<std::pair<std::size_t, std::string>> labels_;
};

}  // namespace godwit::restore
