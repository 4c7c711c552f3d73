#include "capture/describe_memory.h"

#include <sys/mman.h>

#include <map>
#include <tuple>

#include "base/io.h"
#include "sys/vdso.h"

namespace godwit::capture {
namespace {

constexpr int torn_reads_max = 3;

// The kernel's own areas, told by name. [vsyscall] is no mapping of the process.
bool is_gate(const sys::MapEntry& map) { return map.path == "[vsyscall]"; }

image::Vma::Kind kind_of(const sys::MapEntry& map) {
  if (map.is_special("[vdso]")) return image::Vma::VDSO;
  if (map.is_special("[vvar]")) return image::Vma::VVAR;
  if (map.is_special("[vvar_vclock]")) return image::Vma::VVAR_VCLOCK;
  if (map.inode == 0) return image::Vma::ANON;
  if (map.shared && map.deleted && map.path == "/dev/zero") return image::Vma::SHARED_ANON;
  return image::Vma::FILE;
}

std::uint32_t prot_of(const sys::MapEntry& map) {
  return (map.read ? PROT_READ : 0u) | (map.write ? PROT_WRITE : 0u) | (map.exec ? PROT_EXEC : 0u);
}

// What of an earlier description tells flags that maps doesn't show.
class EarlierFlags {
 public:
  explicit EarlierFlags(const image::Mm& mm) : vmas_(mm.vmas()) {}

  // The earlier mapping that this one is, or has grown or shrunk from; null: it's new. To be asked
  // in ascending order.
  const image::Vma* find(const sys::MapEntry& map) {
    while (at_ < vmas_.size() && vmas_[at_].end() <= map.start) ++at_;
    for (int i = at_; i < vmas_.size() && vmas_[i].start() < map.end; ++i) {
      const image::Vma& vma = vmas_[i];
      if (vma.prot() == prot_of(map) && vma.shared() == map.shared && vma.kind() == kind_of(map))
        return &vma;
    }
    return nullptr;
  }

