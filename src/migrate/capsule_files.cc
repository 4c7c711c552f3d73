#include "migrate/capsule_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <memory>
#include <set>

#include "base/clock.h"
#include "base/io.h"
#include "sys/file_attributes.h"

namespace godwit::migrate {
namespace {

// A file that was written in the tick in which we looked at it can be written again without
// another time stamp. Older than this, an equal stamp means equal content.
constexpr std::int64_t racy_ns = 2'000'000'000;

// `way` leads to it; not asked of links, which have no attributes of their own.
Result<void> fill(image::PrivateFile& file, const struct stat& st, const std::string& way) {
  file.set_mode(st.st_mode);
  file.set_uid(st.st_uid);
  file.set_gid(st.st_gid);
  file.set_size(S_ISREG(st.st_mode) ? static_cast<std::uint64_t>(st.st_size) : 0);
  file.set_mtime_ns(to_ns(st.st_mtim));
  file.set_atime_ns(to_ns(st.st_atim));
  if (S_ISLNK(st.st_mode)) return {};
  Result<std::vector<sys::Xattr>> attributes = sys::read_xattrs(way);
  if (!attributes.ok() && attributes.error().sys_errno() == ENOENT) return {};  // Removed just now.
  for (sys::Xattr& attribute : TRY(std::move(attributes))) {
    image::Xattr& out = *file.add_xattrs();
    out.set_name(std::move(attribute.name));
    out.set_value(std::move(attribute.value));
  }
  return {};
}

// Where a captured object can be opened: its name, a descriptor of some process, or a mapping.
std::string way_to(const image::Capsule& image, const image::PrivateFile& file,
                   const std::string& root, const PidMap& node_pids) {
  if (file.kind() == image::PrivateFile::PATH) return root + file.path();
  std::set<std::uint32_t> open_files;
  for (const image::OpenFile& open : image.files())
    if (open.has_ref() && open.ref().where() == image::FileRef::PRIVATE &&
        open.ref().private_file() == file.id())
      open_files.insert(open.id());
  for (const image::Process& process : image.processes()) {
    auto pid = node_pids.find(process.pid());
    if (pid == node_pids.end()) continue;
    for (const image::Fd& fd : process.fds())
      if (open_files.contains(fd.file()))
        return fmt::format("/proc/{}/fd/{}", pid->second, fd.fd());
    std::set<std::uint32_t> refs;
    for (const image::FileRef& ref : process.mm().mapped())
      if (ref.where() == image::FileRef::PRIVATE && ref.private_file() == file.id())
        refs.insert(ref.id());
    for (const image::Vma& vma : process.mm().vmas()) {
      bool here = (vma.kind() == image::Vma::SHARED_ANON && vma.shmem() == file.id()) ||
                  (vma.kind() == image::Vma::FILE && refs.contains(vma.file()));
      if (here)
        return fmt::format("/proc/{}/map_files/{:x}-{:x}", pid->second, vma.start(), vma.end());
    }
  }
  return "";
}

std::set<std::uint32_t> mapped_shared(const image::Capsule& image) {
  std::set<std::uint32_t> ids;
  for (const image::Process& process : image.processes()) {
    std::map<std::uint32_t, std::uint32_t> by_ref;
    for (const image::FileRef& ref : process.mm().mapped())
      if (ref.where() == image::FileRef::PRIVATE) by_ref[ref.id()] = ref.private_file();
    for (const image::Vma& vma : process.mm().vmas()) {
      if (vma.kind() == image::Vma::SHARED_ANON) ids.insert(vma.shmem());
      if (vma.kind() == image::Vma::FILE && vma.shared() && by_ref.contains(vma.file()))
        ids.insert(by_ref[vma.file()]);
    }
  }
  return ids;
}

void rename_ids(image::Capsule& image, const std::map<std::uint32_t, std::uint32_t>& to) {
  auto rename = [&](image::FileRef& ref) {
    if (ref.where() == image::FileRef::PRIVATE) ref.set_private_file(to.at(ref.private_file()));
  };
  for (image::OpenFile& file : *image.mutable_files())
    if (file.has_ref()) rename(*file.mutable_ref());
  for (image::Socket& socket : *image.mutable_sockets())
    if (socket.unix_end().has_node()) rename(*socket.mutable_unix_end()->mutable_node());
  for (image::Process& process : *image.mutable_processes()) {
    for (image::FileRef& ref : *process.mutable_mm()->mutable_mapped()) rename(ref);
    for (image::Vma& vma : *process.mutable_mm()->mutable_vmas())
      if (vma.kind() == image::Vma::SHARED_ANON) vma.set_shmem(to.at(vma.shmem()));
  }
  for (image::PrivateFile& file : *image.mutable_private_files()) file.set_id(to.at(file.id()));
}

}  // namespace

CapsuleFiles::Known& CapsuleFiles::know(const Key& key, const struct stat& st) {
  Known& known = known_[key];
  if (known.id == 0) known.id = next_id_++;
  if (known.generation == generation_) return known;
  std::int64_t now = realtime_ns();
  bool same_stamps = known.generation + 1 == generation_ &&
                     known.size == static_cast<std::uint64_t>(st.st_size) &&
                     known.mtime_ns == to_ns(st.st_mtim) && known.ctime_ns == to_ns(st.st_ctim);
  bool settled = known.seen_ns - std::max(known.mtime_ns, known.ctime_ns) > racy_ns;
  known.unchanged = same_stamps && settled;
  known.size = static_cast<std::uint64_t>(st.st_size);
  known.mtime_ns = to_ns(st.st_mtim);
  known.ctime_ns = to_ns(st.st_ctim);
  if (!same_stamps) known.seen_ns = now;
  known.generation = generation_;
  return known;
}

Result<void> CapsuleFiles::adopt_captured(image::Capsule& image, const PidMap& node_pids,
                                          const Places& places) {
  std::map<std::uint32_t, std::uint32_t> new_ids;
  for (image::PrivateFile& file : *image.mutable_private_files()) {
    std::string way = way_to(image, file, root_, node_pids);
    if (auto place = places.find(file.id()); way.empty() && place != places.end())
      way = place->second;
    if (way.empty())
      return make_error(Errc::internal, "private file {} ({}) is held by nothing", file.id(),
                        file.path());
    struct stat st {};
    if (::stat(way.c_str(), &st) != 0) return os_error(fmt::format("stat({})", way));
    TRY(fill(file, st, way));
    Key key{st.st_dev, st.st_ino, ""};
    Known& known = know(key, st);
    // Memory behind a mapping changes without any time stamp.
    if (file.kind() != image::PrivateFile::PATH) known.unchanged = false;
    new_ids[file.id()] = known.id;
    in_image_[key] = known.id;
    open_by_id_[known.id] = way;
    file.set_space(S_ISREG(st.st_mode) && st.st_size > 0 ? file_space_bit | known.id : 0);
  }
  rename_ids(image, new_ids);
  return {};
}

Result<void> CapsuleFiles::add_entry(image::Capsule& image, int dir, const std::string& path,
                                     const std::string& name, int depth) {
  struct stat st {};
  if (::fstatat(dir, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return {};
    return os_error(fmt::format("fstatat({}/{})", path, name));
  }
  if (static_cast<std::size_t>(image.private_files_size()) >= files_max)
    return make_error(Errc::refused, "more than {} files in the capsule's /tmp and /dev/shm",
                      files_max);
  std::string full = path + "/" + name;
  Key object{st.st_dev, st.st_ino, ""};
  auto present = in_image_.find(object);
  bool another_link = present != in_image_.end() && S_ISREG(st.st_mode);
  if (another_link) {
    for (image::PrivateFile& file : *image.mutable_private_files()) {
      if (file.id() != present->second) continue;
      if (file.path() == full) return {};  // The captured one stands under this very name.
      if (file.kind() != image::PrivateFile::UNLINKED) break;
      // The name that it was opened by is gone, but it has this other one.
      file.set_kind(image::PrivateFile::PATH);
      file.set_path(full);
      return {};
    }
  }
  Key key = another_link ? Key{st.st_dev, st.st_ino, full} : object;
  if (!another_link && present != in_image_.end()) return {};
  Known& known = know(key, st);
  if (!trust_times_) known.unchanged = false;
  image::PrivateFile& file = *image.add_private_files();
  file.set_id(known.id);
  file.set_kind(image::PrivateFile::PATH);
  file.set_path(full);
  TRY(fill(file, st, fmt::format("/proc/self/fd/{}/{}", dir, name)));
  in_image_[key] = known.id;
  if (another_link) {
    file.set_nlink_of(present->second);
    return {};
  }
  open_by_id_[known.id] = root_ + full;
  if (S_ISREG(st.st_mode) && st.st_size > 0) file.set_space(file_space_bit | known.id);
  if (S_ISLNK(st.st_mode)) {
    std::string target(static_cast<std::size_t>(st.st_size) + 1, '\0');
    ssize_t n = ::readlinkat(dir, name.c_str(), target.data(), target.size());
    if (n < 0 && errno != ENOENT) return os_error(fmt::format("readlinkat({})", full));
    target.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
    file.set_symlink_target(target);
  }
  if (!S_ISDIR(st.st_mode)) return {};
  UniqueFd sub(::openat(dir, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!sub.valid()) {
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) return {};
    return os_error(fmt::format("openat({})", full));
  }
  return walk(image, sub.get(), full, depth + 1);
}

Result<void> CapsuleFiles::walk(image::Capsule& image, int dir, const std::string& path,
                                int depth) {
  if (depth > depth_max)
    return make_error(Errc::refused, "{}: directories nest deeper than {}", path, depth_max);
  UniqueFd own(::openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!own.valid()) return os_error(fmt::format("openat({})", path));
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(own.get()), &::closedir);
  if (!stream) return os_error(fmt::format("fdopendir({})", path));
  (void)own.release();  // closedir closes it.
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr && errno != 0) return os_error(fmt::format("readdir({})", path));
    if (entry == nullptr) return {};
    std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    TRY(add_entry(image, dir, path, name, depth));
  }
}

