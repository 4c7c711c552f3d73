// Open files and descriptors of a skeleton. Descriptions are opened by us (through the capsule's
// root), get their offsets and flags here, and travel into the skeleton over its channel; there
// each goes to its number. A description that several descriptors share is opened once.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "image/image.pb.h"
#include "restore/pipes.h"
#include "restore/private_files.h"
#include "restore/skeleton.h"
#include "restore/skeleton_source.h"
#include "restore/unix_sockets.h"

namespace godwit::restore {

class OpenFiles {
 public:
  OpenFiles(SkeletonSource& source, int root_fd, PrivateFiles& files)
      : source_(source), root_fd_(root_fd), files_(files), pipes_(files) {}

  // The file of a mapping or an executable.
  Result<UniqueFd> open_ref(const image::FileRef& ref, int flags) const;

  // Opens every description of the image. May be called when the content of private files isn't
  // there yet.
  // `frozen_ns`: how long ago its times were read.
  // `skeletons`: of the whole image.
  Result<void> open_all(const image::Capsule& capsule, std::int64_t frozen_ns,
                        const FindSkeleton& skeletons, Notes& notes);
  // Puts the descriptors of a process at their numbers; everything else but the channel is closed.
  Result<void> install(Skeleton& skeleton, const image::Process& process,
                       const image::Capsule& capsule);
  // The capsule's terminal becomes the controlling one of a session's leader: before it has
  // children, who inherit it.
  Result<void> take_terminal(Skeleton& skeleton);
  // What must be done with the program's own credentials: F_SETOWN remembers them.
  Result<void> add_owners(Batch& batch, const image::Process& process,
                          const image::Capsule& capsule) const;
  // From here the program is the only one that has them open.
  void close_all() { opened_.clear(); }

 private:
  Result<UniqueFd> open_one(const image::OpenFile& file, const image::CapsuleSpec& spec);
  Result<UniqueFd> open_pidfd(const image::OpenFile& file, const FindSkeleton& skeletons) const;
  Result<UniqueFd> open_socket(const image::OpenFile& file, const image::Capsule& capsule,
                               const UnixSockets& unix_sockets);
  Result<void> add_watches(Skeleton& skeleton, const image::Process& process,
                           const image::Capsule& capsule);
  Result<void> at_terminal(Skeleton& skeleton, unsigned long request, const char* name,
                           std::optional<pid_t> group);
  Result<void> install_terminal(Skeleton& skeleton, const image::Process& process,
                                const image::Capsule& capsule);

  SkeletonSource& source_;
  int root_fd_;
  PrivateFiles& files_;
  Pipes pipes_;
  OpenedFiles opened_;
};

}  // namespace godwit::restore
