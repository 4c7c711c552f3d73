// Is the file at this path on the target the one that the program has open on the source?
//
// Nodes needn't share a file system: libc.so.6 has another inode on each of them. A file is taken
// as the same
// - below a shared directory (configured on both nodes): by size; fsync here on network file
//   systems, so that the target doesn't see older content than the program wrote;
// - elsewhere: by size and xxh3-64 of the whole content, if nothing in the capsule can write it;
// - elsewhere and writable: never. The program would go on writing another file.
// Hashes are kept per (device, inode, size, mtime, ctime): in the worker, and for the workers after
// it in `hash_dir` (of /run: numbers of devices last as long as the boot), a file of 8 bytes each,
// so that a program with 100 MB of libraries costs 30 ms once. Reading runs at memory speed when
// the file is in the page cache, as mapped libraries are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/result.h"
#include "image/image.pb.h"

namespace godwit::migrate {

class FileIdentity {
 public:
  // `root` is where the capsule's "/" is reached from here ("/proc/PID/root"). Paths of refs are
  // resolved below it.
  // Without `hash_dir` nothing is kept.
  FileIdentity(std::string root, std::vector<std::string> shared_dirs, std::string hash_dir = "");

  bool shared(const std::string& path) const;

  // Source: fills size, mtime and, where needed, content_hash of every ref with where == SHARED.
  // Appends to `reasons` what cannot move (writable and not shared). Files that are unchanged since
  // an earlier call cost a stat.
  Result<void> identify(image::Capsule& capsule, std::vector<std::string>& reasons);

  // Source, frozen: makes what the program wrote to shared network file systems visible elsewhere.
  Result<void> flush_shared(const image::Capsule& capsule);

  // Target: appends a reason for every ref that isn't the same file here.
  Result<void> compare(const image::Capsule& capsule, std::vector<std::string>& reasons);

 private:
  using Key = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::int64_t, std::int64_t>;
  static constexpr std::size_t kept_max = 4096;  // Then all are forgotten.
  Result<std::uint64_t> content_hash(const std::string& host_path);
  std::string kept_path(const Key& key) const;
  void keep(const Key& key, std::uint64_t hash) const;

  std::string root_;
  std::vector<std::string> shared_dirs_;
  std::string hash_dir_;
  std::map<Key, std::uint64_t> hashes_;
};

}  // namespace godwit::migrate
