#include "restore/open_files.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "base/io.h"
#include "restore/objects.h"
#include "sys/namespaces.h"
#include "sys/pidfd.h"

namespace godwit::restore {
namespace {

// Flags that mean something at open only; F_GETFL of an O_TMPFILE file shows O_TMPFILE.
constexpr int creation_flags = O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY;

bool is_controlling_tty(const image::OpenFile& file) {
  return file.kind() == image::OpenFile::DEVICE && file.ref().path() == "/dev/tty";
}

bool is_kernel_object(const image::OpenFile& file) {
  return file.kind() == image::OpenFile::EVENTFD || file.kind() == image::OpenFile::TIMERFD ||
         file.kind() == image::OpenFile::SIGNALFD || file.kind() == image::OpenFile::EPOLL;
}

std::map<std::uint32_t, const image::OpenFile*> by_id(const image::Capsule& capsule) {
  std::map<std::uint32_t, const image::OpenFile*> files;
  for (const image::OpenFile& f : capsule.files()) files[f.id()] = &f;
  return files;
}

std::string describe(const image::OpenFile& file) {
  return fmt::format(
      "open file {} ({})", file.id(),
      file.ref().path().empty() ? image::OpenFile::Kind_Name(file.kind()) : file.ref().path());
}

// Of an end that somebody else made. O_ASYNC comes last of all (add_owners).
Result<void> set_flags(int fd, int flags) {
  constexpr int settable = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
  int now = fcntl(fd, F_GETFL);
  if (now < 0) return os_error("fcntl(F_GETFL)");
  if ((now & O_ACCMODE) != (flags & O_ACCMODE)) {
    return make_error(Errc::refused, "access mode {:#o} was {:#o} on the source", now, flags);
  }
  if (fcntl(fd, F_SETFL, flags & settable) != 0) return os_error("fcntl(F_SETFL)");
  return {};
}

}  // namespace

Result<UniqueFd> OpenFiles::open_ref(const image::FileRef& ref, int flags) const {
  // A private directory, or one of another kind that isn't reopened by descriptor, is at its path.
  bool by_content = ref.where() == image::FileRef::PRIVATE && ref.private_file() != 0;
  UniqueFd fd = by_content ? TRY(files_.reopen(ref.private_file(), flags))
                           : TRY(open_in_root(root_fd_, ref.path(), flags | O_NOCTTY));
  if (by_content || ref.written() || (flags & O_PATH) != 0) return fd;
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) return os_error(fmt::format("fstat({})", ref.path()));
  // `migrate` has compared contents; this catches what was replaced since.
  if (S_ISREG(st.st_mode) && ref.size() != 0 &&
      static_cast<std::uint64_t>(st.st_size) != ref.size()) {
    return make_error(Errc::refused, "{} has {} bytes here and {} on the source", ref.path(),
                      st.st_size, ref.size());
  }
  return fd;
}

