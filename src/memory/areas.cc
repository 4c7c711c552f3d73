#include "memory/areas.h"

#include <algorithm>
#include <charconv>

#include "base/ids.h"
#include "image/image.pb.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t highest_address = 0x7ffffffff000;  // With four-level page tables.

// One field up to a blank; the rest of the line stays in `line`.
std::string_view field(std::string_view& line) {
  const std::size_t end = line.find(' ');
  std::string_view out = line.substr(0, end);
  line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
  return out;
}

bool hex(std::string_view text, std::uint64_t& out) {
  auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), out, 16);
  return error == std::errc() && at == text.data() + text.size();
}

// vdso, vvar, vvar_vclock, vsyscall: made by the kernel, never written by the program.
bool kernel_made(std::string_view path) { return path.starts_with("[v"); }

void end_ceilings(MapsView& view) {
  if (view.ceiling.size() < view.content.size())
    view.ceiling.push_back(std::max(highest_address, view.content.back().end));
  for (std::size_t i = 0; i < view.content.size(); ++i)
    view.ceiling[i] = std::min(view.ceiling[i], std::max(highest_address, view.content[i].end));
}

}  // namespace

Result<MapsView> parse_maps(std::string_view text) {
  MapsView out;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const std::string_view whole = line;
    const std::string_view range = field(line);
    const std::string_view flags = field(line);
    const std::string_view offset = field(line);
    field(line);  // device
    const std::string_view inode = field(line);
    const std::size_t dash = range.find('-');
    Area area;
    std::uint64_t file_offset = 0;
    if (dash == std::string_view::npos || flags.size() != 4 ||
        !hex(range.substr(0, dash), area.start) || !hex(range.substr(dash + 1), area.end) ||
        !hex(offset, file_offset))
      return make_error(Errc::internal, "maps: '{}'", whole);
    ++out.mappings;
    if (out.ceiling.size() < out.content.size()) out.ceiling.push_back(area.start);
    const std::size_t path_at = line.find_first_not_of(' ');
    const std::string_view path =
        path_at == std::string_view::npos ? std::string_view() : line.substr(path_at);
    if (flags[3] == 's' || (inode == "0" && kernel_made(path))) {
      out.separators.push_back(out.content.size());
      continue;
    }
    area.anonymous = inode == "0";
    area.file_delta = area.anonymous ? 0 : file_offset - area.start;
    out.content.push_back(std::move(area));
  }
  end_ceilings(out);
  return out;
}

MapsView maps_view(const image::Mm& mm) {
  MapsView out;
  for (const image::Vma& vma : mm.vmas()) {
    ++out.mappings;
    if (out.ceiling.size() < out.content.size()) out.ceiling.push_back(vma.start());
    const bool anonymous = vma.kind() == image::Vma::ANON;
    if (vma.shared() || (!anonymous && vma.kind() != image::Vma::FILE)) {
      out.separators.push_back(out.content.size());
      continue;
    }
    Area& area = out.content.emplace_back();
    area.start = vma.start(), area.end = vma.end();
    area.anonymous = anonymous;
    area.file_delta = anonymous ? 0 : vma.pgoff_bytes() - vma.start();
  }
  end_ceilings(out);
  return out;
}

std::vector<AreaGroup> group_areas(const MapsView& maps) { return cut_areas(maps, ~0ull); }

std::vector<AreaGroup> cut_areas(const MapsView& maps, std::uint64_t piece_bytes) {
  std::vector<AreaGroup> out;
  std::size_t next_separator = 0;
  std::uint64_t room = 0;
  for (std::size_t i = 0; i < maps.content.size(); ++i) {
    const Area& area = maps.content[i];
    bool separated = out.empty();
    while (next_separator < maps.separators.size() && maps.separators[next_separator] <= i) {
      separated = true;
      ++next_separator;
    }
    if (separated || out.back().anonymous != area.anonymous) room = 0;
    for (std::uint64_t at = area.start; at < area.end;) {
      if (room == 0) {
        out.push_back({.start = at, .end = at, .ceiling = 0, .anonymous = area.anonymous});
        room = piece_bytes;
      }
      const std::uint64_t taken = std::min(room, area.end - at);
      at += taken;
      room -= taken;
      out.back().end = at;
      out.back().ceiling = at == area.end ? maps.ceiling[i] : at;
    }
  }
  return out;
}

std::vector<Area> content_areas(const image::Mm& mm) {
  std::vector<Area> out;
  for (const image::Vma& vma : mm.vmas()) {
    const bool anonymous = vma.kind() == image::Vma::ANON;
    if (vma.shared() || (!anonymous && vma.kind() != image::Vma::FILE)) continue;
    Area area{.start = vma.start(),
              .end = vma.end(),
              .anonymous = anonymous,
              .file = {},
              .file_delta = 0};
    if (!anonymous) {
      area.file_delta = vma.pgoff_bytes() - vma.start();
      for (const image::FileRef& ref : mm.mapped())
        if (ref.id() == vma.file())
          area.file = fmt::format("{}:{}:{}", static_cast<int>(ref.where()), ref.private_file(),
                                  ref.path());
    }
    out.push_back(std::move(area));
  }
  return out;
}

const char* tracker_name(TrackerKind kind) {
  switch (kind) {
    case TrackerKind::none:
      return "none";
    case TrackerKind::uffd_wp:
      return "uffd-wp";
    case TrackerKind::soft_dirty:
      return "soft-dirty";
  }
  return "?";
}

}  // namespace godwit::memory
