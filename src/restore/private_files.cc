#include "restore/private_files.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/io.h"

namespace godwit::restore {
namespace {

Result<UniqueFd> open2(int root_fd, const std::string& path, int flags, unsigned mode,
                       std::uint64_t resolve) {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC);
  how.mode = mode;
  how.resolve = resolve;
  // Relative to the root, or "." for the root itself.
  std::size_t from = path.find_first_not_of('/');
  std::string relative = from == std::string::npos ? "." : path.substr(from);
  UniqueFd fd(static_cast<int>(syscall(SYS_openat2, root_fd, relative.c_str(), &how, sizeof how)));
  if (!fd) return os_error(fmt::format("openat2({}, {:#x})", path, flags));
  return fd;
}

constexpr std::uint64_t strict = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;

struct Place {
  UniqueFd parent;
  std::string leaf;
};

Result<Place> place_of(int root_fd, const std::string& path) {
  std::size_t slash = path.rfind('/');
  if (path.empty() || path[0] != '/' || slash + 1 == path.size()) {
    return make_error(Errc::invalid, "private file with the path '{}'", path);
  }
  UniqueFd parent = TRY(open2(root_fd, path.substr(0, slash), O_PATH | O_DIRECTORY, 0, strict));
  return Place{std::move(parent), path.substr(slash + 1)};
}

// The object behind a MAP_SHARED | MAP_ANONYMOUS mapping, as a descriptor: what /proc/PID/maps
// calls
// "/dev/zero (deleted)". A memfd would do as well but would show another name.
Result<UniqueFd> make_shared_memory(std::uint64_t size) {
  std::size_t bytes = (size + 4095) & ~std::size_t{4095};
  if (bytes == 0) return make_error(Errc::invalid, "shared memory of size 0");
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return os_error(fmt::format("mmap(shared, {})", bytes));
  auto from = reinterpret_cast<std::uintptr_t>(at);
  auto fd = open_fd(fmt::format("/proc/self/map_files/{:x}-{:x}", from, from + bytes), O_RDWR);
  munmap(at, bytes);
  return fd;
}

Result<UniqueFd> make_memfd(const image::PrivateFile& file) {
  constexpr unsigned exec_flags = 0x8 | 0x10;  // MFD_NOEXEC_SEAL, MFD_EXEC: only from 6.3.
  unsigned flags = file.memfd_flags() | MFD_CLOEXEC;
  if (file.seals() != 0) flags |= MFD_ALLOW_SEALING;
  UniqueFd fd(memfd_create(file.path().c_str(), flags));
  if (!fd && errno == EINVAL) fd.reset(memfd_create(file.path().c_str(), flags & ~exec_flags));
  if (!fd) return os_error(fmt::format("memfd_create({}, {:#x})", file.path(), flags));
  return fd;
}

}  // namespace

Result<UniqueFd> open_in_root(int root_fd, const std::string& path, int flags) {
  return open2(root_fd, path, flags, 0, RESOLVE_IN_ROOT);
}

Result<void> PrivateFiles::sync(const image::Capsule& capsule) {
  // Parents before children, links after what they link to.
  std::vector<const image::PrivateFile*> order;
  for (const image::PrivateFile& f : capsule.private_files()) order.push_back(&f);
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) {
    bool link_a = a->nlink_of() != 0, link_b = b->nlink_of() != 0;
    return link_a != link_b ? link_b : a->path() < b->path();
  });
  std::map<std::uint32_t, const image::PrivateFile*> wanted;
  for (const image::PrivateFile* f : order) wanted[f->id()] = f;
  // Children before their directories.
  std::vector<Entry*> known;
  for (auto& [id, entry] : entries_) known.push_back(&entry);
  std::sort(known.begin(), known.end(), [](auto* a, auto* b) { return a->at > b->at; });
  for (Entry* e : known) {
    auto want = wanted.find(e->file.id());
    if (want == wanted.end())
      TRY(remove(*e));
    else
      TRY(leave_place(*e, *want->second).with(fmt::format("private file {}", e->file.id())));
  }
  std::erase_if(entries_, [&](const auto& e) { return !wanted.contains(e.first); });
  for (const image::PrivateFile* f : order) {
    auto entry = entries_.find(f->id());
    auto done = entry == entries_.end() ? make(*f) : take_place(entry->second, *f);
    TRY(std::move(done).with(fmt::format("private file {} ({})", f->id(), f->path())));
  }
  return {};
}

