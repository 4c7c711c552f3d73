// Words that both ends of a memory transfer share.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/unique_fd.h"

namespace godwit::image {
class Mm;
}

namespace godwit::memory {

// A content space (docs/ENGINE.md): a process's pid, or file_space_bit | id of a private file.
using SpaceId = std::uint32_t;

// Consecutive pages of one space; `page` is the byte offset divided by the page size.
struct PageRun {
  std::uint64_t page = 0;
  std::uint64_t pages = 0;
  bool huge = false;  // Lies in a huge page on the source.

  std::uint64_t end() const { return page + pages; }
  bool operator==(const PageRun&) const = default;
};

// A mapping whose own (private) pages are content.
struct Area {
  std::uint64_t start = 0;  // Bytes.
  std::uint64_t end = 0;
  bool anonymous = true;  // Else: a private mapping of a file.
  // Private file mappings: which file, and file offset minus address. Content stays valid across
  // two layouts only where both agree.
  std::string file;
  std::uint64_t file_delta = 0;

  bool same_content_as(const Area& other) const {
    return anonymous == other.anonymous && file == other.file && file_delta == other.file_delta;
  }
};

// The areas of an image that hold pages of the process's own: private anonymous memory and
// private file mappings; no shared mappings, no vdso and vvar.
std::vector<Area> content_areas(const image::Mm& mm);

enum class TrackerKind { none, uffd_wp, soft_dirty };
const char* tracker_name(TrackerKind kind);

// Makes a userfaultfd inside process `pid` (node's pid) and fetches it here. Raw: UFFDIO_API not
// yet called. Flags of userfaultfd(2) are the maker's choice; O_CLOEXEC | O_NONBLOCK expected.
using UffdMaker = std::function<Result<UniqueFd>(pid_t pid)>;

}  // namespace godwit::memory
