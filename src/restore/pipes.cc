#include "restore/pipes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

namespace godwit::restore {
namespace {

Result<UniqueFd> open_writer(int pipe) { return open_fd(own_fd_path(pipe), O_WRONLY | O_NONBLOCK); }

Result<void> put(int writer, const std::string& data, bool packet) {
  const int flags = O_NONBLOCK | (packet ? O_DIRECT : 0);
  if (::fcntl(writer, F_SETFL, flags) != 0)
    return os_error(fmt::format("fcntl(F_SETFL, {:#o})", flags));
  const ssize_t n = ::write(writer, data.data(), data.size());
  if (n < 0 || static_cast<std::size_t>(n) != data.size())
    return os_error(fmt::format("write({} bytes): {}", data.size(), n), n < 0 ? errno : ENOSPC);
  return {};
}

// A packet is merged into plain bytes in front of it if their page has room, and then it is none.
// Bytes that come by tee(2) are never added to.
Result<void> put_closed(int writer, const std::string& data, int capacity) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return os_error("pipe2");
  UniqueFd from(ends[0]), to(ends[1]);
  if (::fcntl(to.get(), F_SETPIPE_SZ, capacity) < 0)
    return os_error(fmt::format("fcntl(F_SETPIPE_SZ, {})", capacity));
  TRY(put(to.get(), data, false));
  const ssize_t n = ::tee(from.get(), writer, data.size(), SPLICE_F_NONBLOCK);
  if (n < 0 || static_cast<std::size_t>(n) != data.size())
    return os_error(fmt::format("tee({} bytes): {}", data.size(), n), n < 0 ? errno : ENOSPC);
  return {};
}

Result<void> fill(int way, const image::Pipe& pipe) {
  if (pipe.content().empty()) return {};
  UniqueFd writer = TRY(open_writer(way));
  for (int i = 0; i < pipe.content_size(); ++i) {
    const image::PipeContent& content = pipe.content(i);
    const bool closed =
        !content.packet() && i + 1 < pipe.content_size() && pipe.content(i + 1).packet();
    TRY(closed ? put_closed(writer.get(), content.data(), static_cast<int>(pipe.capacity()))
               : put(writer.get(), content.data(), content.packet()));
  }
  return {};
}

}  // namespace

Result<Pipes::Pipe> Pipes::make(const image::Pipe& pipe, const image::FileRef* fifo) const {
  Pipe made;
  if (fifo != nullptr) {
    if (fifo->where() != image::FileRef::PRIVATE)
      return make_error(Errc::unsupported, "{} isn't a file of the capsule's own", fifo->path());
    // For reading and writing: neither end has to wait for the other.
    made.way = TRY(files_.reopen(fifo->private_file(), O_RDWR | O_NONBLOCK));
  } else {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return os_error("pipe2");
    made.reader.reset(ends[0]), made.writer.reset(ends[1]);
    made.way = TRY(open_fd(own_fd_path(ends[0]), O_RDWR | O_NONBLOCK));
    // Whoever opens /proc/PID/fd/N needs permission as for a file.
    if (::fchown(ends[0], pipe.uid(), pipe.gid()) != 0)
      return os_error(fmt::format("fchown({}, {})", pipe.uid(), pipe.gid()));
    if (::fchmod(ends[0], pipe.mode()) != 0)
      return os_error(fmt::format("fchmod({:#o})", pipe.mode()));
  }
  const int capacity = ::fcntl(made.way.get(), F_GETPIPE_SZ);
  if (capacity < 0) return os_error("fcntl(F_GETPIPE_SZ)");
  if (static_cast<std::uint32_t>(capacity) != pipe.capacity() &&
      ::fcntl(made.way.get(), F_SETPIPE_SZ, pipe.capacity()) < 0)
    return os_error(fmt::format("fcntl(F_SETPIPE_SZ, {})", pipe.capacity()));
  struct stat before {};
  if (::fstat(made.way.get(), &before) != 0) return os_error("fstat");
  TRY(fill(made.way.get(), pipe));
  const timespec times[2] = {before.st_atim, before.st_mtim};  // As private_files.cc set a FIFO's.
  if (::futimens(made.way.get(), times) != 0) return os_error("futimens");
  return made;
}

Result<void> Pipes::make_all(const image::Capsule& capsule) {
  pipes_.clear();
  std::map<std::uint32_t, const image::FileRef*> fifos;
  for (const image::OpenFile& file : capsule.files())
    if (file.kind() == image::OpenFile::PIPE && file.has_ref()) fifos[file.pipe()] = &file.ref();
  for (const image::Pipe& pipe : capsule.pipes()) {
    auto fifo = fifos.find(pipe.id());
    pipes_[pipe.id()] = TRY(make(pipe, fifo == fifos.end() ? nullptr : fifo->second)
                                .with(fmt::format("pipe {}", pipe.id())));
  }
  return {};
}

Result<UniqueFd> Pipes::open(const image::OpenFile& file) {
  auto pipe = pipes_.find(file.pipe());
  if (pipe == pipes_.end())
    return make_error(Errc::invalid, "the image has no pipe {}", file.pipe());
  const unsigned access = file.flags() & O_ACCMODE;
  if ((static_cast<int>(file.flags()) & kernel_largefile) == 0) {
    UniqueFd& original = access == O_RDONLY ? pipe->second.reader : pipe->second.writer;
    if (original.valid()) return std::move(original);
  }
  return open_fd(own_fd_path(pipe->second.way.get()), static_cast<int>(access) | O_NONBLOCK);
}

}  // namespace godwit::restore
