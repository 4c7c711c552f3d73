// Unix sockets of a tree: made, connected, named and filled by us and by skeletons, their
// descriptors given to whoever had them. How, and what of it can't be told from outside, is at the
// top of unix_sockets.cc.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/unique_fd.h"
#include "image/image.pb.h"
#include "restore/socket_makers.h"
#include "restore/socket_names.h"
#include "sys/socket_options.h"

namespace godwit::restore {

// Open files by OpenFile id: descriptors of ours.
using OpenedFiles = std::map<std::uint32_t, UniqueFd>;

class UnixSockets {
 public:
  // `netns`: the capsule's, borrowed as is the image.
  UnixSockets(int root_fd, int netns, PrivateFiles& files, SocketMakers& makers,
              const image::Capsule& capsule);

  // All of them, connected where that takes two ends.
  Result<void> make_all();
  Result<UniqueFd> open(std::uint32_t id) const;
  // Everything else. Preconditions: `opened` is complete.
  Result<void> finish_all(const OpenedFiles& opened, Notes& notes);

 private:
  struct Entry {
    const image::Socket* image = nullptr;
    UniqueFd fd;
    UniqueFd ghost;          // The other end of one whose peer is no more, until it goes too.
    std::uint32_t mate = 0;  // Of datagrams: the other end by socketpair(2).
    bool named = false;
    bool connected = false;
  };
  // An end of a connection that is to be made.
  struct End {
    Entry* entry;
    bool is_ghost;
    UniqueFd& fd() const { return is_ghost ? entry->ghost : entry->fd; }
    const std::string& name() const;
    const image::PeerCredentials& credentials() const;
    bool must_be_accepted() const;
  };
  struct Ends {
    End first, second;
  };
  enum class When { first, last };

  Result<void> make_connections();
  Result<void> make_pairs(std::span<const Ends> all);
  Result<void> make_accepted(std::span<const Ends> all);
  Result<void> make_plain();
  Result<void> part_mates();
  Result<void> name_ghost(const End& end);
  When when_named(const image::Socket& socket) const;
  When when_filled(const image::Socket& socket) const;
  Result<void> name_all(When when);
  Result<void> listen_all();
  Result<void> wait_in_backlogs();
  image::PeerCredentials holder_of(const image::Socket& socket) const;

  Result<void> fill_stream(Entry& entry, const OpenedFiles& opened);
  Result<void> fill_datagrams(Entry& entry, const OpenedFiles& opened, Notes& notes);
  Result<void> connect_datagrams(Entry& entry, Notes& notes);
  Result<int> sender_of(const Entry& entry, const image::Message& message, UniqueFd& made);
  Result<UniqueFd> stranger(int type, const std::string& name);
  Result<void> let_ghost_go(Entry& entry, Notes& notes);
  Result<void> finish_one(Entry& entry);
  Result<void> set_options(const Entry& entry);

  int root_fd_, netns_;
  SocketNames names_;
  SocketMakers& makers_;
  const image::Capsule& capsule_;
  std::map<std::uint32_t, Entry> entries_;
  std::map<int, std::vector<sys::SocketOption>> fresh_options_;  // Of a new socket, by type.
};

}  // namespace godwit::restore