 private:
  const google::protobuf::RepeatedPtrField<image::Vma>& vmas_;  // Ascending.
  int at_ = 0;
};

struct Area {
  sys::MapEntry map;
  std::uint64_t flags = 0;
  bool growsdown = false;
  std::uint32_t pkey = 0;
};

// The mappings of a running program aren't read at one instant: one that grows or moves meanwhile
// can be told twice.
bool overlap(const std::vector<Area>& areas) {
  for (std::size_t i = 1; i < areas.size(); ++i)
    if (areas[i].map.start < areas[i - 1].map.end) return true;
  return false;
}

// Of a program that maps all the time: what was told first stays. The frozen tree is described
// again.
void drop_overlapping(std::vector<Area>& areas) {
  std::uint64_t end = 0;
  std::erase_if(areas, [&](const Area& area) {
    const bool torn = area.map.start < end;
    if (!torn) end = area.map.end;
    return torn;
  });
}

Result<std::vector<Area>> read_areas(pid_t pid, const image::Mm* earlier) {
  std::vector<Area> areas;
  bool all_known = earlier != nullptr;
  if (all_known) {
    EarlierFlags known(*earlier);
    for (sys::MapEntry& map : TRY(sys::read_maps(pid))) {
      if (is_gate(map)) continue;
      const image::Vma* before = known.find(map);
      if (before == nullptr) {
        all_known = false;
        break;
      }
      areas.push_back({std::move(map), before->flags(), before->growsdown(), before->pkey()});
    }
  }
  if (all_known) return areas;
  areas.clear();
  for (sys::SmapsEntry& entry : TRY(sys::read_smaps(pid))) {
    if (is_gate(entry.map)) continue;
    const std::uint64_t flags = vma_flag_bits(entry);
    const bool growsdown = entry.has("gd");
    areas.push_back({std::move(entry.map), flags, growsdown, entry.protection_key});
  }
  return areas;
}

Result<std::vector<Area>> list_areas(pid_t pid, const image::Mm* earlier) {
  std::vector<Area> areas = TRY(read_areas(pid, earlier));
  for (int again = 0; overlap(areas) && again < torn_reads_max; ++again)
    areas = TRY(read_areas(pid, earlier));
  if (overlap(areas)) drop_overlapping(areas);
  return areas;
}

Result<void> from_stat(pid_t pid, image::Mm& mm) {
  sys::ProcStat stat = TRY(sys::read_stat(pid, pid));
  mm.set_start_code(stat.start_code), mm.set_end_code(stat.end_code);
  mm.set_start_data(stat.start_data), mm.set_end_data(stat.end_data);
  mm.set_start_brk(stat.start_brk), mm.set_start_stack(stat.start_stack);
  mm.set_arg_start(stat.arg_start), mm.set_arg_end(stat.arg_end);
  mm.set_env_start(stat.env_start), mm.set_env_end(stat.env_end);
  mm.set_auxv(TRY(read_file(sys::proc_path(pid, "auxv"))));
  mm.set_vdso(TRY(sys::own_vdso()));
  return {};
}

}  // namespace

std::uint64_t vma_flag_bits(const sys::SmapsEntry& entry) {
  static const std::map<std::string, std::uint64_t> bits = {
      {"dc", image::VMA_DONTFORK},   {"dd", image::VMA_DONTDUMP},    {"hg", image::VMA_HUGEPAGE},
      {"nh", image::VMA_NOHUGEPAGE}, {"wf", image::VMA_WIPEONFORK},  {"mg", image::VMA_MERGEABLE},
      {"lo", image::VMA_LOCKED},     {"lf", image::VMA_LOCKONFAULT}, {"rr", image::VMA_RANDOM},
      {"sr", image::VMA_SEQUENTIAL}, {"nr", image::VMA_NORESERVE},   {"sf", image::VMA_SYNC},
      {"sl", image::VMA_SEALED},     {"mw", image::VMA_MAYWRITE},
  };
  std::uint64_t out = 0;
  for (const std::string& flag : entry.vm_flags)
    if (auto bit = bits.find(flag); bit != bits.end()) out |= bit->second;
  // Everything private may become writable.
  return entry.map.shared ? out : out & ~std::uint64_t{image::VMA_MAYWRITE};
}

Result<void> describe_memory(pid_t pid, FileTable& files, const image::Mm* earlier, image::Mm& mm) {
  TRY(from_stat(pid, mm));
  mm.set_brk(mm.start_brk());
  // A file is referred to once, however many mappings it has: they are compared by what maps shows
  // of them.
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t, std::string>, std::uint32_t>
      known;
  for (Area& area : TRY(list_areas(pid, earlier))) {
    const sys::MapEntry& map = area.map;
    image::Vma& vma = *mm.add_vmas();
    vma.set_start(map.start), vma.set_end(map.end);
    vma.set_prot(prot_of(map));
    vma.set_shared(map.shared);
    vma.set_kind(kind_of(map));
    vma.set_flags(area.flags);
    vma.set_growsdown(area.growsdown);
    vma.set_pkey(area.pkey);
    if (map.is_special("[heap]")) mm.set_brk(map.end);
    if (map.path.starts_with("[anon:")) vma.set_anon_name(map.path.substr(6, map.path.size() - 7));
    if (map.path.starts_with('[')) vma.set_path_hint(map.path);
    if (vma.kind() != image::Vma::FILE && vma.kind() != image::Vma::SHARED_ANON) continue;
    vma.set_pgoff_bytes(map.offset);
    auto [at, added] =
        known.emplace(std::tuple(map.dev_major, map.dev_minor, map.inode, map.path), 0);
    if (added) {
      const std::string place = sys::proc_path(pid, "map_files/" + map.map_files_name());
      Result<image::FileRef> found = files.refer(pid, place, map.path, map.deleted)
                                         .with(fmt::format("mapping at {:#x}", map.start));
      if (!found.ok() && found.error().sys_errno() == ENOENT && !files.stands_still()) {
        // The running program has unmapped it since it was listed.
        known.erase(at);
        mm.mutable_vmas()->RemoveLast();
        continue;
      }
      image::FileRef ref = TRY(std::move(found));
      ref.set_id(static_cast<std::uint32_t>(mm.mapped_size()) + 1);
      at->second = ref.id();
      *mm.add_mapped() = std::move(ref);
    }
    image::FileRef& ref = *mm.mutable_mapped(static_cast<int>(at->second) - 1);
    if ((area.flags & image::VMA_MAYWRITE) != 0) ref.set_written(true);
    vma.set_file(at->second);
    if (vma.kind() == image::Vma::SHARED_ANON) vma.set_shmem(ref.private_file());
  }
  bool deleted = false;
  const std::string exe = sys::proc_path(pid, "exe");
  const std::string path = without_deleted_mark(TRY(sys::read_link(exe)), deleted);
  image::FileRef ref = TRY(files.refer(pid, exe, path, deleted).with("executable"));
  // Usually one of the mapped files; it is found by path or private id.
  for (const image::FileRef& mapped : mm.mapped())
    if (mapped.where() == ref.where() && mapped.path() == ref.path() &&
        mapped.private_file() == ref.private_file())
      mm.set_exe_file(mapped.id());
  if (mm.exe_file() == 0) {
    ref.set_id(static_cast<std::uint32_t>(mm.mapped_size()) + 1);
    mm.set_exe_file(ref.id());
    *mm.add_mapped() = std::move(ref);
  }
  return {};
}

}  // namespace godwit::capture
