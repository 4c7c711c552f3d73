// The relay's state to and from the bytes that travel with a migration (relay_state.h).
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <climits>

#include "capsule/init/relay.h"
#include "capsule/init/terminal.h"

namespace godwit::init {
namespace {

using capsule::RelayHead;

// Too large for a stack that faults in lazily to matter; one thread uses it.
Cooked cooked;

Fail write_at(int fd, const void* data, std::size_t bytes, std::uint64_t& offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    ssize_t n = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail("write of the relay state");
    from += n;
    bytes -= static_cast<std::size_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
  return ok();
}

Fail read_at(int fd, void* data, std::size_t bytes, std::uint64_t& offset) {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    ssize_t n = ::pread(fd, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail("read of the relay state");
    if (n == 0) return fail("relay state is too short", EINVAL);
    to += n;
    bytes -= static_cast<std::size_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
  return ok();
}

Fail append_from(int fd, ByteRing& ring, std::uint64_t bytes, std::uint64_t& offset) {
  while (bytes > 0) {
    iovec place = ring.writable();
    std::size_t now = std::min<std::uint64_t>(place.iov_len, bytes);
    CHECK(read_at(fd, place.iov_base, now, offset));
    ring.filled(now);
    bytes -= now;
  }
  return ok();
}

// The two sides of a pipe, closed on every way out.
struct TemporaryPipe {
  int ends[2] = {-1, -1};
  ~TemporaryPipe() {
    for (int fd : ends)
      if (fd >= 0) ::close(fd);
  }
};

}  // namespace

Fail Relay::drain_output() {
  if (kind_ == Kind::terminal) return read_output(0, true);
  if (kind_ == Kind::pipes) {
    CHECK(read_output(0, true));
    CHECK(read_output(1, true));
  }
  return ok();
}

// tee(2) copies references to the pipe's pages into another pipe; slots, not bytes, are what must
// fit.
Fail Relay::peek_stdin(int memfd, std::uint64_t& offset, std::uint64_t& bytes) {
  int expected = 0;
  if (::ioctl(stdin_read_, FIONREAD, &expected) != 0) return fail("ioctl(FIONREAD)");
  bytes = static_cast<std::uint64_t>(expected);
  if (expected == 0) return ok();
  TemporaryPipe copy;
  int capacity = ::fcntl(stdin_read_, F_GETPIPE_SZ);
  if (capacity < 0 || ::pipe2(copy.ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail("pipe2");
  if (::fcntl(copy.ends[0], F_SETPIPE_SZ, capacity) < 0) return fail("fcntl(F_SETPIPE_SZ)");
  ssize_t copied = ::tee(stdin_read_, copy.ends[1], INT_MAX, SPLICE_F_NONBLOCK);
  if (copied != expected) return fail("tee of stdin gave another count than FIONREAD", EBUSY);
  char buffer[16 * 1024];
  for (std::uint64_t left = bytes; left > 0;) {
    ssize_t n = ::read(copy.ends[0], buffer, sizeof(buffer));
    if (n <= 0) return fail("read of the copied stdin");
    CHECK(write_at(memfd, buffer, static_cast<std::size_t>(n), offset));
    left -= static_cast<std::uint64_t>(n);
  }
  return ok();
}

Fail Relay::write_ring(int memfd, std::uint64_t& offset, const ByteRing& ring) const {
  for (std::uint64_t at = ring.begin(); at < ring.end();) {
    iovec piece = ring.readable(at);
    CHECK(write_at(memfd, piece.iov_base, piece.iov_len, offset));
    at += piece.iov_len;
  }
  return ok();
}

Fail Relay::write_bits(int memfd, std::uint64_t& offset) const {
  unsigned char buffer[4096];
  std::size_t used = 0;
  for (std::uint64_t at = out_.begin(); at < out_.end(); at += 8) {
    unsigned char byte = 0;
    for (std::uint64_t bit = 0; bit < 8 && at + bit < out_.end(); ++bit)
      byte |= static_cast<unsigned char>(streams_.get(at + bit) << bit);
    buffer[used++] = byte;
    if (used == sizeof(buffer)) {
      CHECK(write_at(memfd, buffer, used, offset));
      used = 0;
    }
  }
  return write_at(memfd, buffer, used, offset);
}

Fail Relay::get(int memfd, std::uint64_t& bytes) {
  running_ = false;
  RelayHead head{};
  head.magic = capsule::relay_magic;
  head.version = capsule::relay_version;
  CHECK(drain_output());
  if (kind_ == Kind::terminal) {
    // Taking the input can let the kernel process (and echo) what it had not yet.
    CHECK(take_input(ours_, cooked));
    CHECK(drain_output());
    CHECK(put_input(ours_, cooked));
    CHECK(fill_terminal_head(head));
    head.cooked_bytes = cooked.used;
  }
  head.out_begin = out_.begin();
  head.out_acked = acked_;
  head.out_end = out_.end();
  head.stdin_next = in_.end();
  head.stdin_eof = eof_ ? 1 : 0;
  head.main_pid = main_pid_;
  head.exited = exited_ ? 1 : 0;
  head.wait_status = wait_status_;
  head.tty = kind_ == Kind::terminal ? 1 : 0;

  std::uint64_t offset = sizeof(head);
  CHECK(write_ring(memfd, offset, out_));
  CHECK(write_bits(memfd, offset));
  if (kind_ == Kind::pipes) {
    for (int number = 0; number < 3; ++number) {
      int capacity = ::fcntl(program_end(number), F_GETPIPE_SZ);
      if (capacity < 0) return fail("fcntl(F_GETPIPE_SZ)");
      head.pipe_bytes[number] = static_cast<std::uint32_t>(capacity);
    }
    CHECK(peek_stdin(memfd, offset, head.stdin_bytes));
  }
  head.stdin_bytes += in_.size();
  CHECK(write_ring(memfd, offset, in_));
  if (head.cooked_bytes > 0) CHECK(write_at(memfd, cooked.bytes, cooked.used, offset));
  bytes = offset;
  offset = 0;
  return write_at(memfd, &head, sizeof(head), offset);
}

Fail Relay::load_output(int memfd, const RelayHead& head, std::uint64_t& offset) {
  std::uint64_t count = head.out_end - head.out_begin;
  out_.reset(head.out_begin);
  if (count > out_.room()) return fail("relay state has more output than can be", EINVAL);
  CHECK(append_from(memfd, out_, count, offset));
  for (std::uint64_t at = 0; at < count; at += 8) {
    unsigned char byte;
    CHECK(read_at(memfd, &byte, 1, offset));
    for (std::uint64_t bit = 0; bit < 8 && at + bit < count; ++bit)
      streams_.set(head.out_begin + at + bit, 1, (byte >> bit & 1) != 0);
  }
  acked_ = head.out_acked;
  return ok();
}

Fail Relay::load_input(int memfd, const RelayHead& head, std::uint64_t& offset) {
  in_.reset(head.stdin_next - head.stdin_bytes);
  if (head.stdin_bytes > in_.room()) return fail("relay state has more input than can be", EINVAL);
  CHECK(append_from(memfd, in_, head.stdin_bytes, offset));
  eof_ = head.stdin_eof != 0;
  eof_at_ = in_.end();
  // The program must find at its first instruction what it had; the rest follows at relay_go.
  return kind_ == Kind::pipes ? feed_pipe() : ok();
}

Fail Relay::put(int memfd, std::uint64_t bytes) {
  if (kind_ != Kind::none && !early_) return fail("the relay is in use already", EBUSY);
  RelayHead head;
  std::uint64_t offset = 0;
  CHECK(read_at(memfd, &head, sizeof(head), offset));
  if (head.magic != capsule::relay_magic || head.version != capsule::relay_version)
    return fail("not a relay state of this version", EINVAL);
  if (head.out_begin > head.out_acked || head.out_acked > head.out_end ||
      head.stdin_bytes > head.stdin_next)
    return fail("relay state contradicts itself", EINVAL);
  if (early_ && head.tty == 0) return fail("relay state has no terminal", EINVAL);
  if (head.tty != 0) {
    if (!early_) CHECK(make_terminal(head.winsize[0], head.winsize[1]));
    early_ = false;
  } else {
    CHECK(make_pipes(head.pipe_bytes));
  }
  CHECK(load_output(memfd, head, offset));
  CHECK(load_input(memfd, head, offset));
  if (head.tty != 0) CHECK(load_terminal(memfd, head, offset));
  if (offset != bytes) return fail("relay state is longer than it says", EINVAL);
  main_pid_ = head.main_pid;
  if (head.exited != 0) {
    exited_ = true;
    wait_status_ = head.wait_status;
    exit_at_ = head.out_end;
  }
  return ok();
}

Fail Relay::load_terminal(int memfd, const RelayHead& head, std::uint64_t& offset) {
  if (head.cooked_bytes > sizeof(cooked.bytes))
    return fail("relay state has too long lines", EINVAL);
  CHECK(load_terminal_settings(head));
  cooked.used = head.cooked_bytes;
  CHECK(read_at(memfd, cooked.bytes, cooked.used, offset));
  std::uint64_t at = 0;
  while (at < cooked.used) {
    capsule::CookedRecord record{};
    if (at + sizeof(record) > cooked.used) return fail("relay state has broken lines", EINVAL);
    __builtin_memcpy(&record, cooked.bytes + at, sizeof(record));
    at += sizeof(record) + record.bytes;
    // What is there already counts in what may be fed.
    terminal_fed_ += record.bytes + 1;
    line_fed_ = record.end == capsule::CookedRecord::open ? record.bytes : 0;
  }
  if (at != cooked.used) return fail("relay state has broken lines", EINVAL);
  return put_input(ours_, cooked);
}

}  // namespace godwit::init
