// How a file is told apart:
// - Its identity is (st_dev, st_ino) of the object behind a /proc link, never its path: paths may
// have been renamed,
//   unlinked, mounted over. A path is believed only if it leads to the same object in the process's
//   root.
// - Private files (no name, memfd, shared anonymous memory) get an id computed from that identity,
// so that it is the
//   same in every description of one migration. Bit 30 is set in these; smaller ids are free for
//   files with names.
// - Which descriptors share an open file description is asked of the kernel (kcmp), only among
// descriptors
//   of the same object: two opens of one file are two descriptions with two offsets.

#include "capture/describe_files.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/io.h"
#include "capture/describe_objects.h"
#include "sys/pidfd.h"

namespace godwit::capture {
namespace {

constexpr std::uint32_t unnamed_file_bit = 0x4000'0000;
constexpr std::size_t inside_fds_min =
    8;  // Two stops of the process cost as much as /proc for a few.

std::uint32_t private_id(std::uint64_t device, std::uint64_t inode) {
  std::uint64_t x = (device * 0x9e3779b97f4a7c15ULL) ^ inode;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return unnamed_file_bit | static_cast<std::uint32_t>((x ^ (x >> 31)) & (unnamed_file_bit - 1));
}

Result<struct stat> stat_place(const std::string& place) {
  struct stat st {};
  if (::stat(place.c_str(), &st) != 0) return os_error(fmt::format("stat({})", place));
  return st;
}

std::int64_t ns(const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; }

constexpr std::uint32_t memfd_flags_of(int seals) {
  // A memfd without MFD_ALLOW_SEALING carries F_SEAL_SEAL from the start.
  return seals == F_SEAL_SEAL ? 0 : 2 /* MFD_ALLOW_SEALING */;
}

// `copy` is of the same open file description.
Result<void> describe_ownership(int copy, image::OpenFile& file) {
  f_owner_ex owner{};
  if (::fcntl(copy, F_GETOWN_EX, &owner) != 0) return os_error("fcntl(F_GETOWN_EX)");
  if (owner.pid != 0) {
    // Told in our PID namespace; the capsule's own number is wanted.
    sys::ProcStatus status = TRY(sys::read_status(owner.pid));
    file.set_owner_type(owner.type);
    file.set_owner(owner.type == F_OWNER_PGRP ? status.ns_pgid.back() : status.ns_pid.back());
  }
  int signal = ::fcntl(copy, F_GETSIG);
  if (signal > 0) file.set_owner_signal(signal);
  if (int seals = ::fcntl(copy, F_GET_SEALS); seals > 0)
    file.set_seals(static_cast<std::uint32_t>(seals));
  return {};
}

}  // namespace

std::string without_deleted_mark(std::string path, bool& deleted) {
  constexpr std::string_view mark = " (deleted)";
  deleted = path.ends_with(mark);
  if (deleted) path.resize(path.size() - mark.size());
  return path;
}

int stdio_stream(const TreeStdio& stdio, const struct stat& st) {
  if (stdio.kind == TreeStdio::Kind::none || st.st_dev != stdio.device) return -1;
  const int streams = stdio.kind == TreeStdio::Kind::pipes ? 3 : 1;
  for (int i = 0; i < streams; ++i)
    if (st.st_ino == stdio.inode[i]) return i;
  return -1;
}

bool is_plain_device(const struct stat& st) {
  if (!S_ISCHR(st.st_mode)) return false;
  const unsigned major = gnu_dev_major(st.st_rdev), minor = gnu_dev_minor(st.st_rdev);
  // null, zero, full, random, urandom; tty is the controlling terminal, whichever it is.
  if (major == 1) return minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9;
  return major == 5 && minor == 0;
}

Result<std::uint32_t> FileTable::private_file(image::PrivateFile::Kind kind,
                                              const std::string& place, const std::string& path,
                                              const struct stat& st) {
  const std::uint32_t id = private_id(st.st_dev, st.st_ino);
  const std::pair<std::uint64_t, std::uint64_t> object{st.st_dev, st.st_ino};
  auto [known, added] = private_ids_.emplace(id, object);
  if (!added) {
    if (known->second != object)
      return make_error(Errc::internal,
                        "two files without a name have the same id {:#x}: {} and another", id,
                        path);
    return id;
  }
  places_[id] = place;
  image::PrivateFile& file = *capsule_.add_private_files();
  file.set_id(id);
  file.set_kind(kind);
  file.set_path(path);
  file.set_mode(st.st_mode);
  file.set_uid(st.st_uid);
  file.set_gid(st.st_gid);
  file.set_size(static_cast<std::uint64_t>(st.st_size));
  file.set_mtime_ns(ns(st.st_mtim));
  file.set_atime_ns(ns(st.st_atim));
  if (S_ISREG(st.st_mode)) file.set_space(0x8000'0000u | id);
  if (kind == image::PrivateFile::MEMFD) {
    UniqueFd fd = TRY(open_fd(place, O_RDONLY));
    int seals = ::fcntl(fd.get(), F_GET_SEALS);
    if (seals < 0) return os_error(fmt::format("fcntl(F_GET_SEALS, {})", path));
    file.set_seals(static_cast<std::uint32_t>(seals));
    file.set_memfd_flags(memfd_flags_of(seals));
  }
  return id;
}

Result<image::FileRef> FileTable::refer(pid_t pid, const std::string& place,
                                        const std::string& path, bool deleted) {
  constexpr std::string_view memfd_prefix = "/memfd:";
  struct stat st = TRY(stat_place(place));
  image::FileRef ref;
  ref.set_path(path);
  ref.set_size(static_cast<std::uint64_t>(st.st_size));
  ref.set_mtime_ns(ns(st.st_mtim));
  ref.set_mode(st.st_mode);
  auto is_private = [&](image::PrivateFile::Kind kind,
                        const std::string& name) -> Result<image::FileRef> {
    ref.set_where(image::FileRef::PRIVATE);
    ref.set_private_file(TRY(private_file(kind, place, name, st)));
    return ref;
  };
  if (path.starts_with(memfd_prefix))
    return is_private(image::PrivateFile::MEMFD, path.substr(memfd_prefix.size()));
  if (path == "/dev/zero" && S_ISREG(st.st_mode)) return is_private(image::PrivateFile::SHMEM, "");
  struct stat named {};
  const std::string through_root = sys::proc_path(pid, "root") + path;
  // A symbolic link itself can be open too (O_PATH | O_NOFOLLOW).
  const int how = S_ISLNK(st.st_mode) ? AT_SYMLINK_NOFOLLOW : 0;
  const bool found = !deleted && ::fstatat(AT_FDCWD, through_root.c_str(), &named, how) == 0;
  if (found && named.st_dev == st.st_dev && named.st_ino == st.st_ino) {
    ref.set_where(image::FileRef::SHARED);
    return ref;
  }
  if (S_ISREG(st.st_mode)) return is_private(image::PrivateFile::UNLINKED, path);
  return make_error(Errc::refused, "{} of process {} is no longer where it was", path, pid);
}

Result<void> FileTable::classify(const Holder& holder, int fd, const sys::FdInfo& info,
                                 const struct stat& st, image::OpenFile& file) {
  const std::string place = sys::proc_path(holder.pid, fmt::format("fd/{}", fd));
  bool deleted = false;
  const std::string path = without_deleted_mark(TRY(sys::read_link(place)), deleted);
  file.set_flags(info.flags & ~static_cast<unsigned>(O_CLOEXEC));
  file.set_pos(info.pos);
  if (info.flags & O_PATH) {
    file.set_kind(image::OpenFile::O_PATH_FD);
    *file.mutable_ref() = TRY(refer(holder.pid, place, path, deleted));
    return {};
  }
  if (S_ISSOCK(st.st_mode) && !stands_still_) {
    // A copy would keep it open for a moment after the program has closed it, as its peer can see.
    file.set_kind(image::OpenFile::SOCKET);
    return {};
  }
  UniqueFd copy = TRY(sys::pidfd_getfd(holder.pidfd, fd));
  TRY(describe_ownership(copy.get(), file));
  if (int stream = stdio_stream(tree_.stdio, st); stream >= 0) {
    const bool pty = tree_.stdio.kind == TreeStdio::Kind::pty;
    file.set_kind(pty ? image::OpenFile::STDIO_PTY : image::OpenFile::STDIO_PIPE);
    file.set_stdio(static_cast<std::uint32_t>(stream));
    return {};
  }
  if (S_ISFIFO(st.st_mode)) {
    file.set_kind(image::OpenFile::PIPE);
    file.set_pipe(TRY(pipes_.add(std::move(copy), st, info.flags, holder.name_of(fd))));
    if (!path.starts_with("pipe:"))
      *file.mutable_ref() = TRY(refer(holder.pid, place, path, deleted));
    return {};
  }
  if (S_ISSOCK(st.st_mode)) {
    file.set_kind(image::OpenFile::SOCKET);
    file.set_socket(TRY(sockets_.add(std::move(copy), st, holder.name_of(fd))));
    return {};
  }
  if (image::OpenFile::Kind kind = object_kind(path); kind != image::OpenFile::REGULAR) {
    file.set_kind(kind);
    TRY(describe_object(copy.get(), info, file));
    if (kind == image::OpenFile::EPOLL && stands_still_)
      TRY(describe_watches(holder.pid, fd, info, file));
    return {};
  }
  if (S_ISREG(st.st_mode))
    file.set_kind(image::OpenFile::REGULAR);
  else if (S_ISDIR(st.st_mode))
    file.set_kind(image::OpenFile::DIRECTORY);
  else if (is_plain_device(st))
    file.set_kind(image::OpenFile::DEVICE);
  else
    return make_error(Errc::refused, "descriptor {} of process {} is {}, which can't move yet", fd,
                      holder.pid_inside, path);
  *file.mutable_ref() = TRY(refer(holder.pid, place, path, deleted));
  file.mutable_ref()->set_written((info.flags & O_ACCMODE) != O_RDONLY);
  return {};
}

Result<std::uint32_t> FileTable::open_file(const Holder& holder, int fd, const struct stat& st,
                                           const sys::FdInfo* known) {
  std::vector<Description>& same_object = met_[{st.st_dev, st.st_ino}];
  for (const Description& met : same_object) {
    if (TRY(sys::kcmp(holder.pid, met.pid, sys::KcmpType::file, static_cast<std::uint64_t>(fd),
                      static_cast<std::uint64_t>(met.fd))) == 0)
      return met.id;
  }
  image::OpenFile file;
  file.set_id(static_cast<std::uint32_t>(capsule_.files_size()) + 1);
  TRY(classify(holder, fd, known ? *known : TRY(sys::read_fdinfo(holder.pid, fd)), st, file));
  *capsule_.add_files() = file;
  same_object.push_back({holder.pid, fd, file.id()});
  return file.id();
}

std::string FileTable::Holder::name_of(int fd) const {
  return pid_inside != 0 ? fmt::format("descriptor {} of process {}", fd, pid_inside)
                         : "a descriptor in a message between sockets";
}

Result<void> FileTable::describe_sockets(std::vector<UniqueFd>& in_flight) {
  const pid_t self = ::getpid();
  UniqueFd pidfd = TRY(sys::open_pidfd(self));
  auto describe = [&](UniqueFd fd) -> Result<std::uint32_t> {
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) return os_error("fstat");
    const std::uint32_t id = TRY(open_file({self, 0, pidfd.get()}, fd.get(), st, nullptr));
    in_flight.push_back(std::move(fd));
    return id;
  };
  auto pid_inside = [this](pid_t node_pid) {
    auto pid = pids_.find(node_pid);
    return pid == pids_.end() ? 0 : pid->second;
  };
  return sockets_.describe(tree_.connections, {describe, pid_inside}, capsule_);
}

Result<std::uint32_t> FileTable::open_outside(const Holder& holder, int fd, bool& cloexec) {
  const sys::FdInfo info = TRY(sys::read_fdinfo(holder.pid, fd));
  cloexec = (info.flags & O_CLOEXEC) != 0;
  const struct stat st = TRY(stat_place(sys::proc_path(holder.pid, fmt::format("fd/{}", fd))));
  return open_file(holder, fd, st, &info);
}

Result<void> FileTable::describe_fds(pid_t pid, int pidfd, image::Process& process,
                                     const LookInside& inside) {
  const Holder holder{pid, process.pid(), pidfd};
  pids_[pid] = process.pid();
  const std::vector<int> fds = TRY(sys::list_fds(pid));
  std::vector<OwnLook> looks;
  if (inside && fds.size() >= inside_fds_min) looks = TRY(inside(fds));
  for (std::size_t i = 0; i < fds.size(); ++i) {
    bool cloexec = !looks.empty() && looks[i].cloexec;
    Result<std::uint32_t> id = looks.empty() ? open_outside(holder, fds[i], cloexec)
                                             : open_file(holder, fds[i], looks[i].st, nullptr);
    if (!id.ok()) {
      // A running program may have closed it since it was listed: ENOENT in /proc, EBADF elsewhere.
      const int code = id.error().sys_errno();
      if (!stands_still_ && (code == ENOENT || code == EBADF)) continue;
      return std::move(id).error().with(fmt::format("descriptor {}", fds[i]));
    }
    image::Fd& out = *process.add_fds();
    out.set_fd(fds[i]);
    out.set_cloexec(cloexec);
    out.set_file(*id);
  }
  return {};
}

}  // namespace godwit::capture
