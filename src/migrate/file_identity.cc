#include "migrate/file_identity.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

namespace godwit::migrate {
namespace {

constexpr std::size_t read_bytes = 1 << 20;
// Not in linux/magic.h of every release.
constexpr long lustre_magic = 0x0BD00BD0;
constexpr long gpfs_magic = 0x47504653;
constexpr long beegfs_magic = 0x19830326;

bool caches_per_node(long fs_type) {
  switch (fs_type) {
    case NFS_SUPER_MAGIC:
    case SMB_SUPER_MAGIC:
    case static_cast<long>(CIFS_SUPER_MAGIC):
    case static_cast<long>(SMB2_SUPER_MAGIC):
    case CEPH_SUPER_MAGIC:
    case AFS_SUPER_MAGIC:
    case FUSE_SUPER_MAGIC:
    case V9FS_MAGIC:
    case lustre_magic:
    case gpfs_magic:
    case beegfs_magic:
      return true;
    default:
      return false;
  }
}

// A page that is written through a mapping stamps its file once until it has been written back (30
// s): a younger stamp doesn't tell all, and such a hash is not for others.
constexpr std::int64_t settled_ns = 60'000'000'000;

// tmpfs stamps no file that is written through a mapping.
bool stamps_can_be_trusted(int fd) {
  struct statfs fs {};
  return ::fstatfs(fd, &fs) == 0 && fs.f_type != TMPFS_MAGIC && fs.f_type != RAMFS_MAGIC;
}

std::optional<std::uint64_t> read_kept(const std::string& path) {
  if (path.empty()) return std::nullopt;
  Result<std::string> text = read_file(path);
  std::uint64_t hash = 0;
  if (!text.ok() || text->size() != sizeof hash) return std::nullopt;
  std::memcpy(&hash, text->data(), sizeof hash);
  return hash;
}

// Character devices of a capsule are the node's own; what matters is that there is one.
bool content_matters(const struct stat& st) { return S_ISREG(st.st_mode); }

void for_each_ref(image::Capsule& capsule, const std::function<void(image::FileRef&)>& visit) {
  for (image::Process& process : *capsule.mutable_processes())
    for (image::FileRef& ref : *process.mutable_mm()->mutable_mapped()) visit(ref);
  for (image::OpenFile& file : *capsule.mutable_files())
    if (file.has_ref()) visit(*file.mutable_ref());
}

}  // namespace

FileIdentity::FileIdentity(std::string root, std::vector<std::string> shared_dirs,
                           std::string hash_dir)
    : root_(std::move(root)),
      shared_dirs_(std::move(shared_dirs)),
      hash_dir_(std::move(hash_dir)) {}

bool FileIdentity::shared(const std::string& path) const {
  for (const std::string& dir : shared_dirs_)
    if (path.starts_with(dir) &&
        (path.size() == dir.size() || path[dir.size()] == '/' || dir.ends_with('/')))
      return true;
  return false;
}

Result<std::uint64_t> FileIdentity::content_hash(const std::string& host_path) {
  UniqueFd fd = TRY(open_fd(host_path, O_RDONLY));
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return os_error(fmt::format("fstat({})", host_path));
  Key key{st.st_dev, st.st_ino, st.st_size, to_ns(st.st_mtim), to_ns(st.st_ctim)};
  auto known = hashes_.find(key);
  if (known != hashes_.end()) return known->second;
  if (std::optional<std::uint64_t> kept = read_kept(kept_path(key))) {
    hashes_[key] = *kept;
    return *kept;
  }

  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                 &XXH3_freeState);
  INVARIANT(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK);
  std::vector<std::byte> buffer(read_bytes);
  while (true) {
    ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return os_error(fmt::format("read({})", host_path));
    if (n == 0) break;
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(n));
  }
  std::uint64_t hash = XXH3_64bits_digest(state.get());
  hashes_[key] = hash;
  const std::int64_t stamped_ns = std::max(to_ns(st.st_mtim), to_ns(st.st_ctim));
  if (realtime_ns() - stamped_ns > settled_ns && stamps_can_be_trusted(fd.get())) keep(key, hash);
  return hash;
}

std::string FileIdentity::kept_path(const Key& key) const {
  if (hash_dir_.empty()) return "";
  return fmt::format("{}/{:x}-{:x}-{:x}-{:x}-{:x}", hash_dir_, std::get<0>(key), std::get<1>(key),
                     std::get<2>(key), std::get<3>(key), std::get<4>(key));
}

