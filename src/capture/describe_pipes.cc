// How a pipe is read without taking anything out:
// - tee(2) puts references to its pages into a pipe of ours, through a copy of a reading end
//   (pidfd_getfd). No offset, no counter, no reader of the program changes; a rollback has nothing
//   to put back.
// - Each buffer remembers whether it was written as a packet (O_DIRECT), also in the copy: a read
//   ends with a packet, and what a short read leaves of a packet is dropped. Both can be tried on
//   copies, so the borders of packets are found although no call tells them:
//     a read of everything ends where the next packet ends;
//     a read of n bytes that drops something has ended within a packet.
//
// Whether an end is held outside of the tree: a pipe that has no writer in it must show POLLHUP to
// its readers, one without a reader POLLERR to its writers.

#include "capture/describe_pipes.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>

#include "base/io.h"

namespace godwit::capture {
namespace {

constexpr int capacity_default = 65536;

Result<std::size_t> bytes_in(int fd) {
  int bytes = 0;
  if (::ioctl(fd, FIONREAD, &bytes) != 0) return os_error("ioctl(FIONREAD) of a pipe");
  return static_cast<std::size_t>(bytes);
}

Result<int> capacity_of(int fd) {
  int bytes = ::fcntl(fd, F_GETPIPE_SZ);
  if (bytes < 0) return os_error("fcntl(F_GETPIPE_SZ)");
  return bytes;
}

// What a pipe holds, again, in a pipe of ours.
class Copy {
 public:
  static Result<Copy> of(int reader) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return os_error("pipe2");
    Copy copy{UniqueFd(ends[0]), UniqueFd(ends[1])};
    const int capacity = TRY(capacity_of(reader));
    if (capacity > capacity_default && ::fcntl(ends[1], F_SETPIPE_SZ, capacity) < 0)
      return os_error(fmt::format("fcntl(F_SETPIPE_SZ, {})", capacity));
    const std::size_t bytes = TRY(bytes_in(reader));
    // One call takes all buffers that there are: both pipes have as many places for them.
    ssize_t n = ::tee(reader, ends[1], std::max<std::size_t>(bytes, 1), SPLICE_F_NONBLOCK);
    if (n < 0 && errno == EAGAIN) n = 0;  // Empty.
    if (n < 0) return os_error(fmt::format("tee({} bytes)", bytes));
    if (static_cast<std::size_t>(n) != bytes)
      return make_error(Errc::internal, "tee of a pipe gave {} bytes of {}", n, bytes);
    return copy;
  }

  Result<Copy> again() const { return of(reader_.get()); }
  Result<std::size_t> left() const { return bytes_in(reader_.get()); }

  Result<std::string> read(std::size_t bytes) {
    std::string data(bytes, '\0');
    const ssize_t n = ::read(reader_.get(), data.data(), bytes);
    if (n <= 0) return os_error(fmt::format("read({} bytes of a copied pipe): {}", bytes, n));
    data.resize(static_cast<std::size_t>(n));
    return data;
  }

  // Preconditions: one byte is left. Whether that is a packet: if not, a read takes what comes
  // after it too.
  Result<bool> is_packet() {
    if (::write(writer_.get(), "", 1) != 1) return os_error("write to a copied pipe");
    return TRY(read(2)).size() == 1;
  }

 private:
  Copy(UniqueFd reader, UniqueFd writer) : reader_(std::move(reader)), writer_(std::move(writer)) {}
  UniqueFd reader_, writer_;
};

// Whether a read of `bytes` ends within a packet.
Result<bool> cuts_packet(const Copy& from, std::size_t bytes) {
  Copy copy = TRY(from.again());
  const std::size_t before = TRY(copy.left());
  TRY(copy.read(bytes));
  return TRY(copy.left()) != before - bytes;
}

// Of the `bytes` that one read gives: how many are in front of the packet with which it ends.
// `last`: nothing comes after them, so that they may also end without one.
Result<std::size_t> plain_bytes(const Copy& from, std::size_t bytes, bool last) {
  if (bytes > 1 && TRY(cuts_packet(from, 1))) return 0;  // The usual case of packets.
  if (bytes == 1 || !TRY(cuts_packet(from, bytes - 1))) {
    // The last byte is a packet by itself, or there is none.
    if (!last) return bytes - 1;
    Copy copy = TRY(from.again());
    if (bytes > 1) TRY(copy.read(bytes - 1));
    return TRY(copy.is_packet()) ? bytes - 1 : bytes;
  }
  std::size_t plain = 1, cut = bytes - 1;  // A read of `plain` cuts none, one of `cut` does.
  while (cut - plain > 1) {
    const std::size_t middle = plain + (cut - plain) / 2;
    (TRY(cuts_packet(from, middle)) ? cut : plain) = middle;
  }
  return plain;
}

Result<void> read_content(int reader, image::Pipe& pipe) {
  Copy at = TRY(Copy::of(reader));
  while (const std::size_t left = TRY(at.left())) {
    Copy ahead = TRY(at.again());
    const std::string piece = TRY(ahead.read(left));
    const bool last = piece.size() == left;
    const std::size_t plain = TRY(plain_bytes(at, piece.size(), last));
    if (plain > 0) pipe.add_content()->set_data(piece.substr(0, plain));
    if (plain < piece.size()) {
      image::PipeContent& packet = *pipe.add_content();
      packet.set_data(piece.substr(plain));
      packet.set_packet(true);
    }
    at = std::move(ahead);
  }
  return {};
}

Result<bool> shows(int fd, short event) {
  pollfd asked{fd, static_cast<short>(POLLIN | POLLOUT), 0};
  if (::poll(&asked, 1, 0) < 0) return os_error("poll of a pipe");
  return (asked.revents & event) != 0;
}

}  // namespace

