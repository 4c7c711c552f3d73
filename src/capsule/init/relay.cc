// The relay. Three rules make it exact:
// - Every byte has a number, and is in one place: the program's pipe, or a ring here.
// - What a client has is what it acknowledged; anything else stays in the ring.
// - The state is read while the program doesn't run: then the pipes' content doesn't change, output
// is
//   read out of them to the end (they have at most 1 MiB each, for which the ring has room beyond
//   the limit), and the rest of stdin is copied by tee(2), which leaves it there: going on is no
//   repair.
#include "capsule/init/relay.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

namespace godwit::init {
namespace {

using capsule::log_bytes;
using capsule::payload_bytes_max;
using capsule::stdin_window_bytes;
using capsule::unacked_output_bytes_max;

constexpr std::size_t pipe_bytes_max =
    1 << 20;  // /proc/sys/fs/pipe-max-size, as ordinary users have.
constexpr std::size_t output_capacity = 4 << 20;
constexpr std::size_t input_capacity = 4 << 20;
static_assert(unacked_output_bytes_max + 2 * pipe_bytes_max <= output_capacity);
static_assert(stdin_window_bytes + pipe_bytes_max <= input_capacity);

constexpr int terminal_poll_ms = 2;

void close_fd(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

bool would_block() { return errno == EAGAIN || errno == EINTR; }

}  // namespace

Fail Relay::map_memory() {
  CHECK(out_.map(output_capacity));
  CHECK(streams_.map(output_capacity));
  return in_.map(input_capacity);
}

Fail Relay::make_pipes(const std::uint32_t* capacities) {
  for (int number = 0; number < 3; ++number) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return fail("pipe2");
    (number == 0 ? stdin_read_ : output_read_[number - 1]) = ends[0];
    (number == 0 ? stdin_write_ : output_write_[number - 1]) = ends[1];
    // Ours doesn't block; the program's is another description and does.
    if (::fcntl(ends[number == 0 ? 1 : 0], F_SETFL, O_NONBLOCK) != 0)
      return fail("fcntl(O_NONBLOCK)");
    if (capacities != nullptr && capacities[number] != 0 &&
        ::fcntl(ends[0], F_SETPIPE_SZ, static_cast<int>(capacities[number])) < 0)
      return fail("fcntl(F_SETPIPE_SZ)");
  }
  kind_ = Kind::pipes;
  return ok();
}

int Relay::program_end(int number) const {
  if (kind_ == Kind::terminal) return slave_;
  return number == 0 ? stdin_read_ : output_write_[number - 1];
}

Fail Relay::open_program_ends(bool original, int* fds, int& count) const {
  count = 0;
  int wanted = kind_ == Kind::none ? 0 : kind_ == Kind::pipes ? 3 : 1;
  for (int number = 0; number < wanted; ++number) {
    if (original) {
      fds[count] = ::fcntl(program_end(number), F_DUPFD_CLOEXEC, 0);
      if (fds[count] < 0) return fail("fcntl(F_DUPFD_CLOEXEC)");
      ++count;
      continue;
    }
    char path[32];
    std::snprintf(path, sizeof(path), "/proc/self/fd/%d", program_end(number));
    int flags = kind_ == Kind::terminal ? O_RDWR | O_NOCTTY : number == 0 ? O_RDONLY : O_WRONLY;
    fds[count] = ::open(path, flags | O_CLOEXEC);
    if (fds[count] < 0) return fail("open of the program's end");
    ++count;
  }
  return ok();
}

Fail Relay::info(capsule::StdioInfo& out) const {
  out = {};
  out.kind = static_cast<int>(kind_);
  for (int number = 0; kind_ != Kind::none && number < 3; ++number) {
    struct stat status;
    if (::fstat(program_end(number), &status) != 0) return fail("fstat");
    out.device = status.st_dev;
    out.inode[number] = status.st_ino;
  }
  if (kind_ == Kind::terminal && ::ioctl(master_, TIOCGPTN, &out.pty_index) != 0)
    return fail("ioctl(TIOCGPTN)");
  return ok();
}

void Relay::go() { running_ = true; }

bool Relay::output_room() const { return out_.end() - acked_ < unacked_output_bytes_max; }

int Relay::poll_set(pollfd* out, int& timeout_ms) {
  int count = 0;
  if (!running_) return 0;
  bool input_waits = !in_.empty() || (eof_ && !eof_done_);
  if (kind_ == Kind::terminal && !master_gone_) {
    if (output_room()) out[count++] = {master_, POLLIN, 0};
    // No file tells that the program has read from its terminal: look again soon.
    if (input_waits && (timeout_ms < 0 || timeout_ms > terminal_poll_ms))
      timeout_ms = terminal_poll_ms;
  }
  if (kind_ == Kind::pipes) {
    for (int fd : output_read_)
      if (output_room()) out[count++] = {fd, POLLIN, 0};
    if (!in_.empty()) out[count++] = {stdin_write_, POLLOUT, 0};
  }
  return count;
}

Fail Relay::work() {
  if (!running_) return ok();
  if (kind_ == Kind::terminal) {
    CHECK(read_output(0, false));
    return feed_terminal();
  }
  if (kind_ == Kind::pipes) {
    CHECK(read_output(0, false));
    CHECK(read_output(1, false));
    return feed_pipe();
  }
  return ok();
}

// One pass of at most a packet's worth each, so that clients get their turn; to the end if
// `past_limit`.
Fail Relay::read_output(int index, bool past_limit) {
  bool terminal = kind_ == Kind::terminal;
  int fd = terminal ? master_ : output_read_[index];
  while (!(terminal && master_gone_)) {
    if (!past_limit && !output_room()) return ok();
    // The ring also holds the log; unacknowledged bytes are never dropped from it.
    std::uint64_t keep_from = out_.end() > log_bytes ? out_.end() - log_bytes : 0;
    out_.drop_to(keep_from < acked_ ? keep_from : acked_);
    iovec place = out_.writable();
    if (place.iov_len == 0) return fail("output doesn't fit into the ring", ENOBUFS);
    std::uint64_t most =
        past_limit ? place.iov_len : unacked_output_bytes_max - (out_.end() - acked_);
    std::size_t wanted = std::min<std::uint64_t>({place.iov_len, most, payload_bytes_max});
    ssize_t n = ::read(fd, place.iov_base, wanted);
    if (n < 0 && would_block()) {
      left_[index] = 0;
      note_drained();
      return ok();
    }
    if (n < 0 && terminal && errno == EIO) {
      // The session ended and hung the terminal up: nobody writes any more.
      master_gone_ = true;
      left_[index] = 0;
      note_drained();
      return ok();
    }
    if (n < 0) return fail("read of the program's output");
    if (n == 0) return ok();  // Can't be: we hold a writer.
    streams_.set(out_.end(), static_cast<std::uint64_t>(n), index == 1);
    out_.filled(static_cast<std::size_t>(n));
    left_[index] -= std::min<long>(left_[index], n);
    note_drained();
    if (!past_limit) return ok();
  }
  return ok();
}

void Relay::note_drained() {
  if (exited_ && exit_at_ == 0 && left_[0] == 0 && left_[1] == 0) exit_at_ = out_.end();
}

void Relay::main_exited(int wait_status) {
  exited_ = true;
  wait_status_ = wait_status;
  exit_at_ = 0;
  // What descendants write later isn't waited for.
  for (int index = 0; kind_ == Kind::pipes && index < 2; ++index) {
    int bytes = 0;
    if (::ioctl(output_read_[index], FIONREAD, &bytes) == 0) left_[index] = bytes;
  }
  // A terminal doesn't count what is in it; reading to its end tells.
  if (kind_ == Kind::terminal && !master_gone_) left_[0] = 1L << 40;
  note_drained();
}

Fail Relay::feed_pipe() {
  while (!in_.empty()) {
    iovec piece = in_.readable(in_.begin());
    ssize_t n = ::write(stdin_write_, piece.iov_base, piece.iov_len);
    if (n < 0 && would_block()) return ok();
    if (n < 0) return fail("write to the program's stdin");
    in_.drop_to(in_.begin() + static_cast<std::uint64_t>(n));
  }
  if (eof_ && !eof_done_ && in_.end() >= eof_at_) {
    close_fd(stdin_write_);
    eof_done_ = true;
  }
  return ok();
}

void Relay::ack(std::uint64_t number) {
  if (number > acked_) acked_ = std::min(number, out_.end());
}

iovec Relay::output_at(std::uint64_t number, int& stream) const {
  iovec piece = out_.readable(number);
  piece.iov_len = std::min(piece.iov_len, payload_bytes_max);
  if (piece.iov_len == 0) return piece;
  piece.iov_len = streams_.run(number, piece.iov_len);
  stream = streams_.get(number) ? 2 : 1;
  return piece;
}

void Relay::drop_input() {
  resend_ = true;
  gap_ = true;
}

Fail Relay::input(std::uint64_t from, const char* bytes, std::size_t count) {
  if (from > in_.end()) {
    // What was on its way behind the dropped piece; it comes again behind that.
    return gap_ ? ok() : fail("input with a gap before it", EINVAL);
  }
  std::uint64_t known = in_.end() - from;
  if (known >= count || eof_) return ok();
  bytes += known;
  count -= known;
  if (!running_ || in_.size() + count > stdin_window_bytes) {
    drop_input();
    return ok();
  }
  in_.append(bytes, count);
  gap_ = false;
  return ok();
}

void Relay::input_end(std::uint64_t end) {
  if (eof_ || (gap_ && end > in_.end())) return;
  if (!running_ || end > in_.end()) {
    drop_input();
    return;
  }
  eof_ = true;
  eof_at_ = end;
}

bool Relay::resend_due() const {
  return resend_ && running_ && in_.size() <= stdin_window_bytes / 2;
}

}  // namespace godwit::init
