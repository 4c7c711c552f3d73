#include "daemon/config.h"

#include <gtest/gtest.h>

namespace godwit::daemon {
namespace {

constexpr const char* whole = R"(
cluster = "c"
node = "n1"
run_dir = "/r"
state_dir = "/s"
cgroup_base = "godwit-c/n1"
listen = "10.201.0.1:7717"
capsule_network = "10.201.0.0/16"
capsule_range = "10.201.1.0/24"
shared = ["/srv/shared"]
cores = 4
core_speed = 0.5
memory_bytes = 4294967296
log_level = "warn"
hidden_cpu_features = ["sse4_2"]
worker_silence_ms = 5000
[tls]
ca = "/ca"
cert = "/cert"
key = "/key"
[[peers]]
name = "n2"
address = "10.201.0.2:7717"
)";

TEST(Config, ReadsEveryKeyThatALocalNodeIsTold) {
  auto config = parse_config(whole);
  ASSERT_TRUE(config.ok()) << config.error().what();
  EXPECT_EQ(config->env.node.value, "n1");
  EXPECT_EQ(config->env.run_dir, "/r");
  EXPECT_EQ(config->socket, "/r/godwitd.sock");
  EXPECT_EQ(config->listen_host(), "10.201.0.1");
  EXPECT_EQ(config->cores, 4);
  EXPECT_EQ(config->core_speed, 0.5);
  EXPECT_EQ(config->hidden_cpu_features, std::vector<std::string>{"sse4_2"});
  EXPECT_EQ(config->worker_silence_ms, 5000);
  EXPECT_EQ(config->memory_bytes, 4294967296u);
  EXPECT_EQ(config->log_level, LogLevel::warn);
  ASSERT_EQ(config->peers.size(), 1u);
  EXPECT_EQ(config->peers[0].name, "n2");
  EXPECT_EQ(config->shared, std::vector<std::string>{"/srv/shared"});
}

TEST(Config, RefusesWhatItDoesNotKnowOrUnderstand) {
  for (const char* bad :
       {"node = 'n1'\nmemory_byte = 5", "node = 'n1'\ncores = 'four'", "cluster = 'c'",
        "node = 'n1'\nlisten = '1.2.3.4:5'", "node = 'n1'\n[tls]\ncert_file = '/x'",
        "node = 'n1'\nshared = ['x']", "node = 'n1'\nlog_level = 'loud'",
        "node = 'n1'\nmemory_bytes = -1", "node = 'n1'\ncapsule_range = '10.0.0.0'", "node = ["}) {
    auto config = parse_config(bad);
    ASSERT_FALSE(config.ok()) << bad;
    EXPECT_EQ(config.error().code(), Errc::invalid) << bad;
  }
}

TEST(AddressRange, LeavesOutNetworkAndBroadcast) {
  auto range = parse_range("10.201.1.0/24");
  ASSERT_TRUE(range.ok());
  EXPECT_EQ(format_address(range->first), "10.201.1.1");
  EXPECT_EQ(format_address(range->last), "10.201.1.254");
  EXPECT_EQ(range->prefix_len, 24u);
  for (const char* bad : {"10.0.0.0/31", "10.0.0/24", "10.0.0.0/24x", "/24", "", "10.0.0.0/7"}) {
    EXPECT_FALSE(parse_range(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace godwit::daemon
