#include "restore/map_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/result.h"

namespace godwit::restore {
namespace {

std::string key_of(const image::FileRef& file) {
  if (file.where() == image::FileRef::PRIVATE)
    return fmt::format("private:{}", file.private_file());
  return "path:" + file.path();
}

bool is_special(const image::Vma& vma) {
  return vma.kind() == image::Vma::VDSO || vma.kind() == image::Vma::VVAR ||
         vma.kind() == image::Vma::VVAR_VCLOCK;
}

std::uint64_t offset_at(const image::Vma& vma, std::uint64_t address) {
  return vma.pgoff_bytes() + (address - vma.start());
}

// Whether the pages behind `address` may stay as they are.
bool same_backing(const VmaList& have, const image::Vma& a, const VmaList& want,
                  const image::Vma& b, std::uint64_t address) {
  // None can be changed on a mapping that exists.
  constexpr std::uint64_t fixed_flags =
      image::VMA_NORESERVE | image::VMA_SYNC | image::VMA_MAYWRITE;
  constexpr std::uint64_t thp_flags = image::VMA_HUGEPAGE | image::VMA_NOHUGEPAGE;
  if (a.kind() != b.kind() || a.shared() != b.shared() || a.growsdown() != b.growsdown() ||
      a.shmem() != b.shmem() || ((a.flags() ^ b.flags()) & fixed_flags) != 0) {
    return false;
  }
  if ((a.flags() & thp_flags) != 0 && (b.flags() & thp_flags) == 0) return false;
  if (a.kind() == image::Vma::ANON) return true;
  return offset_at(a, address) == offset_at(b, address) && have.file_key(a) == want.file_key(b);
}

bool same_attributes(const image::Vma& a, const image::Vma& b) {
  return a.prot() == b.prot() && a.flags() == b.flags() && a.pkey() == b.pkey() &&
         a.anon_name() == b.anon_name() && a.mempolicy() == b.mempolicy();
}

class Sweep {
 public:
  Sweep(const VmaList& have, const VmaList& want) : have_(have), want_(want) {}

  std::vector<MapChange> run() {
    const auto& hs = have_.vmas();
    const auto& ws = want_.vmas();
    std::size_t i = 0, j = 0;
    std::uint64_t h = hs.empty() ? 0 : hs[0]->start();  // From where hs[i] is still to be treated.
    std::uint64_t w = ws.empty() ? 0 : ws[0]->start();
    auto next_h = [&] {
      if (++i < hs.size()) h = hs[i]->start();
    };
    auto next_w = [&] {
      if (++j < ws.size()) w = ws[j]->start();
    };
    while (i < hs.size() || j < ws.size()) {
      if (j == ws.size() || (i < hs.size() && hs[i]->end() <= w)) {
        unmap(h, hs[i]->end());
        next_h();
      } else if (i == hs.size() || ws[j]->end() <= h) {
        map(w, ws[j]->end(), *ws[j]);
        next_w();
      } else if (h < w) {
        unmap(h, w);
        h = w;
      } else if (w < h) {
        map(w, h, *ws[j]);
        w = h;
      } else {
        std::uint64_t end = std::min(hs[i]->end(), ws[j]->end());
        both(h, end, *hs[i], *ws[j]);
        bool h_done = end == hs[i]->end(), w_done = end == ws[j]->end();
        h = w = end;
        if (h_done) next_h();
        if (w_done) next_w();
      }
    }
    return std::move(changes_);
  }

 private:
  void unmap(std::uint64_t start, std::uint64_t end) {
    if (!changes_.empty() && changes_.back().kind == MapChange::Kind::unmap &&
        changes_.back().end == start) {
      changes_.back().end = end;
      return;
    }
    changes_.push_back({MapChange::Kind::unmap, start, end});
  }
  void map(std::uint64_t start, std::uint64_t end, const image::Vma& want) {
    changes_.push_back({MapChange::Kind::map, start, end, nullptr, &want});
  }
  void both(std::uint64_t start, std::uint64_t end, const image::Vma& had, const image::Vma& want) {
    if (!same_backing(have_, had, want_, want, start)) {
      map(start, end, want);
    } else if (!same_attributes(had, want)) {
      changes_.push_back({MapChange::Kind::adjust, start, end, &had, &want});
    }
  }

  const VmaList& have_;
  const VmaList& want_;
  std::vector<MapChange> changes_;
};

}  // namespace

VmaList::VmaList(const image::Mm& mm) {
  vmas_.reserve(static_cast<std::size_t>(mm.vmas_size()));
  for (const image::Vma& vma : mm.vmas()) {
    if (!is_special(vma)) vmas_.push_back(&vma);
  }
  files_.resize(1);
  keys_.resize(1);
  for (const image::FileRef& file : mm.mapped()) {
    if (file.id() >= files_.size()) {
      files_.resize(file.id() + 1);
      keys_.resize(file.id() + 1);
    }
    files_[file.id()] = &file;
    keys_[file.id()] = key_of(file);
  }
}

const image::FileRef* VmaList::file_of(const image::Vma& vma) const {
  return vma.file() >= files_.size() ? nullptr : files_[vma.file()];
}

const std::string& VmaList::file_key(const image::Vma& vma) const {
  return keys_[vma.file() < keys_.size() ? vma.file() : 0];
}

std::vector<MapChange> plan_changes(const VmaList& have, const VmaList& want) {
  return Sweep(have, want).run();
}

}  // namespace godwit::restore