Result<UniqueFd> OpenFiles::open_one(const image::OpenFile& file, const image::CapsuleSpec& spec) {
  int flags = static_cast<int>(file.flags()) & ~creation_flags;
  switch (file.kind()) {
    case image::OpenFile::REGULAR: {
      UniqueFd fd = TRY(open_ref(file.ref(), flags & ~O_TMPFILE));
      if (lseek(fd.get(), file.pos(), SEEK_SET) != file.pos()) {
        return os_error(fmt::format("lseek({})", file.pos()));
      }
      if (file.write_hint() != 0) {
        std::uint64_t hint = file.write_hint();
        if (fcntl(fd.get(), F_SET_RW_HINT, &hint) != 0) return os_error("fcntl(F_SET_RW_HINT)");
      }
      return fd;
    }
    case image::OpenFile::DIRECTORY: {
      UniqueFd fd = TRY(open_in_root(root_fd_, file.ref().path(), flags | O_DIRECTORY));
      if (file.pos() != 0 && lseek(fd.get(), file.pos(), SEEK_SET) < 0) {
        return os_error(fmt::format("lseek({})", file.pos()));
      }
      return fd;
    }
    case image::OpenFile::DEVICE: {
      UniqueFd fd = TRY(open_in_root(root_fd_, file.ref().path(), flags | O_NOCTTY));
      struct stat st {};
      if (fstat(fd.get(), &st) != 0) return os_error("fstat");
      if (!S_ISCHR(st.st_mode)) return make_error(Errc::refused, "is not a device here");
      return fd;
    }
    case image::OpenFile::STDIO_PIPE:
    case image::OpenFile::STDIO_PTY: {
      // What pipe2 made has no O_LARGEFILE, whatever was opened later has.
      UniqueFd fd = TRY(source_.stdio(file.stdio(), (flags & kernel_largefile) == 0));
      // As init gives them to a program that it starts: it may open /dev/stdout.
      const bool pipe = file.kind() == image::OpenFile::STDIO_PIPE;
      const gid_t group = pipe ? spec.gid() : static_cast<gid_t>(-1);
      if (fchown(fd.get(), spec.uid(), group) != 0) return os_error("fchown");
      TRY(set_flags(fd.get(), flags));
      return fd;
    }
    case image::OpenFile::PIPE: {
      UniqueFd fd = TRY(pipes_.open(file));
      TRY(set_flags(fd.get(), flags));
      return fd;
    }
    case image::OpenFile::O_PATH_FD:
      return open_in_root(root_fd_, file.ref().path(),
                          O_PATH | (flags & (O_DIRECTORY | O_NOFOLLOW)));
    default:
      return make_error(Errc::unsupported, "kind {}", static_cast<int>(file.kind()));
  }
}

Result<UniqueFd> OpenFiles::open_pidfd(const image::OpenFile& file,
                                       const FindSkeleton& skeletons) const {
  const Skeleton* skeleton = file.pid() == 1 ? nullptr : skeletons(file.pid());
  if (file.pid() != 1 && skeleton == nullptr)
    return make_error(Errc::refused, "a pidfd of process {}, which has ended", file.pid());
  UniqueFd fd = TRY(sys::open_pidfd(skeleton ? skeleton->node_pid() : source_.init_pid()));
  TRY(set_flags(fd.get(), static_cast<int>(file.flags())));
  return fd;
}

Result<UniqueFd> OpenFiles::open_socket(const image::OpenFile& file, const image::Capsule& capsule,
                                        const UnixSockets& unix_sockets) {
  for (const image::Socket& socket : capsule.sockets()) {
    if (socket.id() != file.socket()) continue;
    UniqueFd made =
        TRY(socket.family() == AF_UNIX ? unix_sockets.open(socket.id()) : source_.socket(socket));
    if (fchown(made.get(), socket.uid(), socket.gid()) != 0) return os_error("fchown");
    TRY(set_flags(made.get(), static_cast<int>(file.flags())));
    return made;
  }
  return make_error(Errc::invalid, "the image has no socket {}", file.socket());
}

Result<void> OpenFiles::open_all(const image::Capsule& capsule, std::int64_t frozen_ns,
                                 const FindSkeleton& skeletons, Notes& notes) {
  opened_.clear();
  TRY(pipes_.make_all(capsule));
  const UniqueFd netns = TRY(sys::open_namespace(source_.init_pid(), "net"));
  SocketMakers makers(skeletons, notes);
  UnixSockets unix_sockets(root_fd_, netns.get(), files_, makers, capsule);
  TRY(unix_sockets.make_all());
  for (const image::OpenFile& f : capsule.files()) {
    if (is_controlling_tty(f)) continue;  // Only the process itself can open it.
    if (is_kernel_object(f)) {
      UniqueFd made = TRY(make_object(f, capsule.clocks(), frozen_ns).with(describe(f)));
      TRY(set_flags(made.get(), static_cast<int>(f.flags())).with(describe(f)));
      opened_[f.id()] = std::move(made);
      continue;
    }
    if (f.kind() == image::OpenFile::PIDFD) {
      opened_[f.id()] = TRY(open_pidfd(f, skeletons).with(describe(f)));
      continue;
    }
    if (f.kind() == image::OpenFile::SOCKET) {
      opened_[f.id()] = TRY(open_socket(f, capsule, unix_sockets).with(describe(f)));
      continue;
    }
    opened_[f.id()] = TRY(open_one(f, capsule.spec()).with(describe(f)));
  }
  pipes_.close_all();
  return unix_sockets.finish_all(opened_, notes);
}