Result<void> PrivateFiles::make(const image::PrivateFile& file) {
  Entry entry;
  entry.file = file;
  if (file.kind() == image::PrivateFile::PATH) entry.at = file.path();
  switch (file.kind()) {
    case image::PrivateFile::PATH:
      entry.fd = TRY(make_at_path(file));
      break;
    case image::PrivateFile::UNLINKED:
      entry.fd = TRY(make_unlinked(file));
      break;
    case image::PrivateFile::MEMFD:
      entry.fd = TRY(make_memfd(file));
      break;
    case image::PrivateFile::SHMEM:
      entry.fd = TRY(make_shared_memory(file.size()));
      break;
    default:
      return make_error(Errc::unsupported, "unknown kind {}", static_cast<int>(file.kind()));
  }
  TRY(grow(entry, file));
  entries_[file.id()] = std::move(entry);
  return {};
}

// Pages of a private mapping are written before the file is finished, and behind the end of the
// file there is nothing that could be written to. Only ever longer: cutting it off comes last.
Result<void> PrivateFiles::grow(const Entry& entry, const image::PrivateFile& file) {
  if (file.kind() == image::PrivateFile::SHMEM || file.nlink_of() != 0 || file.size() == 0)
    return {};
  struct stat now {};
  if (fstat(entry.fd.get(), &now) != 0) return os_error("fstat");
  if (!S_ISREG(now.st_mode) || static_cast<std::uint64_t>(now.st_size) >= file.size()) return {};
  if (ftruncate(entry.fd.get(), static_cast<off_t>(file.size())) != 0) {
    return os_error(fmt::format("ftruncate({})", file.size()));
  }
  return {};
}

