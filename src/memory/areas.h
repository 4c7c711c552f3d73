// Which mappings of a live process hold pages of its own. From the text of /proc/PID/maps, since
// that is what 60,000 mappings can be read from in a few milliseconds.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "memory/types.h"

namespace godwit::memory {

struct MapsView {
  std::vector<Area> content;  // By address. Area::file is not filled in: only source-side use.
  std::vector<std::uint64_t> ceiling;  // Of each: where the next mapping, of any kind, starts.
  // Where another mapping lies before content[i]: ascending i, content.size() for behind the last.
  std::vector<std::size_t> separators;
  std::uint64_t mappings = 0;  // All, for the margin under vm.max_map_count.
};

Result<MapsView> parse_maps(std::string_view text);
// The same of a process that was described while it stood still.
MapsView maps_view(const image::Mm& mm);

// Neighbours in `content` that can be asked about in one call: of one kind, with no other mapping
// than content between them (gaps don't matter).
struct AreaGroup {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t ceiling = 0;  // Of its last area.
  bool anonymous = true;
};
std::vector<AreaGroup> group_areas(const MapsView& maps);

// The same cut into pieces of about so many mapped bytes, for several threads to share. (Gaps of
// terabytes are common, so the length of a group says nothing.)
std::vector<AreaGroup> cut_areas(const MapsView& maps, std::uint64_t piece_bytes);

}  // namespace godwit::memory
