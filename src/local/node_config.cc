#include "local/node_config.h"

#include <fmt/format.h>

namespace godwit::local {
namespace {

// A TOML basic string.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string quoted_list(const std::vector<std::string>& items) {
  std::string out = "[";
  for (const std::string& item : items) {
    if (out.size() > 1) out += ", ";
    out += quoted(item);
  }
  return out + "]";
}

}  // namespace

std::string to_toml(const NodeConfig& config) {
  std::string out = "# Written by `godwit local up`; read by godwitd.\n";
  auto text = [&](const char* key, const std::string& value) {
    out += fmt::format("{} = {}\n", key, quoted(value));
  };
  text("cluster", config.cluster);
  text("node", config.node);
  text("run_dir", "/run/godwit");
  text("state_dir", "/var/lib/godwit");
  text("cgroup_base", config.cgroup_base);
  text("bridge", "godwit0");
  text("libexec_dir", config.libexec_dir);
  text("listen", fmt::format("{}:{}", config.address, node_port));
  text("capsule_network", config.capsule_network);
  text("capsule_range", config.capsule_range);
  out += fmt::format("shared = {}\n", quoted_list(config.shared));
  if (config.cores > 0) out += fmt::format("cores = {}\n", config.cores);
  out += fmt::format("core_speed = {:.4f}\n", config.core_speed);
  if (config.memory_bytes > 0) out += fmt::format("memory_bytes = {}\n", config.memory_bytes);
  text("log_level", "info");
  out += "\n[tls]\n";
  text("ca", "/etc/godwit/ca.crt");
  text("cert", "/etc/godwit/node.crt");
  text("key", "/etc/godwit/node.key");
  for (const NodeConfig::Peer& peer : config.peers) {
    out += "\n[[peers]]\n";
    text("name", peer.name);
    text("address", peer.address);
  }
  return out;
}

}  // namespace godwit::local
