// What a node is told about itself and its cluster: /etc/godwit/godwit.toml.
//
//   cluster = "default"
//   node = "n1"
//   run_dir = "/run/godwit"                # and the other fields of NodeEnv
//   listen = "10.201.0.1:7717"             # mTLS for nodes; absent: a node alone
//   socket = "/run/godwit/godwitd.sock"    # absent: RUN_DIR/godwitd.sock
//   capsule_network = "10.201.0.0/16"      # prefix length of capsules' addresses
//   capsule_range = "10.201.1.0/24"        # this node gives addresses to its capsules from here
//   shared = ["/srv/shared"]               # the same files at the same path on every node
//   cores = 4                              # emulated; absent: the machine's
//   core_speed = 0.5                       # of one core; `--cpus K` means K times this
//   memory_bytes = 4294967296              # absent: the machine's
//   accepts = true                         # false: drained, takes no capsules
//   hidden_cpu_features = ["avx512f"]      # not offered to capsules: a baseline, if all nodes say
//   so worker_silence_ms = 60000              # a worker that gives no sign of life is killed then
//   log_level = "info"
//   [tls]  ca, cert, key: files
//   [[peers]]  name = "n2", address = "10.201.0.2:7717"
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/node_env.h"
#include "base/result.h"

namespace godwit::daemon {

struct PeerConfig {
  std::string name;
  std::string address;  // HOST:PORT
};

struct Config {
  NodeEnv env;
  std::string socket;
  std::string listen;
  std::string capsule_network;
  std::string capsule_range;
  std::vector<std::string> shared;
  double cores = 0;  // 0: the machine's.
  double core_speed = 1.0;
  std::uint64_t memory_bytes = 0;
  bool accepts = true;
  // Not offered to capsules, by their names in `godwit doctor`. The same list on all nodes is a
  // baseline: `run --cpu-baseline` hides them from the C library, and records that they weren't
  // seen.
  std::vector<std::string> hidden_cpu_features;
  LogLevel log_level = LogLevel::info;
  // A worker that gives no sign of life for so long is taken for dead, killed, and its records
  // decide. It reports twice a second, from a thread that does nothing else.
  std::int64_t worker_silence_ms = 60'000;
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::vector<PeerConfig> peers;

  std::string listen_host() const;  // Without the port.
};

// Unknown keys are errors: a misspelt limit must not be no limit.
Result<Config> parse_config(const std::string& toml_text);
Result<Config> load_config(const std::string& path);

// An IPv4 range "A.B.C.D/LEN" as numbers in host order; without network and broadcast address.
struct AddressRange {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  std::uint32_t prefix_len = 0;
};
Result<AddressRange> parse_range(const std::string& text);
std::string format_address(std::uint32_t address);

}  // namespace godwit::daemon
