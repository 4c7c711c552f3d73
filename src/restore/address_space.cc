#include "restore/address_space.h"

#include <elf.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "sys/vdso.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

namespace godwit::restore {
namespace {

constexpr std::size_t files_at_once = 200;  // Descriptors that the skeleton has at a time.
constexpr std::size_t calls_per_change = 16;
constexpr std::size_t data_per_change = 1024;
// 0.5 ms. Between two batches the skeleton sleeps, and whoever waits for its processor goes on: a
// kernel without preemption let threads of other control groups wait for up to 100 ms.
constexpr std::uint64_t drop_bytes_at_once = 16 << 20;

// What madvise sets and takes back. 0: there is no way back but a new mapping (map_plan knows).
struct Advice {
  std::uint64_t flag;
  int set, clear;
  bool hint = false;  // A kernel that isn't built for it refuses, and nothing is lost but speed.
};
constexpr Advice advices[] = {
    {image::VMA_DONTFORK, MADV_DONTFORK, MADV_DOFORK},
    {image::VMA_DONTDUMP, MADV_DONTDUMP, MADV_DODUMP},
    {image::VMA_HUGEPAGE, MADV_HUGEPAGE, 0, true},
    {image::VMA_NOHUGEPAGE, MADV_NOHUGEPAGE, 0, true},
    {image::VMA_WIPEONFORK, MADV_WIPEONFORK, MADV_KEEPONFORK},
    {image::VMA_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE, true},
    {image::VMA_RANDOM, MADV_RANDOM, MADV_NORMAL},
    {image::VMA_SEQUENTIAL, MADV_SEQUENTIAL, MADV_NORMAL},
};
constexpr std::uint64_t lock_flags = image::VMA_LOCKED | image::VMA_LOCKONFAULT;

void add_advice(Batch& b, const MapChange& c, std::uint64_t had, std::uint64_t want) {
  std::uint64_t size = c.end - c.start;
  auto advise = [&](int advice, bool hint) {
    const auto what = static_cast<std::uint64_t>(advice);
    if (hint)
      b.call_tolerant(SYS_madvise, "madvise", {c.start, size, what});
    else
      b.call(SYS_madvise, "madvise", {c.start, size, what});
  };
  for (const Advice& a : advices) {  // First back, since MADV_NORMAL clears two.
    if ((had & ~want & a.flag) != 0 && a.clear != 0) advise(a.clear, a.hint);
  }
  for (const Advice& a : advices) {
    if ((want & ~had & a.flag) != 0) advise(a.set, a.hint);
  }
  if ((had & ~want & lock_flags) != 0) b.call(SYS_munlock, "munlock", {c.start, size});
}

Result<void> add_policy(Batch& b, const MapChange& c, const std::string& policy) {
  constexpr std::size_t mode_bytes = sizeof(std::uint32_t);
  if (policy.empty()) {
    b.call(SYS_mbind, "mbind(default)", {c.start, c.end - c.start, 0, 0, 0, 0});
    return {};
  }
  if (policy.size() < mode_bytes || policy.size() > 512) {
    return make_error(Errc::invalid, "memory policy of {} bytes at {:#x}", policy.size(), c.start);
  }
  std::uint32_t mode = 0;
  std::memcpy(&mode, policy.data(), mode_bytes);
  // Whole words for the kernel, which counts the bits with one too many.
  std::string mask = policy.substr(mode_bytes);
  mask.resize((mask.size() + 7) / 8 * 8);
  std::uint64_t at = mask.empty() ? 0 : b.put(std::as_bytes(std::span(mask)));
  b.call(SYS_mbind, "mbind",
         {c.start, c.end - c.start, mode, at, mask.empty() ? 0 : mask.size() * 8 + 1, 0});
  return {};
}

void add_name(Batch& b, const MapChange& c, const std::string& name) {
  std::uint64_t at = name.empty() ? 0 : b.put_string(name);
  // Only a label in maps, which many a kernel isn't built for (CONFIG_ANON_VMA_NAME).
  b.call_tolerant(SYS_prctl, "prctl(PR_SET_VMA_ANON_NAME)",
                  {PR_SET_VMA, PR_SET_VMA_ANON_NAME, c.start, c.end - c.start, at});
}

Result<void> add_map(Batch& b, const MapChange& c, std::uint64_t fd) {
  const image::Vma& v = *c.want;
  std::uint64_t flags = MAP_FIXED | (v.shared() ? MAP_SHARED : MAP_PRIVATE);
  if (v.kind() == image::Vma::ANON) flags |= MAP_ANONYMOUS;
  if (v.growsdown()) flags |= MAP_GROWSDOWN;
  if ((v.flags() & image::VMA_NORESERVE) != 0) flags |= MAP_NORESERVE;
  if ((v.flags() & image::VMA_SYNC) != 0)
    flags = (flags & ~MAP_SHARED) | MAP_SHARED_VALIDATE | MAP_SYNC;
  std::uint64_t offset = v.kind() == image::Vma::ANON ? 0 : v.pgoff_bytes() + (c.start - v.start());
  b.call(SYS_mmap, "mmap", {c.start, c.end - c.start, v.prot(), flags, fd, offset});
  add_advice(b, c, 0, v.flags());
  if (!v.mempolicy().empty()) TRY(add_policy(b, c, v.mempolicy()));
  if (!v.anon_name().empty()) add_name(b, c, v.anon_name());
  return {};
}

Result<void> add_adjust(Batch& b, const MapChange& c) {
  const image::Vma& had = *c.had;
  const image::Vma& want = *c.want;
  if (had.prot() != want.prot()) {
    b.call(SYS_mprotect, "mprotect", {c.start, c.end - c.start, want.prot()});
  }
  add_advice(b, c, had.flags(), want.flags());
  if (had.mempolicy() != want.mempolicy()) TRY(add_policy(b, c, want.mempolicy()));
  if (had.anon_name() != want.anon_name()) add_name(b, c, want.anon_name());
  return {};
}

// Whether mprotect may make it writable is decided by the descriptor that it is mapped by. Not more
// than that: a sealed memfd must not be mapped by a writable one where the program can't write,
// since the seal is set last, and refused while a mapping could become writable.
bool needs_write(const image::Vma& vma) {
  return vma.shared() &&
         ((vma.prot() & PROT_WRITE) != 0 || (vma.flags() & image::VMA_MAYWRITE) != 0);
}

std::uint64_t vdso_end(const image::Mm& mm) {
  std::uint64_t end = 0;
  for (const image::Vma& vma : mm.vmas())
    if (vma.kind() == image::Vma::VDSO) end = vma.end();
  return end;
}

}  // namespace

Result<void> AddressSpace::sync(const image::Mm& want) {
  TRY(apply(want));
  have_ = want;
  return {};
}

Result<void> AddressSpace::sync_last(const image::Mm& want) { return apply(want); }

// What a program that executes another one does: nothing is left. (Whose addresses aren't random
// may find its vdso at the same place; then what is left is sent again, or dropped.)
Result<void> AddressSpace::begin_anew() {
  TRY(skeleton_.unmap_all());
  have_.Clear();
  vdso_placed_ = old_vdso_mapped_ = false;
  return {};
}

Result<void> AddressSpace::apply(const image::Mm& want_mm) {
  if (vdso_placed_ && vdso_end(have_) != vdso_end(want_mm)) TRY(begin_anew());
  std::vector<AddressRange> ranges;
  ranges.reserve(static_cast<std::size_t>(want_mm.vmas_size()));
  for (const image::Vma& v : want_mm.vmas()) ranges.push_back({v.start(), v.end()});
  TRY(skeleton_.make_room(ranges));
  TRY(place_vdso(want_mm));
  VmaList have(have_), want(want_mm);
  std::vector<MapChange> changes = plan_changes(have, want);
  for (std::size_t next = 0; next < changes.size();) next = TRY(apply_some(want, changes, next));
  return {};
}

namespace {

struct SourceVdso {
  const image::Vma* code = nullptr;
  std::vector<const image::Vma*> data;
  std::uint64_t data_bytes = 0;
  bool forwarded =
      false;  // The program's own pointers lead to a mapping that an earlier move made.
};

SourceVdso source_vdso(const image::Mm& mm) {
  SourceVdso out;
  for (const image::Vma& v : mm.vmas()) {
    if (v.kind() == image::Vma::VDSO) out.code = &v;
    if (v.kind() != image::Vma::VVAR && v.kind() != image::Vma::VVAR_VCLOCK) continue;
    out.data.push_back(&v);
    out.data_bytes += v.end() - v.start();
  }
  for (std::size_t at = 0; out.code != nullptr && at + 16 <= mm.auxv().size(); at += 16) {
    std::uint64_t pair[2];
    std::memcpy(pair, mm.auxv().data() + at, sizeof pair);
    if (pair[0] == AT_SYSINFO_EHDR) out.forwarded = pair[1] != out.code->start();
  }
  return out;
}

bool is_free(const image::Mm& mm, std::uint64_t start, std::uint64_t end) {
  return std::none_of(mm.vmas().begin(), mm.vmas().end(), [&](const image::Vma& v) {
    const bool special = v.kind() == image::Vma::VDSO || v.kind() == image::Vma::VVAR ||
                         v.kind() == image::Vma::VVAR_VCLOCK;
    return !special && v.start() < end && start < v.end();
  });
}

}  // namespace

// See the essay in sys/vdso.cc.
Result<void> AddressSpace::place_vdso(const image::Mm& want) {
  const SourceVdso source = source_vdso(want);
  if (source.code == nullptr)
    return make_error(Errc::unsupported, "the program has unmapped its vdso");
  const Skeleton::Vdso& ours = skeleton_.vdso();
  if (source.forwarded) {
    if (vdso_placed_) return {};
    const std::uint64_t lowest = source.code->end() - (ours.end - ours.vvar);
    if (!is_free(want, lowest, source.code->end())) {
      return make_error(Errc::unsupported,
                        "this kernel's vdso needs {:#x}-{:#x}, where the program has memory",
                        lowest, source.code->end());
    }
    TRY(place_forwarded(source.code->end()));
  } else if (want.vdso().empty() ||
             TRY(sys::parse_vdso(std::as_bytes(std::span(want.vdso())))).build_id ==
                 ours.image.build_id) {
    if (vdso_placed_) return {};
    if (source.code->end() - source.code->start() != ours.end - ours.start ||
        source.data_bytes != ours.start - ours.vvar) {
      return make_error(
          Errc::unsupported,
          "the vdso of this kernel ({} + {} bytes) differs from that of the source ({} + {})",
          ours.start - ours.vvar, ours.end - ours.start, source.data_bytes,
          source.code->end() - source.code->start());
    }
    TRY(skeleton_.place_vdso(source.code->start()));
  } else {
    // The program may have mapped something since the vdso was placed.
    if (old_vdso_mapped_ && is_free(want, ours.end - sys::vdso_room, ours.end)) return {};
    std::vector<AddressRange> used{skeleton_.own_area()};
    for (const image::Vma& v : want.vmas()) used.push_back({v.start(), v.end()});
    std::sort(used.begin(), used.end(), [](auto& x, auto& y) { return x.start < y.start; });
    const std::uint64_t room = TRY(find_gap(used, 3 * sys::vdso_room)) + sys::vdso_room;
    TRY(place_forwarded(room + sys::vdso_room));
    TRY(map_old_vdso(want));
  }
  vdso_placed_ = true;
  return {};
}

// This kernel's vdso where the stubs of a forwarded program are expected.
Result<void> AddressSpace::place_forwarded(std::uint64_t end) {
  const Skeleton::Vdso& ours = skeleton_.vdso();
  TRY(skeleton_.place_vdso(end - (ours.end - ours.start)));
  const sys::VdsoStubs stubs = sys::make_vdso_stubs(ours.image, ours.start);
  return skeleton_.poke(ours.end - stubs.size(), stubs);
}

// The source's vdso where the program believes it to be, as memory like any other, which leads to
// ours; zeros where its data were.
Result<void> AddressSpace::map_old_vdso(const image::Mm& want) {
  const SourceVdso source = source_vdso(want);
  const image::Vma& code = *source.code;
  if (want.vdso().size() != code.end() - code.start())
    return make_error(Errc::invalid, "{} bytes of vdso for {:#x}-{:#x}", want.vdso().size(),
                      code.start(), code.end());
  if (!old_vdso_mapped_) {
    constexpr std::uint64_t flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    Batch b = skeleton_.batch();
    for (const image::Vma* data : source.data)
      b.call(SYS_mmap, "mmap(old vvar)",
             {data->start(), data->end() - data->start(), PROT_READ, flags, ~0ull, 0});
    b.call(SYS_mmap, "mmap(old vdso)",
           {code.start(), code.end() - code.start(), PROT_READ | PROT_EXEC, flags, ~0ull, 0});
    TRY(skeleton_.run(b));
    old_vdso_mapped_ = true;
  }
  std::string image = want.vdso();
  TRY(sys::forward_vdso(std::as_writable_bytes(std::span(image)), skeleton_.vdso().end));
  return skeleton_.poke(code.start(), std::as_bytes(std::span(image)));
}

Result<std::size_t> AddressSpace::apply_some(const VmaList& want,
                                             const std::vector<MapChange>& changes,
                                             std::size_t from) {
  // First the descriptors, since passing them is a batch of its own.
  std::map<std::pair<std::string, bool>, std::size_t> index;
  std::vector<UniqueFd> fds;
  std::size_t end = from;
  auto key_of = [&](const image::Vma& v) {
    std::string key =
        v.kind() == image::Vma::SHARED_ANON ? fmt::format("shmem:{}", v.shmem()) : want.file_key(v);
    return std::pair(std::move(key), needs_write(v));
  };
  auto is_file = [](const MapChange& c) {
    return c.kind == MapChange::Kind::map && c.want->kind() != image::Vma::ANON;
  };
  for (; end < changes.size() && fds.size() < files_at_once; ++end) {
    const MapChange& c = changes[end];
    if (!is_file(c)) continue;
    auto key = key_of(*c.want);
    if (index.contains(key)) continue;
    FileNeed need{want.file_of(*c.want), c.want->shmem(), key.second};
    if (need.file == nullptr && c.want->kind() == image::Vma::FILE) {
      return make_error(Errc::invalid, "mapping {:#x} is of file {}, which the image lacks",
                        c.start, c.want->file());
    }
    index[key] = fds.size();
    fds.push_back(TRY(open_(need).with(fmt::format("mapping {:#x}", c.start))));
  }
  std::vector<int> raw;
  for (const UniqueFd& fd : fds) raw.push_back(fd.get());
  std::vector<int> there;
  if (!raw.empty()) there = TRY(skeleton_.pass_fds(raw));

  Batch b = skeleton_.batch();
  std::size_t i = from;
  for (; i < end && b.has_room(calls_per_change + fds.size(), data_per_change); ++i) {
    const MapChange& c = changes[i];
    if (c.kind == MapChange::Kind::unmap) {
      b.call(SYS_munmap, "munmap", {c.start, c.end - c.start});
    } else if (c.kind == MapChange::Kind::adjust) {
      TRY(add_adjust(b, c));
    } else {
      std::uint64_t fd = ~0ull;
      if (is_file(c)) {
        fd = static_cast<std::uint64_t>(there[index.at(key_of(*c.want))]);
        b.about(want.file_key(*c.want));
      } else {
        b.about({});
      }
      TRY(add_map(b, c, fd));
    }
  }
  b.about({});
  for (int fd : there) b.call(SYS_close, "close", {static_cast<std::uint64_t>(fd)});
  TRY(skeleton_.run(b));
  return i;
}

Result<void> AddressSpace::apply_locks(const image::Mm& mm) {
  Batch b = skeleton_.batch();
  for (const image::Vma& v : mm.vmas()) {
    if ((v.flags() & lock_flags) == 0) continue;
    bool on_fault = (v.flags() & image::VMA_LOCKONFAULT) != 0;
    b.call(SYS_mlock2, "mlock2",
           {v.start(), v.end() - v.start(), on_fault ? std::uint64_t{MLOCK_ONFAULT} : 0});
    if (!b.has_room(2, 0)) {
      TRY(skeleton_.run(b));
      b.clear();
    }
  }
  return skeleton_.run(b);
}

Result<void> AddressSpace::drop_pages(std::span<const Range> ranges, bool in_pieces) {
  Batch b = skeleton_.batch();
  const std::uint64_t most = in_pieces ? drop_bytes_at_once : ~std::uint64_t{0};
  std::uint64_t bytes = 0;  // Of the batch.
  for (const Range& r : ranges) {
    for (std::uint64_t at = r.start; at < r.end;) {
      const std::uint64_t piece = std::min(r.end - at, most - bytes);
      // The area may be gone already (ENOMEM), or locked here (EINVAL): locks come last, so it
      // isn't.
      b.call_tolerant(SYS_madvise, "madvise(MADV_DONTNEED)", {at, piece, MADV_DONTNEED});
      at += piece;
      bytes += piece;
      if (bytes < most && b.has_room(2, 0)) continue;
      TRY(skeleton_.run(b));
      b.clear();
      bytes = 0;
    }
  }
  return skeleton_.run(b);
}

}  // namespace godwit::restore
