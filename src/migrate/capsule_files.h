// The files that belong to the capsule alone, on the source: /tmp, /dev/shm, memfds, unlinked
// files, shared anonymous memory. They travel with it.
//
// Capturing a tree finds what processes have open or mapped. This adds the rest of the private
// directories, gives every object one id for the whole migration (ids name the spaces of contents,
// and the target keeps what it made under them), and says which contents need not be looked at
// again.
//
// The program may rename and link while we walk: every step goes by openat without following links,
// and what vanishes under us is simply not there; the walk in the freeze is exact.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::migrate {

using PidMap = std::map<std::int32_t, std::int32_t>;  // Pid in the capsule -> pid on this node.
using Places = std::map<std::uint32_t, std::string>;  // Where a private file is opened, by id.

// Bit that tells the content space of a private file from that of a process (docs/ENGINE.md).
inline constexpr std::uint32_t file_space_bit = 0x8000'0000;

class CapsuleFiles {
 public:
  static constexpr int depth_max = 64;
  static constexpr std::size_t files_max = 200'000;

  // `root`: where the capsule's "/" is reached from here ("/proc/PID/root").
  explicit CapsuleFiles(std::string root) : root_(std::move(root)) {}

  // `places`: by the ids of the image, for those that no process has open or mapped; they are on
  // their way in messages. Completes image.private_files and renames ids, so that an object has the
  // same id in every image. The answer: ids whose content has not changed since the collection
  // before; they need no round. ENOENT: the program removed a file since it was described; describe
  // again.
  Result<std::map<std::uint32_t, bool>> collect(image::Capsule& image, const PidMap& node_pids,
                                                const Places& places = {});

  // The content, O_RDONLY. Of an id of the last collection.
  Result<UniqueFd> open(std::uint32_t id) const;

 private:
  using Key =
      std::tuple<std::uint64_t, std::uint64_t, std::string>;  // Device, inode, extra link's path.
  struct Known {
    std::uint32_t id = 0;
    std::uint64_t size = 0;
    std::int64_t mtime_ns = 0;
    std::int64_t ctime_ns = 0;
    std::int64_t seen_ns = 0;  // CLOCK_REALTIME of the look at it.
    std::uint64_t generation = 0;
    bool unchanged = false;
  };

  Result<void> adopt_captured(image::Capsule& image, const PidMap& node_pids, const Places& places);
  Result<void> walk(image::Capsule& image, int dir, const std::string& path, int depth);
  Result<void> add_entry(image::Capsule& image, int dir, const std::string& path,
                         const std::string& name, int depth);
  Result<void> claim_named(image::Capsule& image);
  void part_from_former(image::Capsule& image);
  Known& know(const Key& key, const struct stat& st);

  std::string root_;
  std::map<Key, Known> known_;
  std::map<std::uint32_t, std::string> open_by_id_;
  std::map<std::uint32_t, image::PrivateFile> former_;  // Of the last image, by id.
  std::map<Key, std::uint32_t> in_image_;  // Objects that the image of this collection has already.
  std::uint32_t next_id_ = 1;
  std::uint64_t generation_ = 0;
  bool trust_times_ = false;  // Of the file system that is being walked.
};

// Whether the target could put pages of `b` into skeletons that were prepared for `a`.
bool same_layout(const image::Capsule& a, const image::Capsule& b);

// What the capsule has open or mapped and the target must have, each by its path and identity: one
// that was replaced is another one.
std::set<std::string> shared_files(const image::Capsule& capsule);

}  // namespace godwit::migrate
