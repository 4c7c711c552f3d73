// Names of Unix sockets, as they were given to bind(2), wherever their nodes are by now.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "image/image.pb.h"
#include "restore/private_files.h"

namespace godwit::restore {

class SocketNames {
 public:
  SocketNames(int root_fd, PrivateFiles& files) : root_fd_(root_fd), files_(files) {}
  SocketNames(const SocketNames&) = delete;
  SocketNames& operator=(const SocketNames&) = delete;
  ~SocketNames() { (void)clear(); }

  // `name`: a sockaddr_un. Of a path no node is left.
  Result<void> bind(int socket, const std::string& name);
  // The node takes the place of the one that the image has there.
  Result<void> bind_at(int socket, const std::string& name, const image::FileRef& node);
  // Connects to (or names as receiver) a bound socket of ours: an address that works in this
  // process while `way` is open.
  struct Address {
    std::string bytes;
    UniqueFd way;
  };
  static Result<Address> address_of(int socket, const std::string& name);

  // Removes what was needed meanwhile.
  Result<void> clear();

 private:
  struct Node {
    UniqueFd parent;
    std::string leaf;
  };
  struct Scratch {
    UniqueFd dir;
    std::string path;
    std::vector<std::string> made;  // Directories below it, parents first.
  };
  Result<Scratch*> scratch_for(const std::string& path);
  Result<Node> bind_in(Scratch& scratch, int socket, const std::string& name);

  int root_fd_;
  PrivateFiles& files_;
  std::map<std::string, Scratch> scratch_;  // By the directory that travels.
};

bool is_path_name(const std::string& name);
bool is_abstract_name(const std::string& name);

// A sockaddr_un of a path, and back.
std::string path_name(const std::string& path);
std::string path_of_name(const std::string& name);

}  // namespace godwit::restore