// Captured references go by path; those into the private directories must go by id.
Result<void> CapsuleFiles::claim_named(image::Capsule& image) {
  std::map<std::string, std::uint32_t> by_path;
  for (const image::PrivateFile& file : image.private_files())
    if (file.kind() == image::PrivateFile::PATH)
      by_path[file.path()] = file.nlink_of() != 0 ? file.nlink_of() : file.id();
  auto claim = [&](image::FileRef& ref) -> Result<void> {
    bool ours = ref.path().starts_with("/tmp/") || ref.path().starts_with("/dev/shm/");
    if (!ours || ref.where() != image::FileRef::SHARED) return {};
    auto found = by_path.find(ref.path());
    // The program may have removed it since it was described; whoever asked describes again.
    if (found == by_path.end()) return os_error(fmt::format("stat({})", ref.path()), ENOENT);
    ref.set_where(image::FileRef::PRIVATE);
    ref.set_private_file(found->second);
    return {};
  };
  for (image::OpenFile& file : *image.mutable_files())
    if (file.has_ref()) TRY(claim(*file.mutable_ref()));
  for (image::Socket& socket : *image.mutable_sockets())
    if (socket.unix_end().has_node()) TRY(claim(*socket.mutable_unix_end()->mutable_node()));
  for (image::Process& process : *image.mutable_processes())
    for (image::FileRef& ref : *process.mutable_mm()->mutable_mapped()) TRY(claim(ref));
  return {};
}

