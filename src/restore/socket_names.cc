// A name is what was given to bind(2): a path that may have been relative to a directory that is
// gone, of a node that may have been renamed or removed since, and that several sockets may have
// been bound to one after the other. So a socket is bound by a thread whose root is an empty
// directory of ours, in which every path is free, and its node is then moved to where the image has
// it, or removed. Only the directory's file system matters: the capsule's own.
//
// Whoever connects needs no path at all: a link of /proc leads to a node, also to a removed one.

#include "restore/socket_names.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <thread>

#include "base/io.h"
#include "sys/unix_socket.h"

namespace godwit::restore {
namespace {

constexpr std::size_t path_at = offsetof(sockaddr_un, sun_path);

Result<void> bind_name(int socket, const std::string& name) {
  // What fills all of sun_path is told with a NUL that finds no room in it.
  const auto bytes = static_cast<socklen_t>(std::min(name.size(), sizeof(sockaddr_un)));
  if (::bind(socket, reinterpret_cast<const sockaddr*>(name.data()), bytes) != 0)
    return os_error("bind of a Unix socket");
  return {};
}

}  // namespace

bool is_path_name(const std::string& name) { return name.size() > path_at && name[path_at] != 0; }
bool is_abstract_name(const std::string& name) {
  return name.size() > path_at && name[path_at] == 0;
}

std::string path_name(const std::string& path) {
  const sa_family_t family = AF_UNIX;
  return std::string(reinterpret_cast<const char*>(&family), sizeof family) + path + '\0';
}

std::string path_of_name(const std::string& name) {
  const std::string path = name.substr(path_at);
  return path.substr(0, path.find('\0'));
}

Result<SocketNames::Scratch*> SocketNames::scratch_for(const std::string& path) {
  const std::string top = path.starts_with("/dev/shm/") ? "/dev/shm" : "/tmp";
  auto [known, added] = scratch_.try_emplace(top);
  if (!added) return &known->second;
  Scratch& scratch = known->second;
  UniqueFd parent = TRY(open_in_root(root_fd_, top, O_PATH | O_DIRECTORY));
  const std::string leaf = ".godwit-names-" + random_hex(8);
  if (::mkdirat(parent.get(), leaf.c_str(), 0700) != 0)
    return os_error(fmt::format("mkdirat({}/{})", top, leaf));
  scratch.path = fmt::format("{}/{}", top, leaf);
  scratch.dir = TRY(open_in_root(root_fd_, scratch.path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  return &scratch;
}

// On a thread, since a process has one root for all of its threads unless they part with it.
Result<SocketNames::Node> SocketNames::bind_in(Scratch& scratch, int socket,
                                               const std::string& name) {
  const std::string path = path_of_name(name);
  Node node;
  auto work = [&]() -> Result<void> {
    if (::unshare(CLONE_FS) != 0) return os_error("unshare(CLONE_FS)");
    if (::fchdir(scratch.dir.get()) != 0) return os_error("fchdir");
    if (::chroot(".") != 0) return os_error("chroot");
    for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
      if (::mkdir(path.substr(0, at).c_str(), 0700) == 0)
        scratch.made.push_back(path.substr(0, at));
      else if (errno != EEXIST)
        return os_error(fmt::format("mkdir({})", path.substr(0, at)));
    }
    const std::size_t slash = path.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    node.leaf = slash == std::string::npos ? path : path.substr(slash + 1);
    node.parent = TRY(open_fd(parent, O_PATH | O_DIRECTORY));
    return bind_name(socket, name);
  };
  Result<void> done;
  std::thread([&] { done = work(); }).join();
  TRY(std::move(done).with(path));
  return node;
}

Result<void> SocketNames::bind(int socket, const std::string& name) {
  if (!is_path_name(name)) return bind_name(socket, name);
  Node node = TRY(bind_in(*TRY(scratch_for("/tmp/")), socket, name));
  if (::unlinkat(node.parent.get(), node.leaf.c_str(), 0) != 0)
    return os_error(fmt::format("unlinkat({})", node.leaf));
  return {};
}

Result<void> SocketNames::bind_at(int socket, const std::string& name, const image::FileRef& node) {
  if (node.where() != image::FileRef::PRIVATE)
    return make_error(Errc::unsupported, "{} isn't a file of the capsule's own", node.path());
  Node made = TRY(bind_in(*TRY(scratch_for(node.path())), socket, name));
  return files_.replace_socket(node.private_file(), made.parent.get(), made.leaf);
}

Result<SocketNames::Address> SocketNames::address_of(int socket, const std::string& name) {
  Address address;
  address.bytes = name;
  if (!is_path_name(name)) return address;
  address.way = TRY(sys::node_of_unix_socket(socket));
  if (!address.way.valid()) return make_error(Errc::internal, "a bound socket has no node");
  address.bytes = path_name(own_fd_path(address.way.get()));
  return address;
}

Result<void> SocketNames::clear() {
  for (auto& [top, scratch] : scratch_) {
    for (auto path = scratch.made.rbegin(); path != scratch.made.rend(); ++path) {
      // As its root made them: "../a" is below it too.
      const std::size_t slash = path->rfind('/');
      const std::string above = slash == std::string::npos ? "/" : path->substr(0, slash + 1);
      UniqueFd parent = TRY(open_in_root(scratch.dir.get(), above, O_PATH | O_DIRECTORY));
      const std::string leaf = slash == std::string::npos ? *path : path->substr(slash + 1);
      if (::unlinkat(parent.get(), leaf.c_str(), AT_REMOVEDIR) != 0)
        return os_error(fmt::format("unlinkat({}{})", scratch.path, *path));
    }
    UniqueFd parent = TRY(open_in_root(root_fd_, top, O_PATH | O_DIRECTORY));
    const std::string leaf = scratch.path.substr(top.size() + 1);
    if (::unlinkat(parent.get(), leaf.c_str(), AT_REMOVEDIR) != 0)
      return os_error(fmt::format("unlinkat({})", scratch.path));
  }
  scratch_.clear();
  return {};
}

}  // namespace godwit::restore
