// The pseudo terminal of a capsule that was started with one.
#include <asm/termbits.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstring>

#include "capsule/init/relay.h"

namespace godwit::init {
namespace {

// Bounds what is typed but not yet read, so that it always fits into the terminal's own queue of
// 4095 bytes and can be put back there after it was taken out; see terminal.cc.
constexpr std::size_t queue_bytes_max = 3000;
// A line longer than that is still fed, for the kernel to cut as it does.
constexpr std::size_t feed_bytes_min = 256;

}  // namespace

Fail Relay::make_terminal(std::uint16_t rows, std::uint16_t columns) {
  master_ = ::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (master_ < 0) return fail("open(/dev/ptmx)");
  int unlock = 0;
  if (::ioctl(master_, TIOCSPTLCK, &unlock) != 0) return fail("ioctl(TIOCSPTLCK)");
  slave_ = ::ioctl(master_, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (slave_ < 0) return fail("ioctl(TIOCGPTPEER)");
  ours_ = ::ioctl(master_, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (ours_ < 0) return fail("ioctl(TIOCGPTPEER)");
  kind_ = Kind::terminal;
  return set_winsize(static_cast<std::uint32_t>(rows) << 16 | columns, 0);
}

Fail Relay::make_early_terminal() {
  if (kind_ == Kind::terminal) return ok();
  if (kind_ != Kind::none) return fail("the relay is in use already", EBUSY);
  CHECK(make_terminal(0, 0));
  early_ = true;
  return ok();
}

// Never more on the program's side than its queue holds. poll(2) on the slave first lets the kernel
// process what was written to the master when it finds nothing to read: "nothing to read" hence
// means that at most an unfinished line is there.
Fail Relay::feed_terminal() {
  if (master_gone_) return ok();
  while (!in_.empty()) {
    pollfd readable{ours_, POLLIN, 0};
    if (::poll(&readable, 1, 0) == 0) terminal_fed_ = line_fed_;
    std::size_t most = terminal_fed_ < queue_bytes_max ? queue_bytes_max - terminal_fed_ : 0;
    if (readable.revents == 0) most = std::max(most, feed_bytes_min);
    if (most == 0) return ok();
    iovec piece = in_.readable(in_.begin());
    ssize_t n = ::write(master_, piece.iov_base, std::min(piece.iov_len, most));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return ok();
    if (n < 0 && errno == EIO) {
      master_gone_ = true;
      return ok();
    }
    if (n < 0) return fail("write to the terminal");
    const char* bytes = static_cast<const char*>(piece.iov_base);
    for (ssize_t i = 0; i < n; ++i)
      line_fed_ = bytes[i] == '\n' || bytes[i] == '\r' ? 0 : line_fed_ + 1;
    terminal_fed_ += static_cast<std::size_t>(n);
    in_.drop_to(in_.begin() + static_cast<std::uint64_t>(n));
  }
  if (eof_ && !eof_done_ && in_.end() >= eof_at_) {
    // A terminal has no end of file, only a character that says so where the program left it on.
    termios2 settings;
    eof_done_ = true;
    if (::ioctl(ours_, TCGETS2, &settings) == 0 && (settings.c_lflag & ICANON) != 0 &&
        settings.c_cc[VEOF] != 0 && ::write(master_, &settings.c_cc[VEOF], 1) != 1)
      eof_done_ = errno != EAGAIN;
  }
  return ok();
}

Fail Relay::set_winsize(std::uint32_t size, std::uint32_t pixels) {
  if (kind_ != Kind::terminal) return ok();
  winsize value{};
  value.ws_row = static_cast<unsigned short>(size >> 16);
  value.ws_col = static_cast<unsigned short>(size);
  value.ws_xpixel = static_cast<unsigned short>(pixels >> 16);
  value.ws_ypixel = static_cast<unsigned short>(pixels);
  if (::ioctl(master_, TIOCSWINSZ, &value) != 0) return fail("ioctl(TIOCSWINSZ)");
  return ok();
}

pid_t Relay::foreground_group() const {
  pid_t group = 0;
  if (kind_ != Kind::terminal || ::ioctl(master_, TIOCGPGRP, &group) != 0) return 0;
  return group;
}

Fail Relay::fill_terminal_head(capsule::RelayHead& head) const {
  static_assert(sizeof(termios2) == sizeof(head.termios));
  static_assert(sizeof(winsize) == sizeof(head.winsize));
  if (::ioctl(master_, TIOCGWINSZ, &head.winsize) != 0) return fail("ioctl(TIOCGWINSZ)");
  head.foreground_group = foreground_group();
  pid_t session = 0;
  head.session = ::ioctl(master_, TIOCGSID, &session) == 0 ? session : 0;
  // A terminal that was hung up has settings nobody can ask for any more, nor use.
  if (::ioctl(master_, TCGETS2, head.termios) != 0 && errno != EIO) return fail("ioctl(TCGETS2)");
  return ok();
}

Fail Relay::load_terminal_settings(const capsule::RelayHead& head) {
  if (::ioctl(ours_, TCSETS2, head.termios) != 0) return fail("ioctl(TCSETS2)");
  if (::ioctl(master_, TIOCSWINSZ, head.winsize) != 0) return fail("ioctl(TIOCSWINSZ)");
  return ok();
}

}  // namespace godwit::init