// Who can't keep it hashes again.
void FileIdentity::keep(const Key& key, std::uint64_t hash) const {
  if (hash_dir_.empty()) return;
  std::error_code error;
  std::filesystem::create_directory(hash_dir_, error);
  auto entries = std::filesystem::directory_iterator(hash_dir_, error);
  if (!error && static_cast<std::size_t>(std::distance(begin(entries), end(entries))) >= kept_max)
    for (const auto& entry : std::filesystem::directory_iterator(hash_dir_, error))
      std::filesystem::remove(entry.path(), error);
  Result<void> kept = replace_file(
      kept_path(key), std::string_view(reinterpret_cast<const char*>(&hash), sizeof hash), false);
  if (!kept.ok()) LOG(info, "hash not kept: {}", kept.error().what());
}

Result<void> FileIdentity::identify(image::Capsule& capsule, std::vector<std::string>& reasons) {
  Result<void> outcome;
  std::set<std::string> refused;
  for_each_ref(capsule, [&](image::FileRef& ref) {
    if (!outcome.ok() || ref.where() != image::FileRef::SHARED) return;
    std::string host_path = root_ + ref.path();
    struct stat st {};
    if (::stat(host_path.c_str(), &st) != 0) {
      outcome = os_error(fmt::format("stat({})", ref.path()));
      return;
    }
    ref.set_size(static_cast<std::uint64_t>(st.st_size));
    ref.set_mtime_ns(to_ns(st.st_mtim));
    ref.set_mode(st.st_mode);
    if (!content_matters(st) || shared(ref.path())) return;
    if (ref.written()) {
      if (refused.insert(ref.path()).second)
        reasons.push_back(fmt::format(
            "the file {} is open for writing and is on this node only: put it below a shared "
            "directory or the capsule's /tmp",
            ref.path()));
      return;
    }
    Result<std::uint64_t> hash = content_hash(host_path);
    if (!hash.ok()) {
      outcome = std::move(hash).error().with(fmt::format("identify {}", ref.path()));
      return;
    }
    ref.set_content_hash(*hash);
  });
  return outcome;
}

Result<void> FileIdentity::flush_shared(const image::Capsule& capsule) {
  std::set<std::string> flushed;
  auto flush = [&](const image::FileRef& ref) -> Result<void> {
    if (ref.where() != image::FileRef::SHARED || !ref.written() || !S_ISREG(ref.mode()) ||
        !flushed.insert(ref.path()).second)
      return {};
    std::string host_path = root_ + ref.path();
    struct statfs fs {};
    if (::statfs(host_path.c_str(), &fs) != 0)
      return os_error(fmt::format("statfs({})", ref.path()));
    if (!caches_per_node(static_cast<long>(fs.f_type))) return {};
    UniqueFd fd = TRY(open_fd(host_path, O_RDONLY));
    if (::fsync(fd.get()) != 0) return os_error(fmt::format("fsync({})", ref.path()));
    return {};
  };
  for (const image::Process& process : capsule.processes())
    for (const image::FileRef& ref : process.mm().mapped()) TRY(flush(ref));
  for (const image::OpenFile& file : capsule.files())
    if (file.has_ref()) TRY(flush(file.ref()));
  return {};
}

Result<void> FileIdentity::compare(const image::Capsule& capsule,
                                   std::vector<std::string>& reasons) {
  // What somebody writes while we look has a size of its own at each moment.
  std::set<std::string> seen, written;
  for (const image::Process& process : capsule.processes())
    for (const image::FileRef& ref : process.mm().mapped())
      if (ref.written()) written.insert(ref.path());
  for (const image::OpenFile& file : capsule.files())
    if (file.has_ref() && file.ref().written()) written.insert(file.ref().path());
  auto check = [&](const image::FileRef& ref) -> Result<void> {
    if (ref.where() != image::FileRef::SHARED || !seen.insert(ref.path()).second) return {};
    std::string host_path = root_ + ref.path();
    struct stat st {};
    if (::stat(host_path.c_str(), &st) != 0) {
      if (errno != ENOENT && errno != ENOTDIR) return os_error(fmt::format("stat({})", ref.path()));
      reasons.push_back(fmt::format("{} does not exist on the target", ref.path()));
      return {};
    }
    if ((st.st_mode & S_IFMT) != (ref.mode() & S_IFMT)) {
      reasons.push_back(fmt::format("{} is another kind of file on the target", ref.path()));
      return {};
    }
    if (!content_matters(st) || written.contains(ref.path())) return {};
    if (static_cast<std::uint64_t>(st.st_size) != ref.size()) {
      reasons.push_back(fmt::format("{} has {} bytes on the target, {} on the source", ref.path(),
                                    st.st_size, ref.size()));
      return {};
    }
    if (ref.content_hash() == 0) return {};
    if (TRY(content_hash(host_path)) != ref.content_hash())
      reasons.push_back(fmt::format("{} has other content on the target", ref.path()));
    return {};
  };
  for (const image::Process& process : capsule.processes())
    for (const image::FileRef& ref : process.mm().mapped()) TRY(check(ref));
  for (const image::OpenFile& file : capsule.files())
    if (file.has_ref()) TRY(check(file.ref()));
  return {};
}

}  // namespace godwit::migrate