namespace {

// Whether the target can make what it has of the one into the other.
bool can_become(const image::PrivateFile& before, const image::PrivateFile& now) {
  const bool same_kind =
      before.kind() == now.kind() && (before.mode() & S_IFMT) == (now.mode() & S_IFMT);
  const bool was_path = before.kind() == image::PrivateFile::PATH;
  if (same_kind && was_path)
    return before.nlink_of() == now.nlink_of() && before.symlink_target() == now.symlink_target();
  if (same_kind) return now.kind() != image::PrivateFile::SHMEM || before.size() == now.size();
  return was_path && S_ISREG(before.mode()) && now.kind() == image::PrivateFile::UNLINKED;
}

}  // namespace

// A new file gets the inode of one that was removed; and a nameless file can get a name. What the
// target can't change into what it is now begins anew there, under another id.
void CapsuleFiles::part_from_former(image::Capsule& image) {
  std::map<std::uint32_t, std::uint32_t> ids;
  auto choose = [&](image::PrivateFile& file) {
    auto before = former_.find(file.id());
    const bool kept = before == former_.end() || can_become(before->second, file);
    ids[file.id()] = kept ? file.id() : next_id_++;
  };
  for (image::PrivateFile& file : *image.mutable_private_files())
    if (file.nlink_of() == 0) choose(file);
  for (image::PrivateFile& file : *image.mutable_private_files()) {
    if (file.nlink_of() == 0) continue;
    file.set_nlink_of(ids.at(file.nlink_of()));
    choose(file);
  }
  for (auto& [key, known] : known_) {
    auto id = ids.find(known.id);
    if (known.generation != generation_ || id == ids.end() || id->second == known.id) continue;
    auto way = open_by_id_.extract(known.id);
    known.id = id->second;
    known.unchanged = false;
    if (way.empty()) continue;
    way.key() = known.id;
    open_by_id_.insert(std::move(way));
  }
  rename_ids(image, ids);
  former_.clear();
  for (image::PrivateFile& file : *image.mutable_private_files()) {
    if (file.space() != 0) file.set_space(file_space_bit | file.id());
    former_[file.id()] = file;
  }
}

