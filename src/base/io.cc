#include "base/io.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <vector>

namespace godwit {

Result<void> read_full(int fd, std::span<std::byte> out) {
  while (!out.empty()) {
    ssize_t n = ::read(fd, out.data(), out.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("read(fd={}, {})", fd, out.size()));
    if (n == 0) return make_error(Errc::peer_lost, "end of file, {} bytes missing", out.size());
    out = out.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> write_full(int fd, std::span<const std::byte> data) {
  while (!data.empty()) {
    ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("write(fd={}, {})", fd, data.size()));
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<UniqueFd> open_fd_at(int dirfd, const std::string& path, int flags, unsigned mode) {
  int fd = ::openat(dirfd, path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return os_error(fmt::format("open({}, {:#x})", path, flags));
  return UniqueFd(fd);
}

Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode) {
  return open_fd_at(AT_FDCWD, path, flags, mode);
}

Result<std::string> read_file_at(int dirfd, const std::string& path) {
  UniqueFd fd = TRY(open_fd_at(dirfd, path, O_RDONLY));
  std::string out;
  std::size_t used = 0;
  // proc files have no size; grow geometrically so that a large maps file takes few reads.
  out.resize(16 * 1024);
  while (true) {
    if (used == out.size()) out.resize(out.size() * 2);
    ssize_t n = ::read(fd.get(), out.data() + used, out.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("read({})", path));
    if (n == 0) break;
    used += static_cast<std::size_t>(n);
  }
  out.resize(used);
  return out;
}

Result<std::string> read_file(const std::string& path) { return read_file_at(AT_FDCWD, path); }

Result<void> write_file(const std::string& path, std::string_view data) {
  UniqueFd fd = TRY(open_fd(path, O_WRONLY));
  ssize_t n = ::write(fd.get(), data.data(), data.size());
  if (n < 0) return os_error(fmt::format("write({}, \"{}\")", path, data));
  if (static_cast<std::size_t>(n) != data.size())
    return make_error(Errc::os, "write({}): took {} of {} bytes", path, n, data.size());
  return {};
}

Result<void> replace_file(const std::string& path, std::string_view data, bool durable) {
  std::string temporary = fmt::format("{}.{}.tmp", path, random_hex(4));
  {
    UniqueFd fd = TRY(open_fd(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600));
    Result<void> written = write_full(fd.get(), as_bytes(data));
    if (written.ok() && durable && ::fdatasync(fd.get()) != 0)
      written = os_error(fmt::format("fdatasync({})", temporary));
    if (!written.ok()) {
      ::unlink(temporary.c_str());
      return std::move(written).with(fmt::format("replace {}", path));
    }
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    Error error = os_error(fmt::format("rename({}, {})", temporary, path));
    ::unlink(temporary.c_str());
    return error;
  }
  if (!durable) return {};
  std::string folder = path.substr(0, path.find_last_of('/'));
  UniqueFd dir = TRY(open_fd(folder.empty() ? "/" : folder, O_RDONLY | O_DIRECTORY));
  if (::fsync(dir.get()) != 0) return os_error(fmt::format("fsync({})", folder));
  return {};
}

std::string own_fd_path(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

std::string random_hex(std::size_t bytes) {
  std::vector<unsigned char> raw(bytes);
  ssize_t n = ::getrandom(raw.data(), raw.size(), 0);
  INVARIANT(n == static_cast<ssize_t>(bytes), "getrandom({}) = {}", bytes, n);
  std::string out;
  for (unsigned char b : raw) out += fmt::format("{:02x}", b);
  return out;
}

}  // namespace godwit
