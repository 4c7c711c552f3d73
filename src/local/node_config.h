// /etc/godwit/godwit.toml of a local node, as `local up` writes it and godwitd reads it:
//
//   cluster = "default"                    # as in NodeEnv
//   node = "n1"
//   run_dir = "/run/godwit"
//   state_dir = "/var/lib/godwit"
//   cgroup_base = "godwit-default/n1"
//   bridge = "godwit0"                     # exists already, the uplink is a port of it
//   libexec_dir = "/usr/libexec/godwit"
//   listen = "10.201.0.1:7717"             # mTLS for nodes
//   capsule_network = "10.201.0.0/16"      # flat: every capsule and node is on this link
//   capsule_range = "10.201.1.0/24"        # this node gives addresses to its capsules from here
//   shared = ["/srv/shared"]               # the same file system at the same path on every node
//   cores = 4                              # emulated; absent: no cap
//   core_speed = 0.5                       # of one core; --cpus K means K x this
//   memory_bytes = 4294967296              # absent: no limit
//   log_level = "info"
//
//   [tls]
//   ca = "/etc/godwit/ca.crt"
//   cert = "/etc/godwit/node.crt"          # CN and DNS name: the node's; IP: its address
//   key = "/etc/godwit/node.key"
//
//   [[peers]]                              # every other node
//   name = "n2"
//   address = "10.201.0.2:7717"
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace godwit::local {

inline constexpr int node_port = 7717;

struct NodeConfig {
  std::string cluster;
  std::string node;
  std::string cgroup_base;
  std::string libexec_dir;
  std::string address;
  std::string capsule_network;
  std::string capsule_range;
  std::vector<std::string> shared;
  int cores = 0;
  double core_speed = 1.0;
  std::uint64_t memory_bytes = 0;
  struct Peer {
    std::string name;
    std::string address;
  };
  std::vector<Peer> peers;
};

std::string to_toml(const NodeConfig& config);

}  // namespace godwit::local