bool PipeTable::Entry::named() const {
  struct statfs system {};
  return ::fstatfs(reader.valid() ? reader.get() : writer.get(), &system) == 0 &&
         system.f_type != PIPEFS_MAGIC;
}

Result<std::uint32_t> PipeTable::add(UniqueFd end, const struct stat& st, unsigned flags,
                                     const std::string& whose) {
  Entry& entry = entries_[{st.st_dev, st.st_ino}];
  if (entry.id == 0) {
    entry.id = static_cast<std::uint32_t>(entries_.size());
    entry.st = st;
    entry.whose = whose;
  }
  const unsigned access = flags & O_ACCMODE;
  if (access != O_WRONLY && !entry.reader.valid()) entry.reader = TRY(duplicate(end.get()));
  if (access != O_RDONLY && !entry.writer.valid()) entry.writer = std::move(end);
  return entry.id;
}

Result<void> PipeTable::describe(image::Capsule& capsule) const {
  for (const auto& [object, entry] : entries_) {
    image::Pipe& pipe = *capsule.add_pipes();
    pipe.set_id(entry.id);
    pipe.set_capacity(static_cast<std::uint32_t>(
        TRY(capacity_of(entry.reader.valid() ? entry.reader.get() : entry.writer.get()))));
    pipe.set_mode(entry.st.st_mode & 07777);
    pipe.set_uid(entry.st.st_uid), pipe.set_gid(entry.st.st_gid);
  }
  return {};
}

// A pipe that nobody in the tree can read keeps its bytes as long as somebody could still open it
// through /proc. To look, we do that: with O_ASYNC on a writing end that costs it a SIGIO.
Result<UniqueFd> PipeTable::readable(const Entry& entry) const {
  if (entry.reader.valid()) return duplicate(entry.reader.get());
  return open_fd(own_fd_path(entry.writer.get()), O_RDONLY | O_NONBLOCK);
}

Result<std::vector<std::string>> PipeTable::reasons() const {
  std::vector<std::string> reasons;
  for (const auto& [object, entry] : entries_) {
    // POLLHUP of a FIFO isn't shown to those who opened it before its first writer came. But its
    // other ends can't be outside: the directories that travel are the capsule's own.
    if (!entry.named()) {
      if (!entry.writer.valid() && !TRY(shows(entry.reader.get(), POLLHUP)))
        reasons.push_back(
            entry.whose +
            " reads a pipe which is written outside of the capsule, so it can't move");
      if (!entry.reader.valid() && !TRY(shows(entry.writer.get(), POLLERR)))
        reasons.push_back(entry.whose +
                          " writes a pipe which is read outside of the capsule, so it can't move");
    }
    // tee refuses them (O_NOTIFICATION_PIPE).
    UniqueFd reader = TRY(readable(entry));
    if (Result<Copy> copy = Copy::of(reader.get()); !copy.ok()) {
      if (copy.error().sys_errno() != EINVAL) return std::move(copy).error();
      reasons.push_back(entry.whose + " is a queue of kernel notifications, which can't move yet");
    }
  }
  return reasons;
}

Result<void> PipeTable::describe_with_content(image::Capsule& capsule) const {
  for (const std::string& reason : TRY(reasons())) return Error(Errc::refused, reason);
  const int first = capsule.pipes_size();
  TRY(describe(capsule));
  for (int i = first; i < capsule.pipes_size(); ++i) {
    image::Pipe& pipe = *capsule.mutable_pipes(i);
    auto entry = std::find_if(entries_.begin(), entries_.end(),
                              [&](const auto& e) { return e.second.id == pipe.id(); });
    UniqueFd reader = TRY(readable(entry->second));
    TRY(read_content(reader.get(), pipe).with(entry->second.whose));
  }
  return {};
}

}  // namespace godwit::capture
