#include "daemon/config.h"

#include <arpa/inet.h>
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "base/io.h"
#include "sys/cpuid.h"

namespace godwit::daemon {
namespace {

// Takes keys out of a table; what remains at the end was not known.
class Reader {
 public:
  Reader(const toml::table& table, std::string where) : table_(table), where_(std::move(where)) {}

  template <typename T>
  void take(std::string_view key, T& out) {
    known_.push_back(key);
    const auto* node = table_.get(key);
    if (node == nullptr) return;
    if (auto value = node->value<T>()) {
      out = *value;
    } else if (!error_) {
      error_ = make_error(Errc::invalid, "{}{}: wrong type", where_, key);
    }
  }
  const toml::node* node(std::string_view key) {
    known_.push_back(key);
    return table_.get(key);
  }
  Result<void> finish() {
    if (error_) return std::move(*error_);
    for (const auto& [key, value] : table_) {
      if (std::find(known_.begin(), known_.end(), key.str()) == known_.end()) {
        return make_error(Errc::invalid, "{}{}: unknown key", where_, key.str());
      }
    }
    return {};
  }

 private:
  const toml::table& table_;
  std::string where_;
  std::vector<std::string_view> known_;
  std::optional<Error> error_;
};

Result<void> read_peers(const toml::node* node, std::vector<PeerConfig>& peers) {
  if (node == nullptr) return {};
  const auto* array = node->as_array();
  if (array == nullptr) return make_error(Errc::invalid, "peers: not an array of tables");
  for (const auto& element : *array) {
    const auto* table = element.as_table();
    if (table == nullptr) return make_error(Errc::invalid, "peers: not an array of tables");
    PeerConfig peer;
    Reader reader(*table, "peers.");
    reader.take("name", peer.name);
    reader.take("address", peer.address);
    TRY(reader.finish());
    if (peer.name.empty() || peer.address.find(':') == std::string::npos) {
      return make_error(Errc::invalid, "peers: name and address (HOST:PORT) are needed");
    }
    peers.push_back(std::move(peer));
  }
  return {};
}

Result<void> read_names(const toml::node* node, const char* key, std::vector<std::string>& names) {
  if (node == nullptr) return {};
  const auto* array = node->as_array();
  if (array == nullptr) return make_error(Errc::invalid, "{}: not an array", key);
  for (const auto& element : *array) {
    auto name = element.value<std::string>();
    if (!name) return make_error(Errc::invalid, "{}: not all are strings", key);
    names.push_back(*name);
  }
  return {};
}

Result<void> read_shared(const toml::node* node, std::vector<std::string>& shared) {
  if (node == nullptr) return {};
  const auto* array = node->as_array();
  if (array == nullptr) return make_error(Errc::invalid, "shared: not an array");
  for (const auto& element : *array) {
    auto path = element.value<std::string>();
    if (!path || !path->starts_with('/')) {
      return make_error(Errc::invalid, "shared: absolute paths are needed");
    }
    shared.push_back(*path);
  }
  return {};
}

Result<LogLevel> parse_level(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, LogLevel>, 4> levels{
      {{"debug", LogLevel::debug},
       {"info", LogLevel::info},
       {"warn", LogLevel::warn},
       {"error", LogLevel::error}}};
  for (const auto& [name, level] : levels) {
    if (name == text) return level;
  }
  return make_error(Errc::invalid, "log_level {}: one of debug, info, warn, error", text);
}

Result<Config> from_table(const toml::table& table) {
  Config config;
  Reader reader(table, "");
  reader.take("cluster", config.env.cluster);
  reader.take("node", config.env.node.value);
  reader.take("run_dir", config.env.run_dir);
  reader.take("state_dir", config.env.state_dir);
  reader.take("cgroup_base", config.env.cgroup_base);
  reader.take("bridge", config.env.bridge);
  reader.take("libexec_dir", config.env.libexec_dir);
  reader.take("socket", config.socket);
  reader.take("listen", config.listen);
  reader.take("capsule_network", config.capsule_network);
  reader.take("capsule_range", config.capsule_range);
  reader.take("cores", config.cores);
  reader.take("core_speed", config.core_speed);
  std::int64_t memory_bytes = 0;
  reader.take("memory_bytes", memory_bytes);
  reader.take("accepts", config.accepts);
  reader.take("worker_silence_ms", config.worker_silence_ms);
  std::string level = "info";
  reader.take("log_level", level);
  TRY(read_shared(reader.node("shared"), config.shared));
  TRY(read_names(reader.node("hidden_cpu_features"), "hidden_cpu_features",
                 config.hidden_cpu_features));
  TRY(sys::without_features(sys::cpu_features(), config.hidden_cpu_features)
          .with("hidden_cpu_features"));
  TRY(read_peers(reader.node("peers"), config.peers));
  if (const auto* tls = reader.node("tls")) {
    if (!tls->is_table()) return make_error(Errc::invalid, "tls: not a table");
    Reader files(*tls->as_table(), "tls.");
    files.take("ca", config.tls_ca);
    files.take("cert", config.tls_cert);
    files.take("key", config.tls_key);
    TRY(files.finish());
  }
  TRY(reader.finish());
  config.log_level = TRY(parse_level(level));
  if (memory_bytes < 0 || config.cores < 0 || config.core_speed <= 0) {
    return make_error(Errc::invalid, "memory_bytes, cores, core_speed: must not be negative");
  }
  if (config.worker_silence_ms < 2'000) {
    return make_error(Errc::invalid, "worker_silence_ms: at least 2000");
  }
  config.memory_bytes = static_cast<std::uint64_t>(memory_bytes);
  if (config.env.node.value.empty()) return make_error(Errc::invalid, "node: a name is needed");
  if (config.socket.empty()) config.socket = config.env.run_dir + "/godwitd.sock";
  if (!config.listen.empty() &&
      (config.tls_ca.empty() || config.tls_cert.empty() || config.tls_key.empty())) {
    return make_error(Errc::invalid, "listen: needs tls.ca, tls.cert and tls.key");
  }
  if (!config.peers.empty() && config.listen.empty()) {
    return make_error(Errc::invalid, "peers: need listen and tls");
  }
  if (!config.capsule_range.empty()) TRY(parse_range(config.capsule_range));
  if (!config.capsule_network.empty()) TRY(parse_range(config.capsule_network));
  return config;
}

}  // namespace

std::string Config::listen_host() const { return listen.substr(0, listen.rfind(':')); }

Result<Config> parse_config(const std::string& toml_text) {
  toml::table table;
  try {  // Debian builds the library with exceptions only.
    table = toml::parse(toml_text);
  } catch (const toml::parse_error& error) {
    return make_error(Errc::invalid, "line {}: {}", error.source().begin.line, error.description());
  }
  return from_table(table);
}

Result<Config> load_config(const std::string& path) {
  return parse_config(TRY(read_file(path))).with(path);
}

Result<AddressRange> parse_range(const std::string& text) {
  const auto slash = text.find('/');
  in_addr address{};
  std::uint32_t bits = 0;
  if (slash != std::string::npos &&
      inet_pton(AF_INET, text.substr(0, slash).c_str(), &address) == 1) {
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + slash + 1, end, bits);
    if (parsed.ec == std::errc() && parsed.ptr == end && bits >= 8 && bits <= 30) {
      const std::uint32_t mask = ~std::uint32_t{0} << (32 - bits);
      const std::uint32_t network = ntohl(address.s_addr) & mask;
      return AddressRange{network + 1, (network | ~mask) - 1, bits};
    }
  }
  return make_error(Errc::invalid, "{}: not an IPv4 range A.B.C.D/8..30", text);
}

std::string format_address(std::uint32_t address) {
  return fmt::format("{}.{}.{}.{}", address >> 24, address >> 16 & 255, address >> 8 & 255,
                     address & 255);
}

}  // namespace godwit::daemon