// The channel stands at a number that the program doesn't use: not above its highest, which may be
// the last one that RLIMIT_NOFILE allows. Received descriptors get the lowest numbers beside it;
// sorted by their lowest wanted number, each wanted number is at least the received one, so moving
// the highest first never hits one that is to move yet.
Result<void> OpenFiles::install(Skeleton& skeleton, const image::Process& process,
                                const image::Capsule& capsule) {
  std::map<std::uint32_t, const image::OpenFile*> files = by_id(capsule);
  std::map<std::uint32_t, std::vector<const image::Fd*>> wanted;  // By OpenFile id.
  std::set<int> used;
  for (const image::Fd& fd : process.fds()) {
    if (!files.contains(fd.file())) {
      return make_error(Errc::invalid, "descriptor {} is of open file {}, which the image lacks",
                        fd.fd(), fd.file());
    }
    wanted[fd.file()].push_back(&fd);
    used.insert(fd.fd());
  }
  struct Move {
    const image::Fd* first;
    const std::vector<const image::Fd*>* all;
    int ours;
  };
  std::vector<Move> moves;
  for (auto& [id, fds] : wanted) {
    std::sort(fds.begin(), fds.end(), [](auto* a, auto* b) { return a->fd() < b->fd(); });
    auto ours = opened_.find(id);
    if (ours != opened_.end()) moves.push_back({fds.front(), &fds, ours->second.get()});
  }
  std::sort(moves.begin(), moves.end(),
            [](auto& a, auto& b) { return a.first->fd() < b.first->fd(); });
  std::vector<int> raw;
  for (const Move& m : moves) raw.push_back(m.ours);
  int channel = 0;
  while (used.contains(channel)) ++channel;
  TRY(skeleton.clear_fds(channel));
  std::vector<int> there = TRY(skeleton.pass_fds(raw));

  Batch b = skeleton.batch();
  auto u = [](int n) { return static_cast<std::uint64_t>(n); };
  auto cloexec = [](const image::Fd& fd) { return fd.cloexec() ? std::uint64_t{O_CLOEXEC} : 0; };
  for (std::size_t i = moves.size(); i-- > 0;) {
    const image::Fd& first = *moves[i].first;
    b.about(fmt::format("descriptor {}", first.fd()));
    if (there[i] != first.fd()) {
      b.call(SYS_dup3, "dup3", {u(there[i]), u(first.fd()), cloexec(first)});
      b.call(SYS_close, "close", {u(there[i])});
    } else if (!first.cloexec()) {
      b.call(SYS_fcntl, "fcntl(F_SETFD)", {u(first.fd()), F_SETFD, 0});
    }
    if (!b.has_room(4, 0)) TRY(skeleton.run(b)), b.clear();
  }
  for (const Move& m : moves) {
    for (const image::Fd* fd : *m.all) {
      if (fd != m.first) b.call(SYS_dup3, "dup3", {u(m.first->fd()), u(fd->fd()), cloexec(*fd)});
      if (!b.has_room(4, 0)) TRY(skeleton.run(b)), b.clear();
    }
  }
  TRY(skeleton.run(b));
  TRY(add_watches(skeleton, process, capsule));
  return install_terminal(skeleton, process, capsule);
}

// What is ready counts as news, so that no edge is missed.
Result<void> OpenFiles::add_watches(Skeleton& skeleton, const image::Process& process,
                                    const image::Capsule& capsule) {
  std::map<std::uint32_t, const image::OpenFile*> files = by_id(capsule);
  std::set<std::uint32_t> done;
  Batch b = skeleton.batch();
  for (const image::Fd& fd : process.fds()) {
    const image::OpenFile& file = *files[fd.file()];
    if (file.kind() != image::OpenFile::EPOLL || !done.insert(file.id()).second) continue;
    for (const image::EpollWatch& watch : file.watches()) {
      epoll_event event{};
      event.events = watch.events();
      event.data.u64 = watch.data();
      b.about(fmt::format("epoll instance {}, watched descriptor {}", fd.fd(), watch.fd()));
      b.call(SYS_epoll_ctl, "epoll_ctl",
             {static_cast<std::uint64_t>(fd.fd()), EPOLL_CTL_ADD,
              static_cast<std::uint64_t>(watch.fd()), b.put_value(event)});
      if (!b.has_room(4, sizeof event)) TRY(skeleton.run(b)), b.clear();
    }
  }
  return skeleton.run(b);
}

