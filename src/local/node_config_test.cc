#include "local/node_config.h"

#include <gtest/gtest.h>

namespace godwit::local {
namespace {

TEST(NodeConfig, IsWrittenAsDocumented) {
  NodeConfig config;
  config.cluster = "c";
  config.node = "n1";
  config.cgroup_base = "godwit-c/n1";
  config.libexec_dir = "/odd \"path\\";
  config.address = "10.64.0.1";
  config.capsule_network = "10.64.0.0/16";
  config.capsule_range = "10.64.1.0/24";
  config.shared = {"/a", "/b"};
  config.cores = 4;
  config.core_speed = 0.5;
  config.memory_bytes = 1 << 20;
  config.peers = {{"n2", "10.64.0.2:7717"}};
  EXPECT_EQ(to_toml(config), R"(# Written by `godwit local up`; read by godwitd.
cluster = "c"
node = "n1"
run_dir = "/run/godwit"
state_dir = "/var/lib/godwit"
cgroup_base = "godwit-c/n1"
bridge = "godwit0"
libexec_dir = "/odd \"path\\"
listen = "10.64.0.1:7717"
capsule_network = "10.64.0.0/16"
capsule_range = "10.64.1.0/24"
shared = ["/a", "/b"]
cores = 4
core_speed = 0.5000
memory_bytes = 1048576
log_level = "info"

[tls]
ca = "/etc/godwit/ca.crt"
cert = "/etc/godwit/node.crt"
key = "/etc/godwit/node.key"

[[peers]]
name = "n2"
address = "10.64.0.2:7717"
)");
}

}  // namespace
}  // namespace godwit::local
