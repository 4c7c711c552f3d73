// Pipes of a process tree: which descriptors are ends of which, and what is in them.
#pragma once

#include <sys/stat.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "image/image.pb.h"

namespace godwit::capture {

class PipeTable {
 public:
  // An open file description of a pipe or FIFO (a copy of it, by pidfd_getfd); `flags` as F_GETFL
  // has them. Answers the id of its pipe.
  Result<std::uint32_t> add(UniqueFd end, const struct stat& st, unsigned flags,
                            const std::string& whose);

  // Adds them to the image, without their content.
  Result<void> describe(image::Capsule& capsule) const;

  // Preconditions: the tree stands still, and all of its ends were added.
  // Which of them have an end outside of the tree or are of a kind that can't move, in words.
  Result<std::vector<std::string>> reasons() const;
  // The same and their content. Nothing is taken out.
  Result<void> describe_with_content(image::Capsule& capsule) const;

 private:
  struct Entry {
    std::uint32_t id = 0;
    struct stat st {};
    UniqueFd reader, writer;  // One each, where there are any; both are of one that is read-write.
    std::string whose;        // The first that was added.
    bool named() const;       // A FIFO, not a pipe.
  };
  Result<UniqueFd> readable(const Entry& entry) const;

  std::map<std::pair<std::uint64_t, std::uint64_t>, Entry> entries_;  // By device and inode.
};

}  // namespace godwit::capture
