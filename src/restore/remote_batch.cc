#include "restore/remote_batch.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/tracing.h"

namespace godwit::restore {
namespace {

// A call of a batch may open a file on a slow file system or allocate much memory, not more.
constexpr std::int64_t batch_limit_us = 60'000'000;

// rbx: the next RemoteCall, r12: the end of the array. Both survive a system call (it clobbers rax,
// rcx and r11 only).
constexpr std::uint8_t code_bytes[] = {
    0x48, 0x8b, 0x03,                    // next: mov rax, [rbx]
    0x48, 0x8b, 0x7b, 0x08,              //       mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10,              //       mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18,              //       mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20,              //       mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28,              //       mov r8,  [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30,              //       mov r9,  [rbx+48]
    0x0f, 0x05,                          //       syscall
    0x48, 0x89, 0x43, 0x38,              //       mov [rbx+56], rax
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,  //       cmp rax, -4095
    0x72, 0x07,                          //       jb good
    0x48, 0x83, 0x7b, 0x40, 0x00,        //       cmp qword [rbx+64], 0
    0x74, 0x09,                          //       je stop
    0x48, 0x83, 0xc3, 0x48,              // good: add rbx, 72
    0x4c, 0x39, 0xe3,                    //       cmp rbx, r12
    0x72, 0xc7,                          //       jb next
    0xcc,                                // stop: int3
};
static_assert(sizeof code_bytes == 58);
constexpr std::uint64_t stop_offset = sizeof code_bytes;  // rip after int3.

}  // namespace

std::span<const std::uint8_t> batch_code() { return code_bytes; }

Result<Arena> Arena::create() {
  UniqueFd fd(memfd_create("godwit-arena", MFD_CLOEXEC));
  if (!fd) return os_error("memfd_create(godwit-arena)");
  if (ftruncate(fd.get(), bytes) != 0) return os_error("ftruncate(godwit-arena)");
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return os_error("mmap(godwit-arena)");
  return Arena(std::move(fd), static_cast<std::byte*>(base));
}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, bytes);
}

std::pair<std::size_t, std::size_t> Arena::lane(unsigned index) {
  INVARIANT(index < lanes_max, "lane={}", index);
  if (index == 0) return {0, lane0_bytes};
  std::size_t begin = lane0_bytes + (index - 1) * lane_bytes;
  return {begin, begin + lane_bytes};
}

Batch::Batch(Arena& arena, std::uint64_t code, unsigned lane) : arena_(arena), code_(code) {
  std::tie(begin_, end_) = Arena::lane(lane);
  data_ = end_;
  calls_ = reinterpret_cast<RemoteCall*>(arena.local_at(begin_));
}

void Batch::about(std::string text) {
  if (labels_.empty() ? text.empty() : labels_.back().second == text) return;
  labels_.emplace_back(size_, std::move(text));
}

std::size_t Batch::call(long nr, const char* name, std::initializer_list<std::uint64_t> args) {
  INVARIANT(has_room(1, 0), "calls={}", size_);
  RemoteCall& entry = calls_[size_];
  entry = {};
  entry.nr = static_cast<std::uint64_t>(nr);
  std::size_t n = 0;
  for (std::uint64_t arg : args) entry.args[n++] = arg;
  names_.push_back(name);
  return size_++;
}

std::size_t Batch::call_tolerant(long nr, const char* name,
                                 std::initializer_list<std::uint64_t> args) {
  std::size_t index = call(nr, name, args);
  calls_[index].tolerate = 1;
  return index;
}

bool Batch::has_room(std::size_t calls, std::size_t data_bytes) const {
  return begin_ + (size_ + calls) * sizeof(RemoteCall) + data_bytes + 64 <= data_;
}

std::uint64_t Batch::reserve(std::size_t bytes) {
  INVARIANT(has_room(0, bytes + 16), "bytes={}", bytes);
  data_ = (data_ - bytes) & ~std::size_t{15};
  std::memset(arena_.local_at(data_), 0, bytes);
  return arena_.remote_at(data_);
}

std::uint64_t Batch::put(std::span<const std::byte> bytes) {
  std::uint64_t remote = reserve(bytes.size());
  if (!bytes.empty()) std::memcpy(local(remote), bytes.data(), bytes.size());
  return remote;
}

std::uint64_t Batch::put_string(std::string_view text) {
  std::uint64_t remote = reserve(text.size() + 1);
  std::memcpy(local(remote), text.data(), text.size());
  return remote;
}

void Batch::clear() {
  size_ = 0;
  data_ = end_;
  names_.clear();
  labels_.clear();
}

Result<void> Batch::run(pid_t tid) {
  TRY(start(tid));
  return wait(tid);
}

Result<void> Batch::start(pid_t tid) {
  if (empty()) return {};
  sys::Regs regs = TRY(sys::ptrace_get_regs(tid));
  regs.rip = code_;
  regs.rbx = arena_.remote_at(begin_);
  regs.r12 = regs.rbx + size_ * sizeof(RemoteCall);
  regs.orig_rax = ~0ull;     // Or the kernel would restart the call that the stop interrupted.
  regs.eflags &= ~0x100ull;  // No single step.
  TRY(sys::ptrace_set_regs(tid, regs));
  return sys::ptrace_cont(tid, 0);
}

Result<void> Batch::wait(pid_t tid) {
  if (empty()) return {};
  sys::Stop stop = TRY(sys::wait_stop(tid, batch_limit_us).with("batch"));
  if (stop.exited()) {
    return make_error(Errc::tracee_gone, "skeleton thread {} ended in a batch (status {:#x})", tid,
                      stop.status);
  }
  sys::Regs regs = TRY(sys::ptrace_get_regs(tid));
  if (stop.signal() != SIGTRAP || regs.rip != code_ + stop_offset) {
    return make_error(Errc::internal, "skeleton thread {}: batch stopped by signal {} at {:#x}",
                      tid, stop.signal(), regs.rip);
  }
  // rbx stands on the failed call, or behind the last one.
  std::size_t done = (regs.rbx - arena_.remote_at(begin_)) / sizeof(RemoteCall);
  if (done < size_) return call_error(done);
  return {};
}

Error Batch::call_error(std::size_t index) const {
  const RemoteCall& c = calls_[index];
  std::string_view label;
  for (const auto& [from, text] : labels_) {
    if (from <= index) label = text;
  }
  return os_error(fmt::format("{}{}{}({:#x}, {:#x}, {:#x}, {:#x}) in the skeleton", label,
                              label.empty() ? "" : ": ", names_[index], c.args[0], c.args[1],
                              c.args[2], c.args[3]),
                  static_cast<int>(-c.result));
}

}  // namespace godwit::restore
