// What has to change in an address space so that it becomes another one. Pure.
//
// A skeleton's mappings are made before the freeze; at the freeze only the difference between the
// list at that time and the final one is applied. Programs with 10,000 mappings rarely change more
// than a few of them within a second, so the walk over equal pairs is what counts: about 20 ns
// each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/image.pb.h"

namespace godwit::restore {

// The mappings of an image with what their file numbers mean. Numbers may change from image to
// image; the keys (paths, private file ids) tell whether it's the same file. A view: the image must
// outlive it (copying 60,000 messages would cost 10 ms of the freeze).
class VmaList {
 public:
  VmaList() = default;
  explicit VmaList(const image::Mm& mm);

  const std::vector<const image::Vma*>& vmas() const { return vmas_; }
  const image::FileRef* file_of(const image::Vma& vma) const;
  const std::string& file_key(const image::Vma& vma) const;

 private:
  std::vector<const image::Vma*> vmas_;       // Without VDSO, VVAR, VVAR_VCLOCK.
  std::vector<const image::FileRef*> files_;  // By FileRef id; id 0 is "no file".
  std::vector<std::string> keys_;
};

struct MapChange {
  enum class Kind { unmap, map, adjust };
  Kind kind;
  std::uint64_t start, end;
  const image::Vma* had = nullptr;   // adjust: the attributes that hold now.
  const image::Vma* want = nullptr;  // map, adjust.
};

// Ascending by address, each page in one change at most. Pointers are into the two lists.
// A `map` over something existing replaces it (and drops its pages); `adjust` keeps the pages.
std::vector<MapChange> plan_changes(const VmaList& have, const VmaList& want);

}  // namespace godwit::restore
