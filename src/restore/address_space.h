// The mappings of a skeleton: made before the freeze, brought up to date at the freeze.
#pragma once

#include <functional>
#include <memory>

#include "image/image.pb.h"
#include "restore/map_plan.h"
#include "restore/skeleton.h"

namespace godwit::restore {

class AddressSpace {
 public:
  // Opens what a mapping is of, verified to be the same file as on the source. `file` is null for
  // shared anonymous memory, which `shmem` then names.
  struct FileNeed {
    const image::FileRef* file;
    std::uint32_t shmem;
    bool write;  // For reading and writing, else for reading only.
  };
  using OpenFile = std::function<Result<UniqueFd>(const FileNeed&)>;

  AddressSpace(Skeleton& skeleton, OpenFile open) : skeleton_(skeleton), open_(std::move(open)) {}

  // Makes the mappings those of `want`; only differences cost. After an error the skeleton is
  // useless. Areas that are in a userfaultfd with events must not change (the call would wait for
  // the reader of the events).
  Result<void> sync(const image::Mm& want);
  // The last one: as sync, without keeping a copy for the next difference.
  Result<void> sync_last(const image::Mm& want);

  // mlock and the like; after the content has arrived, since locking populates.
  Result<void> apply_locks(const image::Mm& mm);

  // Drops pages of private mappings (they read as zero or as the file again).
  struct Range {
    std::uint64_t start, end;
  };
  // In pieces: others get the processor in between; else it is done in the least time.
  Result<void> drop_pages(std::span<const Range> ranges, bool in_pieces);

 private:
  Result<void> apply(const image::Mm& want);
  Result<void> begin_anew();
  Result<void> place_vdso(const image::Mm& want);
  Result<void> place_forwarded(std::uint64_t end);
  Result<void> map_old_vdso(const image::Mm& want);
  // Applies changes from `from` on, as many as fit; returns the first that is left.
  Result<std::size_t> apply_some(const VmaList& want, const std::vector<MapChange>& changes,
                                 std::size_t from);

  Skeleton& skeleton_;
  OpenFile open_;
  image::Mm have_;
  bool vdso_placed_ = false;
  bool old_vdso_mapped_ = false;
};

}  // namespace godwit::restore