Result<std::map<std::uint32_t, bool>> CapsuleFiles::collect(image::Capsule& image,
                                                            const PidMap& node_pids,
                                                            const Places& places) {
  ++generation_;
  in_image_.clear();
  open_by_id_.clear();
  TRY(adopt_captured(image, node_pids, places));
  for (const char* tree : {"/tmp", "/dev/shm"}) {
    UniqueFd dir(::open((root_ + tree).c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!dir.valid()) return os_error(fmt::format("open({}{})", root_, tree));
    struct statfs fs {};
    if (::fstatfs(dir.get(), &fs) != 0) return os_error(fmt::format("fstatfs({}{})", root_, tree));
    // tmpfs doesn't stamp a file that is written through a mapping.
    trust_times_ = fs.f_type != TMPFS_MAGIC;
    TRY(walk(image, dir.get(), tree, 0));
  }
  TRY(claim_named(image));
  part_from_former(image);
  // What is mapped shared changes without a stamp that could be trusted to the nanosecond.
  for (std::uint32_t id : mapped_shared(image))
    for (auto& [key, known] : known_)
      if (known.id == id) known.unchanged = false;
  std::map<std::uint32_t, bool> unchanged;
  for (const auto& [key, known] : known_)
    if (known.generation == generation_ && known.unchanged) unchanged[known.id] = true;
  return unchanged;
}

Result<UniqueFd> CapsuleFiles::open(std::uint32_t id) const {
  auto way = open_by_id_.find(id);
  if (way == open_by_id_.end()) return make_error(Errc::internal, "no private file {}", id);
  return open_fd(way->second, O_RDONLY);
}

bool same_layout(const image::Capsule& a, const image::Capsule& b) {
  if (a.processes_size() != b.processes_size() || a.private_files_size() != b.private_files_size())
    return false;
  for (int i = 0; i < a.private_files_size(); ++i) {
    const image::PrivateFile &x = a.private_files(i), &y = b.private_files(i);
    if (x.id() != y.id() || x.kind() != y.kind() || x.space() != y.space()) return false;
  }
  for (int i = 0; i < a.processes_size(); ++i) {
    const image::Process &p = a.processes(i), &q = b.processes(i);
    if (p.pid() != q.pid() || p.mm().vmas_size() != q.mm().vmas_size()) return false;
    for (int v = 0; v < p.mm().vmas_size(); ++v) {
      const image::Vma &x = p.mm().vmas(v), &y = q.mm().vmas(v);
      if (x.start() != y.start() || x.end() != y.end() || x.kind() != y.kind() ||
          x.shared() != y.shared() || x.pgoff_bytes() != y.pgoff_bytes() ||
          x.shmem() != y.shmem() || x.file() != y.file())
        return false;
    }
  }
  return true;
}

std::set<std::string> shared_files(const image::Capsule& capsule) {
  std::set<std::string> files;
  auto add = [&files](const image::FileRef& ref) {
    if (ref.where() == image::FileRef::SHARED) files.insert(ref.path() + '\0' + ref.fs_identity());
  };
  for (const image::OpenFile& file : capsule.files()) add(file.ref());
  for (const image::Process& process : capsule.processes())
    for (const image::FileRef& ref : process.mm().mapped()) add(ref);
  return files;
}

}  // namespace godwit::migrate