Result<void> OpenFiles::take_terminal(Skeleton& skeleton) {
  return at_terminal(skeleton, TIOCSCTTY, "ioctl(TIOCSCTTY)", std::nullopt);
}

Result<void> OpenFiles::at_terminal(Skeleton& skeleton, unsigned long request, const char* name,
                                    std::optional<pid_t> group) {
  UniqueFd terminal = TRY(source_.terminal());
  const int ours[] = {terminal.get()};
  const std::vector<int> there = TRY(skeleton.pass_fds(ours));
  Batch b = skeleton.batch();
  b.about("controlling terminal");
  const auto fd = static_cast<std::uint64_t>(there[0]);
  b.call(SYS_ioctl, name, {fd, request, group ? b.put_value<std::int32_t>(*group) : 0});
  b.call(SYS_close, "close", {fd});
  return skeleton.run(b);
}

Result<void> OpenFiles::install_terminal(Skeleton& skeleton, const image::Process& process,
                                         const image::Capsule& capsule) {
  std::map<std::uint32_t, const image::OpenFile*> files = by_id(capsule);
  auto u = [](int n) { return static_cast<std::uint64_t>(n); };
  // Most have it since before the freeze; to take what one has changes nothing.
  if (process.controlling_terminal() && process.sid() == process.pid())
    TRY(take_terminal(skeleton));
  if (process.foreground_group() != 0)
    TRY(at_terminal(skeleton, TIOCSPGRP, "ioctl(TIOCSPGRP)", process.foreground_group()));
  for (const image::Fd& fd : process.fds()) {
    const image::OpenFile& file = *files[fd.file()];
    if (!is_controlling_tty(file)) continue;
    if (std::any_of(process.fds().begin(), process.fds().end(), [&](const image::Fd& other) {
          return other.file() == fd.file() && other.fd() != fd.fd();
        })) {
      return make_error(Errc::unsupported, "descriptor {}: several descriptors of one /dev/tty",
                        fd.fd());
    }
    Batch b = skeleton.batch();
    b.about(fmt::format("descriptor {} (/dev/tty)", fd.fd()));
    std::size_t opened =
        b.call(SYS_openat, "openat",
               {u(AT_FDCWD), b.put_string("/dev/tty"),
                (file.flags() & ~u(creation_flags)) | (fd.cloexec() ? O_CLOEXEC : 0)});
    TRY(skeleton.run(b));
    std::int64_t at = b.result(opened);
    if (at == fd.fd()) continue;
    b.clear();
    auto from = static_cast<std::uint64_t>(at);
    b.call(SYS_dup3, "dup3", {from, u(fd.fd()), fd.cloexec() ? std::uint64_t{O_CLOEXEC} : 0});
    b.call(SYS_close, "close", {from});
    TRY(skeleton.run(b));
  }
  return {};
}

Result<void> OpenFiles::add_owners(Batch& b, const image::Process& process,
                                   const image::Capsule& capsule) const {
  std::map<std::uint32_t, const image::OpenFile*> files = by_id(capsule);
  std::map<std::uint32_t, bool> done;
  for (const image::Fd& fd : process.fds()) {
    const image::OpenFile& f = *files.at(fd.file());
    if (std::exchange(done[f.id()], true)) continue;
    auto number = static_cast<std::uint64_t>(fd.fd());
    if (f.owner() != 0) {
      struct {
        std::int32_t type, pid;
      } owner = {f.owner_type(), f.owner()};
      b.call(SYS_fcntl, "fcntl(F_SETOWN_EX)", {number, F_SETOWN_EX, b.put_value(owner)});
    }
    if (f.owner_signal() != 0) {
      b.call(SYS_fcntl, "fcntl(F_SETSIG)",
             {number, F_SETSIG, static_cast<std::uint64_t>(f.owner_signal())});
    }
    if ((f.flags() & O_ASYNC) != 0) {
      b.call(SYS_fcntl, "fcntl(F_SETFL)",
             {number, F_SETFL, f.flags() & ~std::uint64_t{creation_flags}});
    }
  }
  return {};
}

}  // namespace godwit::restore
