// Files of a process tree: descriptors, mapped files, executables, each once.
#pragma once

#include <sys/stat.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "capture/describe_pipes.h"
#include "capture/describe_sockets.h"
#include "capture/freeze.h"
#include "image/image.pb.h"
#include "sys/proc.h"

namespace godwit::capture {

// What a process itself is told of a descriptor: a tenth of what it costs to look from outside.
struct OwnLook {
  bool cloexec = false;
  struct stat st {};
};
// Of these descriptors, in their order.
using LookInside = std::function<Result<std::vector<OwnLook>>(std::span<const int> fds)>;

// Gives every file one identity across descriptors and mappings of all processes.
class FileTable {
 public:
  // `stands_still`: descriptions are exact; else what may change at any time is left out.
  FileTable(const TreeRef& tree, image::Capsule& capsule, bool stands_still)
      : tree_(tree), capsule_(capsule), stands_still_(stands_still) {}

  // `place`: a /proc link that opens the file itself (fd/N, map_files/A-B, exe); `path` as the link
  // reads.
  Result<image::FileRef> refer(pid_t pid, const std::string& place, const std::string& path,
                               bool deleted);

  // Fills process.fds and adds to capsule.files.
  // `inside`: for a process that stands still; may be empty.
  Result<void> describe_fds(pid_t pid, int pidfd, image::Process& process,
                            const LookInside& inside = {});

  bool stands_still() const { return stands_still_; }
  // After all processes: pipes are described when all their ends are known.
  const PipeTable& pipes() const { return pipes_; }
  const SocketTable& sockets() const { return sockets_; }
  // Preconditions: the tree stands still. `in_flight`: copies of what comes along as messages;
  // their content is read through these.
  Result<void> describe_sockets(std::vector<UniqueFd>& in_flight);
  std::map<std::uint32_t, std::string> places() && { return std::move(places_); }

 private:
  struct Description {  // One that was met already.
    pid_t pid;
    int fd;
    std::uint32_t id;
  };
  struct Holder {
    pid_t pid, pid_inside;  // Inside 0: ourselves, for what comes along in messages.
    int pidfd;
    std::string name_of(int fd) const;
  };
  Result<std::uint32_t> open_outside(const Holder& holder, int fd, bool& cloexec);
  // `known`: what /proc says of it, if that was read already.
  Result<std::uint32_t> open_file(const Holder& holder, int fd, const struct stat& st,
                                  const sys::FdInfo* known);
  Result<void> classify(const Holder& holder, int fd, const sys::FdInfo& info,
                        const struct stat& st, image::OpenFile& file);
  Result<std::uint32_t> private_file(image::PrivateFile::Kind kind, const std::string& place,
                                     const std::string& path, const struct stat& st);

  const TreeRef& tree_;
  image::Capsule& capsule_;
  bool stands_still_;
  PipeTable pipes_;
  SocketTable sockets_;
  std::map<std::tuple<std::uint64_t, std::uint64_t>, std::vector<Description>>
      met_;  // By device and inode.
  std::map<std::uint32_t, std::pair<std::uint64_t, std::uint64_t>>
      private_ids_;  // id -> device, inode
  std::map<std::uint32_t, std::string> places_;
  std::map<pid_t, pid_t> pids_;  // The capsule's number by this node's.
};

// "(deleted)" taken off the end of what a /proc link reads.
std::string without_deleted_mark(std::string path, bool& deleted);

// Which of the capsule's standard streams this is; -1: none.
int stdio_stream(const TreeStdio& stdio, const struct stat& st);

// Devices that are the same on every node.
bool is_plain_device(const struct stat& st);

}  // namespace godwit::capture
