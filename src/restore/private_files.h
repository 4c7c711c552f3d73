// Files that belong to the capsule alone and travel with it: made here, empty, before the freeze;
// their content is written through `content_fd` by whoever receives pages; `finish` gives them
// their final size, owner, mode, times and seals.
//
// Everything is done through the capsule's root directory with openat2: no symbolic link in the
// capsule's /tmp can lead outside of what the image names.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::restore {

class PrivateFiles {
 public:
  explicit PrivateFiles(int root_fd) : root_fd_(root_fd) {}  // Borrowed.

  // Makes what is new, renames, unlinks and removes what has changed. An id stands for the same
  // object during one migration.
  Result<void> sync(const image::Capsule& capsule);
  Result<void> finish(const image::Capsule& capsule);

  // Another inode takes the place of a socket's node. Preconditions: finish was called.
  Result<void> replace_socket(std::uint32_t id, int from_dir, const std::string& from_name);

  // O_RDWR; regular files only. Borrowed.
  Result<int> content_fd(std::uint32_t id) const;
  // A new open file description.
  Result<UniqueFd> reopen(std::uint32_t id, int flags) const;

 private:
  struct Entry {
    image::PrivateFile file;
    UniqueFd fd;     // Regular files: O_RDWR; others: O_PATH.
    std::string at;  // PATH: where it is now.
  };
  Result<void> make(const image::PrivateFile& file);
  // Known files change in two steps, since names may have been exchanged: all that moves or goes
  // leaves its place, then each takes its new one.
  Result<void> leave_place(Entry& entry, const image::PrivateFile& file);
  Result<void> take_place(Entry& entry, const image::PrivateFile& file);
  static Result<void> grow(const Entry& entry, const image::PrivateFile& file);
  Result<void> move(Entry& entry, const std::string& to);
  Result<void> remove(const Entry& entry);
  Result<UniqueFd> make_at_path(const image::PrivateFile& file);
  Result<UniqueFd> make_unlinked(const image::PrivateFile& file);
  Result<void> finish_one(const Entry& entry, const image::PrivateFile& file);

  int root_fd_;
  std::map<std::uint32_t, Entry> entries_;
};

// Opens a path as the capsule sees it: links resolve inside its root.
Result<UniqueFd> open_in_root(int root_fd, const std::string& path, int flags);

}  // namespace godwit::restore