Result<UniqueFd> PrivateFiles::make_at_path(const image::PrivateFile& file) {
  // Directories that every capsule has (/tmp itself) are there already.
  if (S_ISDIR(file.mode())) {
    auto there = open2(root_fd_, file.path(), O_PATH | O_DIRECTORY, 0, strict);
    if (there || there.error().sys_errno() != ENOENT) return there;
  }
  Place place = TRY(place_of(root_fd_, file.path()));
  int parent = place.parent.get();
  const char* leaf = place.leaf.c_str();
  if (file.nlink_of() != 0) {
    int target = TRY(content_fd(file.nlink_of()));
    if (linkat(AT_FDCWD, own_fd_path(target).c_str(), parent, leaf, AT_SYMLINK_FOLLOW) != 0) {
      return os_error(fmt::format("linkat({})", file.path()));
    }
    return duplicate(target);
  }
  int made = 0;
  switch (file.mode() & S_IFMT) {
    case S_IFREG: {
      UniqueFd fd(openat(parent, leaf, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
      if (!fd) return os_error(fmt::format("openat({}, O_CREAT | O_EXCL)", file.path()));
      return fd;
    }
    case S_IFDIR:
      made = mkdirat(parent, leaf, 0700);
      break;
    case S_IFLNK:
      made = symlinkat(file.symlink_target().c_str(), parent, leaf);
      break;
    case S_IFIFO:
    case S_IFSOCK:
      made = mknodat(parent, leaf, (file.mode() & S_IFMT) | 0600, 0);
      break;
    default:
      return make_error(Errc::unsupported, "a file of mode {:#o}", file.mode());
  }
  if (made != 0) return os_error(fmt::format("making {} (mode {:#o})", file.path(), file.mode()));
  return open2(parent, place.leaf, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH);
}

Result<UniqueFd> PrivateFiles::make_unlinked(const image::PrivateFile& file) {
  if (!S_ISREG(file.mode()) && (file.mode() & S_IFMT) != 0) {
    return make_error(Errc::unsupported, "an unlinked file of mode {:#o}", file.mode());
  }
  // Under its former name, so that /proc/PID/fd shows what it showed; if that place is gone or
  // taken, the name is lost, which nobody can rely on.
  std::string spare = fmt::format("/tmp/.godwit-unlinked-{}-{}", file.id(), random_hex(4));
  for (const std::string& path : {file.path(), spare}) {
    auto place = place_of(root_fd_, path);
    if (!place) continue;
    UniqueFd fd(openat(place->parent.get(), place->leaf.c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd) continue;
    if (unlinkat(place->parent.get(), place->leaf.c_str(), 0) != 0) {
      return os_error(fmt::format("unlinkat({})", path));
    }
    return fd;
  }
  return os_error(fmt::format("creating {}", spare));
}

Result<void> PrivateFiles::leave_place(Entry& entry, const image::PrivateFile& file) {
  const image::PrivateFile& had = entry.file;
  bool was_path = had.kind() == image::PrivateFile::PATH;
  bool same_kind = had.kind() == file.kind() && (had.mode() & S_IFMT) == (file.mode() & S_IFMT);
  if (same_kind && !was_path &&
      (file.kind() != image::PrivateFile::SHMEM || had.size() == file.size()))
    return {};
  if (same_kind && was_path && had.nlink_of() == file.nlink_of() &&
      had.symlink_target() == file.symlink_target()) {
    if (entry.at == file.path()) return {};
    const char* top = entry.at.starts_with("/dev/shm/") ? "/dev/shm" : "/tmp";
    return move(entry, fmt::format("{}/.godwit-moving-{}", top, file.id()));
  }
  if (was_path && S_ISREG(had.mode()) && file.kind() == image::PrivateFile::UNLINKED) {
    TRY(remove(entry));
    entry.at.clear();
    return {};
  }
  // Content that was sent for the object so far would be lost with it.
  return make_error(Errc::refused, "changed from {} (kind {}) to {} (kind {})", had.path(),
                    static_cast<int>(had.kind()), file.path(), static_cast<int>(file.kind()));
}

Result<void> PrivateFiles::take_place(Entry& entry, const image::PrivateFile& file) {
  if (file.kind() == image::PrivateFile::PATH && entry.at != file.path())
    TRY(move(entry, file.path()));
  entry.file = file;
  return grow(entry, file);
}

Result<void> PrivateFiles::move(Entry& entry, const std::string& to_path) {
  Place from = TRY(place_of(root_fd_, entry.at));
  Place to = TRY(place_of(root_fd_, to_path));
  constexpr unsigned no_replace = 1;  // RENAME_NOREPLACE
  if (syscall(SYS_renameat2, from.parent.get(), from.leaf.c_str(), to.parent.get(), to.leaf.c_str(),
              no_replace) != 0) {
    return os_error(fmt::format("renameat2({}, {})", entry.at, to_path));
  }
  entry.at = to_path;
  return {};
}

Result<void> PrivateFiles::remove(const Entry& entry) {
  if (entry.at.empty()) return {};
  Place place = TRY(place_of(root_fd_, entry.at));
  int flags = S_ISDIR(entry.file.mode()) ? AT_REMOVEDIR : 0;
  if (unlinkat(place.parent.get(), place.leaf.c_str(), flags) != 0) {
    return os_error(fmt::format("unlinkat({})", entry.at));
  }
  return {};
}

Result<void> PrivateFiles::finish(const image::Capsule& capsule) {
  TRY(sync(capsule));
  // Children before their directories, whose times they would change.
  std::vector<const image::PrivateFile*> order;
  for (const image::PrivateFile& f : capsule.private_files()) order.push_back(&f);
  std::stable_sort(order.begin(), order.end(),
                   [](auto* a, auto* b) { return a->path() > b->path(); });
  for (const image::PrivateFile* f : order) {
    if (f->nlink_of() != 0) continue;
    TRY(finish_one(entries_.at(f->id()), *f)
            .with(fmt::format("private file {} ({})", f->id(), f->path())));
  }
  return {};
}

Result<void> PrivateFiles::finish_one(const Entry& entry, const image::PrivateFile& file) {
  int fd = entry.fd.get();
  if (file.kind() == image::PrivateFile::SHMEM) return {};  // No name, no owner anybody sees.
  struct stat now {};
  if (fstat(fd, &now) != 0) return os_error("fstat");
  if (S_ISREG(now.st_mode) && static_cast<std::uint64_t>(now.st_size) != file.size() &&
      ftruncate(fd, static_cast<off_t>(file.size())) != 0) {
    return os_error(fmt::format("ftruncate({})", file.size()));
  }
  // By /proc/self/fd, since fchmod and futimens refuse O_PATH descriptors.
  std::string path = own_fd_path(fd);
  if ((now.st_uid != file.uid() || now.st_gid != file.gid()) &&
      fchownat(fd, "", file.uid(), file.gid(), AT_EMPTY_PATH) != 0) {
    return os_error(fmt::format("fchownat({}, {})", file.uid(), file.gid()));
  }
  if (!S_ISLNK(now.st_mode)) {  // A link has no mode, and its times can't be set by descriptor.
    if (((now.st_mode ^ file.mode()) & 07777) != 0 &&
        chmod(path.c_str(), file.mode() & 07777) != 0) {
      return os_error(fmt::format("chmod({:#o})", file.mode()));
    }
    for (const image::Xattr& x : file.xattrs()) {
      if (setxattr(path.c_str(), x.name().c_str(), x.value().data(), x.value().size(), 0) != 0) {
        return os_error(fmt::format("setxattr({})", x.name()));
      }
    }
    constexpr std::int64_t second = 1'000'000'000;
    timespec times[2] = {{file.atime_ns() / second, file.atime_ns() % second},
                         {file.mtime_ns() / second, file.mtime_ns() % second}};
    if (utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) return os_error("utimensat");
  }
  if (file.seals() != 0 && fcntl(fd, F_ADD_SEALS, file.seals()) != 0) {
    return os_error(fmt::format("fcntl(F_ADD_SEALS, {:#x})", file.seals()));
  }
  return {};
}

// The directory's times change by that, so they are set again.
Result<void> PrivateFiles::replace_socket(std::uint32_t id, int from_dir,
                                          const std::string& from_name) {
  auto found = entries_.find(id);
  if (found == entries_.end() || !S_ISSOCK(found->second.file.mode()) || found->second.at.empty())
    return make_error(Errc::invalid, "private file {} is no node of a socket", id);
  Entry& entry = found->second;
  Place place = TRY(place_of(root_fd_, entry.at));
  if (::renameat(from_dir, from_name.c_str(), place.parent.get(), place.leaf.c_str()) != 0)
    return os_error(fmt::format("renameat({})", entry.at));
  entry.fd = TRY(open2(place.parent.get(), place.leaf, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH));
  TRY(finish_one(entry, entry.file).with(entry.at));
  const std::string parent = entry.at.substr(0, entry.at.rfind('/'));
  for (const auto& [other_id, other] : entries_)
    if (other.at == parent) return finish_one(other, other.file);
  return {};
}

Result<int> PrivateFiles::content_fd(std::uint32_t id) const {
  auto entry = entries_.find(id);
  if (entry == entries_.end())
    return make_error(Errc::invalid, "the image has no private file {}", id);
  return entry->second.fd.get();
}

Result<UniqueFd> PrivateFiles::reopen(std::uint32_t id, int flags) const {
  int fd = TRY(content_fd(id));
  return open_fd(own_fd_path(fd), flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_NOFOLLOW));
}

}  // namespace godwit::restore
