// Moving what was typed but not yet read.
//
// A pipe's content can be looked at by tee(2); a terminal's can't. It is taken by reading the slave
// and put back by TIOCSTI, which hands one byte to the line discipline in the caller, so that it is
// there when the call returns (a write to the master is processed by a kernel thread at some time).
// CAP_SYS_ADMIN allows it for a terminal that isn't ours, and where dev.tty.legacy_tiocsti is 0.
//
// In canonical mode the queue is made of lines. They are read one by one, since each read(2) must
// give the program one line later too; a line that ended by the EOF character has none of its own,
// and an EOF alone reads as 0 bytes. A read that finds nothing first waits for the kernel thread
// (tty_buffer_flush_work in n_tty_read), so after EAGAIN nothing is on its way. What then remains
// is the line being edited: it can only be read in raw mode. Turning ICANON on and off with bytes
// in the queue would make one complete line of them, thus both are done while the queue is empty.
//
// Putting back happens with all processing off but ICANON: no echo, no signals, no translation,
// every control character disabled (0 is never special), except one byte value that doesn't occur
// in the record as EOF, or the record's own last byte as EOL.
#include "capsule/init/terminal.h"

#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstring>

#include "capsule/relay_state.h"

namespace godwit::init {
namespace {

using capsule::CookedRecord;

constexpr std::size_t line_bytes_max = 4096;  // N_TTY_BUF_SIZE

bool add_record(Cooked& out, const char* bytes, std::size_t count, std::uint32_t end) {
  CookedRecord record{static_cast<std::uint32_t>(count), end};
  if (out.used + sizeof(record) + count > sizeof(out.bytes)) return false;
  std::memcpy(out.bytes + out.used, &record, sizeof(record));
  std::memcpy(out.bytes + out.used + sizeof(record), bytes, count);
  out.used += sizeof(record) + count;
  return true;
}

// Each read gives one line, or what raw mode has.
Fail read_until_empty(int slave, bool canonical, const termios2& settings, Cooked& out) {
  char line[line_bytes_max];
  while (true) {
    ssize_t n = ::read(slave, line, sizeof(line));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EIO)) return ok();  // EIO: hung up, nothing to keep.
    if (n < 0) return fail("read of the terminal's queue");
    if (!canonical && n == 0) return ok();
    std::uint32_t end = CookedRecord::open;
    if (canonical) {
      cc_t last = n > 0 ? static_cast<cc_t>(line[n - 1]) : 0;
      bool ended =
          n > 0 && (last == '\n' ||
                    (last != 0 && (last == settings.c_cc[VEOL] || last == settings.c_cc[VEOL2])));
      end = ended ? CookedRecord::complete : CookedRecord::eof;
    }
    if (!add_record(out, line, static_cast<std::size_t>(n), end))
      return fail("terminal's queue is longer than can be", EOVERFLOW);
  }
}

// A byte value that doesn't occur, to stand for the end of the record.
cc_t absent_byte(const char* bytes, std::size_t count) {
  for (int candidate = 1; candidate < 256; ++candidate) {
    if (candidate != '\n' && std::memchr(bytes, candidate, count) == nullptr)
      return static_cast<cc_t>(candidate);
  }
  return 0;
}

Fail type(int slave, const char* bytes, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    if (::ioctl(slave, TIOCSTI, bytes + i) != 0) return fail("ioctl(TIOCSTI)");
  return ok();
}

Fail put_record(int slave, termios2 plain, const CookedRecord& record, const char* bytes) {
  char end = 0;
  if (record.end == CookedRecord::eof) {
    plain.c_cc[VEOF] = absent_byte(bytes, record.bytes);
    end = static_cast<char>(plain.c_cc[VEOF]);
  } else if (record.end == CookedRecord::complete && bytes[record.bytes - 1] != '\n') {
    plain.c_cc[VEOL] = static_cast<cc_t>(bytes[record.bytes - 1]);
  }
  if (::ioctl(slave, TCSETS2, &plain) != 0) return fail("ioctl(TCSETS2)");
  CHECK(type(slave, bytes, record.bytes));
  return record.end == CookedRecord::eof ? type(slave, &end, 1) : ok();
}

}  // namespace

Fail take_input(int slave, Cooked& out) {
  out.used = 0;
  termios2 settings;
  if (::ioctl(slave, TCGETS2, &settings) != 0) return errno == EIO ? ok() : fail("ioctl(TCGETS2)");
  bool canonical = (settings.c_lflag & ICANON) != 0;
  termios2 raw = settings;
  raw.c_lflag &= ~static_cast<tcflag_t>(ICANON);
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  if (canonical) CHECK(read_until_empty(slave, true, settings, out));
  if (::ioctl(slave, TCSETS2, &raw) != 0) return fail("ioctl(TCSETS2)");
  Fail rest = read_until_empty(slave, false, settings, out);
  if (::ioctl(slave, TCSETS2, &settings) != 0) return fail("ioctl(TCSETS2)");
  return rest;
}

Fail put_input(int slave, const Cooked& records) {
  if (records.used == 0) return ok();
  termios2 settings;
  if (::ioctl(slave, TCGETS2, &settings) != 0) return errno == EIO ? ok() : fail("ioctl(TCGETS2)");
  termios2 plain = settings;
  plain.c_iflag = 0;
  plain.c_lflag &= ICANON | EXTPROC;
  std::memset(plain.c_cc, 0, sizeof(plain.c_cc));
  if ((plain.c_lflag & ICANON) == 0) plain.c_cc[VMIN] = 1;
  Fail result;
  std::size_t typed = 0;
  for (std::size_t at = 0; at < records.used && !result.failed();) {
    CookedRecord record;
    std::memcpy(&record, records.bytes + at, sizeof(record));
    at += sizeof(record);
    // More would be dropped without a word; Relay::feed_terminal takes care that it doesn't happen.
    typed += record.bytes + (record.end == CookedRecord::eof ? 1 : 0);
    if (typed >= line_bytes_max) {
      result = fail("terminal's queue is too short", EOVERFLOW);
      break;
    }
    result = put_record(slave, plain, record, records.bytes + at);
    at += record.bytes;
  }
  if (::ioctl(slave, TCSETS2, &settings) != 0) return fail("ioctl(TCSETS2)");
  return result;
}

}  // namespace godwit::init
