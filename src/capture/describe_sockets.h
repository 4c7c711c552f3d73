// Sockets of a process tree. What all kinds have is described here; Unix sockets by
// describe_unix.h, the others by whoever holds their traffic (connections.h).
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "capture/connections.h"
#include "image/image.pb.h"

namespace godwit::capture {

// An open socket: a copy of ours of the program's.
struct SocketEntry {
  std::uint32_t id = 0;
  struct stat st {};
  UniqueFd copy;
  std::string whose;  // In words.
  int family = 0, type = 0, protocol = 0;
};

// What is known of the tree as a whole.
struct Inside {
  // The id (OpenFile.id) of an open file of which we got a descriptor.
  std::function<Result<std::uint32_t>(UniqueFd fd)> describe;
  // The capsule's number for one of this node's; 0: no process of the tree has it.
  std::function<pid_t(pid_t node_pid)> pid;
};

class SocketTable {
 public:
  // Answers the socket's id. An inode is a socket, and a socket is one open file description.
  Result<std::uint32_t> add(UniqueFd copy, const struct stat& st, const std::string& whose);

  bool empty() const { return entries_.empty(); }

  // Whether something waits in one of them that may be a message with descriptors.
  Result<bool> may_carry_descriptors() const;

  // Preconditions: the tree stands still, and all of its sockets were added. `connections` may be
  // null: then there is no network, and only Unix sockets can be described.
  // Which of them can't move, in words.
  Result<std::vector<std::string>> reasons(Connections* connections) const;
  // Sockets that come along as messages (SCM_RIGHTS) are added meanwhile, by `inside`.
  Result<void> describe(Connections* connections, const Inside& inside, image::Capsule& capsule);

 private:
  // In the order of their ids; stable addresses, since description adds more.
  std::map<std::uint32_t, SocketEntry> entries_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint32_t> ids_;  // By device and inode.
};

// A thread that was stopped in connect(2) would call it again. Where the connection stands
// meanwhile, the call has succeeded; on the target it would say that it is connected already.
void finish_connects(image::Capsule& capsule);

}  // namespace godwit::capture
