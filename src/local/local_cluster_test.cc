#include "local/local_cluster.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <set>
#include <thread>

#include "base/clock.h"
#include "local/testing/cluster_fixture.h"
#include "sys/namespaces.h"

namespace godwit::local {
namespace {

const NodeId n1{"n1"};
const NodeId n2{"n2"};

// A TCP connection from one node to another, made in `timeout_ms` or not.
bool connects(const NodeStatus& from, const NodeStatus& to, int timeout_ms) {
  Result<UniqueFd> from_net = sys::open_namespace(from.init_pid, "net");
  Result<UniqueFd> to_net = sys::open_namespace(to.init_pid, "net");
  if (!from_net.ok() || !to_net.ok()) return false;
  Result<UniqueFd> listener = sys::socket_in_netns(to_net->get(), AF_INET, SOCK_STREAM, 0);
  Result<UniqueFd> client =
      sys::socket_in_netns(from_net->get(), AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (!listener.ok() || !client.ok()) return false;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  ::inet_pton(AF_INET, to.address.c_str(), &address.sin_addr);
  socklen_t length = sizeof(address);
  if (::bind(listener->get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return false;
  if (::listen(listener->get(), 1) != 0) return false;
  if (::getsockname(listener->get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return false;
  (void)::connect(client->get(), reinterpret_cast<sockaddr*>(&address), length);
  pollfd writable{client->get(), POLLOUT, 0};
  int error = 0;
  socklen_t size = sizeof(error);
  return ::poll(&writable, 1, timeout_ms) == 1 &&
         ::getsockopt(client->get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}
constexpr int patience_ms = 30'000;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

TEST(LocalNames, OnlyShortPlainNamesAreAccepted) {
  for (const char* good : {"default", "a", "x-1", "a23456789012345678901234"})
    EXPECT_TRUE(check_cluster_name(good).ok()) << good;
  for (const char* bad :
       {"", "A", "1a", "-a", "a/b", "..", "a b", "a.b", "a234567890123456789012345"})
    EXPECT_FALSE(check_cluster_name(bad).ok()) << bad;
}

TEST(LocalNames, SizesAndRatesAreParsedWithTheirUnits) {
  EXPECT_EQ(*parse_bytes("4G"), 4ULL << 30);
  EXPECT_EQ(*parse_bytes("1.5GiB"), 3ULL << 29);
  EXPECT_EQ(*parse_bytes("4096"), 4096U);
  EXPECT_EQ(*parse_bits_per_s("1gbit"), 1'000'000'000U);
  EXPECT_EQ(*parse_bits_per_s("2.5mbit"), 2'500'000U);
  for (const char* bad : {"", "G", "4X", "-1G", "4 G", "1e30T", "nan"})
    EXPECT_FALSE(parse_bytes(bad).ok()) << bad;
  EXPECT_FALSE(parse_bits_per_s("1Gbit").ok());
}

TEST(LocalNames, WhatCannotBeIsRefusedBeforeAnythingIsMade) {
  if (::geteuid() != 0) GTEST_SKIP() << "others are refused for lack of rights";
  std::string name = unique_name();
  auto refused = [&](auto change) {
    UpOptions options = options_for(name, 3);
    change(options);
    return !local_up(options).ok();
  };
  EXPECT_TRUE(refused([](UpOptions& o) { o.nodes = 0; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.nodes = nodes_max + 1; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.speeds = {1, 1, 1, 1}; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.speeds = {2.0}; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.memory_bytes = 1; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.daemon_path = "/nowhere"; }));
  EXPECT_TRUE(refused([](UpOptions& o) { o.shared_dir = "/nowhere"; }));
  EXPECT_EQ(leftovers(name), "");
  EXPECT_EQ(local_status(name).error().code(), Errc::not_found);
  EXPECT_EQ(node_stop(name, n1).error().code(), Errc::not_found);
  EXPECT_TRUE(local_down(name).ok()) << "down of nothing is fine";
  EXPECT_EQ(leftovers(name), "");
}

TEST_F(LocalClusterTest, NodesDifferAsMachinesDo) {
  Result<ClusterStatus> up = local_up(options_for(new_name(), 3));
  ASSERT_OK(up);
  EXPECT_TRUE(up->complete);
  std::set<std::string> boot_ids, machine_ids, devices;
  std::vector<double> clocks;
  for (const NodeStatus& node : up->nodes) {
    EXPECT_TRUE(node.running && node.daemon_running && node.daemon_answers && node.link_up)
        << node.node.value;
    EXPECT_EQ(in_node(node, "hostname").text, node.node.value);
    EXPECT_EQ(in_node(node, "cat /proc/1/comm").text, "godwit-node");
    boot_ids.insert(in_node(node, "cat /proc/sys/kernel/random/boot_id").text);
    machine_ids.insert(in_node(node, "cat /etc/machine-id").text);
    devices.insert(in_node(node, "stat -c %d /bin/sh").text);
    clocks.push_back(std::stod(in_node(node, "cut -d. -f1 /proc/uptime").text));
    EXPECT_EQ(in_node(node, "stat -c %a /etc/godwit/node.key").text, "600");
    EXPECT_EQ(in_node(node, "ls /sys/class/net | tr \"\\n\" \" \"").text, "eth0 godwit0 lo ");
  }
  EXPECT_EQ(boot_ids.size(), 3U);
  EXPECT_EQ(machine_ids.size(), 3U);
  EXPECT_EQ(devices.size(), 3U);
  EXPECT_EQ(boot_ids.count(first_line("/proc/sys/kernel/random/boot_id")), 0U);
  for (std::size_t i = 1; i < clocks.size(); ++i) EXPECT_GT(clocks[i] - clocks[i - 1], 3600);
  for (const NodeStatus& from : up->nodes)
    for (const NodeStatus& to : up->nodes)
      EXPECT_TRUE(connects(from, to, patience_ms)) << from.node.value << " to " << to.node.value;
}

TEST_F(LocalClusterTest, NodesShareTheSharedDirectoryAndNothingElse) {
  std::string name = new_name();
  Result<ClusterStatus> up = local_up(options_for(name, 2));
  ASSERT_OK(up);
  const NodeStatus& a = up->nodes[0];
  const NodeStatus& b = up->nodes[1];
  for (const char* place :
       {"/tmp", "/run", "/run/godwit", "/dev/shm", "/dev", "/root", "/var/lib/godwit", "/usr"}) {
    std::string path = std::string(place) + "/" + name;
    EXPECT_EQ(in_node(a, "echo hello > " + path + " && cat " + path).text, "hello");
    EXPECT_NE(in_node(b, "test -e " + path).status, 0) << path;
    EXPECT_FALSE(std::filesystem::exists(path)) << "on the machine: " << path;
  }
  EXPECT_EQ(in_node(a, "echo hello > " + up->shared_dir + "/file").status, 0);
  EXPECT_EQ(in_node(b, "cat " + up->shared_dir + "/file").text, "hello");
  std::string identity = "stat -c %d:%i " + up->shared_dir + "/file";
  EXPECT_EQ(in_node(a, identity).text, in_node(b, identity).text) << "the same file system";
}

TEST_F(LocalClusterTest, AUsersSharedDirectoryIsUsedAndSurvives) {
  std::string directory = std::filesystem::temp_directory_path() / unique_name();
  std::filesystem::create_directories(directory);
  UpOptions options = options_for(new_name(), 1);
  options.shared_dir = directory;
  Result<ClusterStatus> up = local_up(options);
  ASSERT_OK(up);
  EXPECT_EQ(up->shared_dir, directory);
  EXPECT_EQ(in_node(up->nodes[0], "echo kept > " + directory + "/file").status, 0);
  EXPECT_OK(local_down(options.name));
  EXPECT_EQ(first_line(directory + "/file"), "kept");
  std::filesystem::remove_all(directory);
}

TEST_F(LocalClusterTest, ProgramsBelowTmpRunThoughNodesHaveTheirOwnTmp) {
  std::string directory = std::filesystem::temp_directory_path() / unique_name();
  std::filesystem::create_directories(directory);
  std::filesystem::copy(own_directory() + "/local_test_daemon", directory + "/godwitd");
  UpOptions options = options_for(new_name(), 1);
  options.daemon_path = directory + "/godwitd";
  Result<ClusterStatus> up = local_up(options);
  EXPECT_OK(up);
  EXPECT_OK(local_down(options.name));
  EXPECT_TRUE(std::filesystem::exists(directory + "/godwitd"));
  std::filesystem::remove_all(directory);
}

TEST_F(LocalClusterTest, TwoClustersRunSideBySide) {
  std::string first = new_name();
  std::string second = new_name();
  ASSERT_OK(local_up(options_for(first, 2)));
  ASSERT_OK(local_up(options_for(second, 2)));
  EXPECT_NE(status(first).network, status(second).network);
  ASSERT_OK(local_down(first));
  EXPECT_EQ(leftovers(first), "");
  for (const NodeStatus& node : status(second).nodes)
    EXPECT_TRUE(node.daemon_answers && node.link_up);
  Result<std::vector<std::string>> names = local_list();
  ASSERT_OK(names);
  EXPECT_EQ(std::count(names->begin(), names->end(), second), 1);
  EXPECT_EQ(std::count(names->begin(), names->end(), first), 0);
}

TEST_F(LocalClusterTest, ARunningClusterIsNotStartedTwice) {
  std::string name = new_name();
  ASSERT_OK(local_up(options_for(name, 1)));
  pid_t init = status(name).nodes[0].init_pid;
  Result<ClusterStatus> again = local_up(options_for(name, 1));
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code(), Errc::refused);
  EXPECT_EQ(status(name).nodes[0].init_pid, init) << "untouched";
}

TEST_F(LocalClusterTest, OfTwoThatStartTheSameClusterOneWins) {
  std::string name = new_name();
  Result<ClusterStatus> results[2] = {Error(Errc::internal, ""), Error(Errc::internal, "")};
  std::thread other([&] { results[1] = local_up(options_for(name, 2)); });
  results[0] = local_up(options_for(name, 2));
  other.join();
  EXPECT_NE(results[0].ok(), results[1].ok());
  for (const NodeStatus& node : status(name).nodes) EXPECT_TRUE(node.daemon_answers);
}

TEST_F(LocalClusterTest, ADaemonThatEndsFailsTheStartWithItsLogAndLeavesNothing) {
  std::string name = new_name();
  UpOptions options = options_for(name, 2);
  options.daemon_path = "/bin/false";
  Result<ClusterStatus> up = local_up(options);
  ASSERT_FALSE(up.ok());
  EXPECT_NE(up.error().what().find("exited with status 1"), std::string::npos) << up.error().what();
  EXPECT_EQ(leftovers(name), "");
}

TEST_F(LocalClusterTest, LimitsOfCoresAndMemoryAreThoseOfTheNodesCgroup) {
  UpOptions options = options_for(new_name(), 2);
  options.cores = 4;
  options.speeds = {1.0, 0.25};
  options.memory_bytes = 256 << 20;
  Result<ClusterStatus> up = local_up(options);
  if (!up.ok() && up.error().code() == Errc::unsupported) GTEST_SKIP() << up.error().what();
  ASSERT_OK(up);
  for (const NodeStatus& node : up->nodes) {
    Result<sys::CgroupGroup> group = sys::CgroupGroup::open(node.cgroup);
    ASSERT_OK(group);
    std::string quota, memory;
    for (const auto& [hierarchy, directory] : group->places()) {
      for (const char* file : {"/cpu.max", "/cpu.cfs_quota_us"})
        if (std::filesystem::exists(directory + file)) quota = first_line(directory + file);
      for (const char* file : {"/memory.max", "/memory.limit_in_bytes"})
        if (std::filesystem::exists(directory + file)) memory = first_line(directory + file);
    }
    EXPECT_EQ(std::stol(quota), node.node == n1 ? 400'000 : 100'000);
    EXPECT_EQ(memory, std::to_string(256 << 20));
    EXPECT_EQ(in_node(node, "cat /proc/" + in_node(node, "cat /run/godwit/godwitd.pid").text +
                                "/cgroup | grep -c " + node.cgroup)
                  .status,
              0)
        << "godwitd is in it";
  }
}

TEST_F(LocalClusterTest, BandwidthIsLimitedInBothDirectionsAndCanBeChanged) {
  UpOptions options = options_for(new_name(), 2);
  options.bandwidth_bits_per_s = 80'000'000;  // 10 MB/s; the bucket holds 256 KiB.
  Result<ClusterStatus> up = local_up(options);
  ASSERT_OK(up);
  for (const NodeStatus& node : up->nodes)
    EXPECT_NE(in_node(node, "tc qdisc show dev eth0").text.find("tbf"), std::string::npos);
  // Only a least time is asserted: no load of the machine can break that.
  std::string shared = up->shared_dir;
  std::ofstream(shared + "/send.py") << "import socket,sys,time\n"
                                        "s=socket.create_connection((sys.argv[1],7000))\n"
                                        "s.sendall(bytes(4000000)); s.shutdown(1); s.recv(1)\n";
  std::ofstream(shared + "/receive.py")
      << "import socket,time\n"
         "l=socket.create_server((\"\",7000)); open(\""
      << shared
      << "/ready\",\"w\")\n"
         "c,_=l.accept(); t=time.monotonic(); n=0\n"
         "while True:\n  d=c.recv(1<<20)\n  n+=len(d)\n  if not d: break\n"
         "print(n, time.monotonic()-t)\n";
  Output received;
  std::thread receiver(
      [&] { received = in_node(up->nodes[1], "python3 " + shared + "/receive.py"); });
  std::int64_t deadline_us = monotonic_us() + patience_ms * 1000LL;
  while (!std::filesystem::exists(shared + "/ready") && monotonic_us() < deadline_us)
    ::sched_yield();
  in_node(up->nodes[0], "python3 " + shared + "/send.py " + up->nodes[1].address);
  receiver.join();
  long bytes = 0;
  double seconds = 0;
  ASSERT_EQ(std::sscanf(received.text.c_str(), "%ld %lf", &bytes, &seconds), 2) << received.text;
  EXPECT_EQ(bytes, 4'000'000);
  EXPECT_GT(seconds, 0.25);
  ASSERT_OK(bandwidth_set(options.name, 0));
  for (const NodeStatus& node : up->nodes)
    EXPECT_EQ(in_node(node, "tc qdisc show dev eth0").text.find("tbf"), std::string::npos);
}

TEST_F(LocalClusterTest, PowerOffKillsEverythingAndTheDiskOutlivesIt) {
  std::string name = new_name();
  ASSERT_OK(local_up(options_for(name, 2)));
  NodeStatus before = status(name).nodes[0];
  std::string boot_id = in_node(before, "cat /proc/sys/kernel/random/boot_id").text;
  in_node(
      before,
      "echo disk > /var/lib/godwit/x; echo disk > /root/x; echo lost > /tmp/x; echo lost > /run/x; "
      "echo lost > /run/godwit/x");
  for (int round = 0; round < 5; ++round) {
    ASSERT_OK(node_stop(name, n1));
    NodeStatus off = status(name).nodes[0];
    EXPECT_FALSE(off.running || off.daemon_running || off.daemon_answers);
    EXPECT_TRUE(status(name).nodes[1].daemon_answers) << "the other node runs on";
    EXPECT_OK(node_stop(name, n1));
    ASSERT_OK(node_start(name, n1));
    EXPECT_EQ(node_start(name, n1).error().code(), Errc::refused);
    NodeStatus on = status(name).nodes[0];
    EXPECT_TRUE(on.daemon_answers && on.link_up);
    EXPECT_TRUE(connects(on, status(name).nodes[1], patience_ms));
  }
  NodeStatus after = status(name).nodes[0];
  EXPECT_NE(in_node(after, "cat /proc/sys/kernel/random/boot_id").text, boot_id);
  EXPECT_EQ(in_node(after, "cat /var/lib/godwit/x /root/x").text, "disk\ndisk");
  EXPECT_EQ(in_node(after, "ls /tmp/x /run/x /run/godwit/x 2>/dev/null").text, "");
  double uptime_s = std::stod(in_node(after, "cut -d. -f1 /proc/uptime").text);
  EXPECT_LT(uptime_s, 2.2 * 3600) << "the clock began anew";
}

TEST_F(LocalClusterTest, ADeadDaemonStaysDeadUntilItIsStarted) {
  std::string name = new_name();
  ASSERT_OK(local_up(options_for(name, 1)));
  NodeStatus before = status(name).nodes[0];
  EXPECT_EQ(daemon_start(name, n1).error().code(), Errc::refused);
  ASSERT_OK(daemon_kill(name, n1));
  NodeStatus dead = status(name).nodes[0];
  EXPECT_TRUE(dead.running);
  EXPECT_FALSE(dead.daemon_running || dead.daemon_answers);
  EXPECT_EQ(daemon_kill(name, n1).error().code(), Errc::not_found);
  ASSERT_OK(daemon_start(name, n1));
  NodeStatus after = status(name).nodes[0];
  EXPECT_TRUE(after.daemon_answers);
  EXPECT_EQ(after.init_pid, before.init_pid);
  EXPECT_NE(after.daemon_pid, before.daemon_pid);
}

TEST_F(LocalClusterTest, ACutLinkDropsSilentlyBothWaysAndHeals) {
  std::string name = new_name();
  ASSERT_OK(local_up(options_for(name, 3)));
  std::vector<NodeStatus> nodes = status(name).nodes;
  ASSERT_TRUE(connects(nodes[0], nodes[1], patience_ms));
  ASSERT_OK(link_set(name, n2, false));
  EXPECT_FALSE(status(name).nodes[1].link_up);
  EXPECT_FALSE(connects(nodes[0], nodes[1], 300));
  EXPECT_FALSE(connects(nodes[1], nodes[2], 300));
  EXPECT_TRUE(connects(nodes[0], nodes[2], patience_ms)) << "others are not touched";
  EXPECT_EQ(in_node(nodes[1], "cat /sys/class/net/eth0/carrier").text, "1")
      << "the node must not notice";
  ASSERT_OK(link_set(name, n2, true));
  EXPECT_TRUE(connects(nodes[0], nodes[1], patience_ms));
}

TEST_F(LocalClusterTest, DownRemovesWhatIsFrozenStoppedOrDeepInCgroups) {
  std::string name = new_name();
  ASSERT_OK(local_up(options_for(name, 1)));
  NodeStatus node = status(name).nodes[0];
  Result<sys::CgroupGroup> tree = sys::CgroupGroup::create(node.cgroup + "/0123456789abcdef/tree");
  ASSERT_OK(tree);
  pid_t pid = ::fork();
  if (pid == 0) {
    while (true) ::pause();
  }
  ASSERT_OK(tree->add(pid));
  ASSERT_OK(tree->freeze());
  ::kill(node.daemon_pid, SIGSTOP);
  EXPECT_OK(local_down(name));
  int how = 0;
  ASSERT_EQ(::waitpid(pid, &how, 0), pid);
  EXPECT_TRUE(WIFSIGNALED(how));
  EXPECT_EQ(leftovers(name), "");
}

// `up` dies at a different instant each time, until it gets through in time: `down` must find
// everything.
TEST_F(LocalClusterTest, WhateverMomentUpIsKilledAtDownLeavesNothing) {
  std::string name = new_name();
  int completed = 0;
  int killed = 0;
  for (int step = 0; step < 200 && completed < 3; ++step) {
    pid_t pid = ::fork();
    if (pid == 0) {
      Result<ClusterStatus> up = local_up(options_for(name, 3));
      ::_exit(up.ok() ? 0 : 1);
    }
    // A ladder of instants, cut short when it got through.
    UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    pollfd ended{process.get(), POLLIN, 0};
    ::poll(&ended, 1, 2 * step);
    ::kill(pid, SIGKILL);
    int how = 0;
    ASSERT_EQ(::waitpid(pid, &how, 0), pid);
    if (WIFEXITED(how)) {
      ++completed;
      EXPECT_EQ(WEXITSTATUS(how), 0);
    } else {
      ++killed;
    }
    ASSERT_OK(local_down(name));
    ASSERT_EQ(leftovers(name), "") << "killed after " << 2 * step << " ms";
  }
  EXPECT_GT(killed, 3);
}

TEST_F(LocalClusterTest, UpAfterAKilledUpStartsAfresh) {
  std::string name = new_name();
  for (int step = 0; step < 5; ++step) {
    pid_t pid = ::fork();
    if (pid == 0) {
      // Killed by itself at its step-th line of progress.
      UpOptions options = options_for(name, 2);
      int lines = 0;
      options.progress = [&](const std::string&) {
        if (lines++ == step) ::kill(::getpid(), SIGKILL);
      };
      (void)local_up(options);
      ::_exit(0);
    }
    int how = 0;
    ASSERT_EQ(::waitpid(pid, &how, 0), pid);
    ASSERT_TRUE(WIFSIGNALED(how)) << "step " << step;
    Result<ClusterStatus> up = local_up(options_for(name, 2));
    ASSERT_OK(up);
    for (const NodeStatus& node : up->nodes) EXPECT_TRUE(node.daemon_answers);
    ASSERT_OK(local_down(name));
  }
}

TEST_F(LocalClusterTest, DownWorksAfterTheDeathOfAnyPart) {
  for (const char* victim : {"switch", "init", "daemon", "state"}) {
    std::string name = new_name();
    ASSERT_OK(local_up(options_for(name, 2)));
    NodeStatus node = status(name).nodes[0];
    if (std::string(victim) == "switch") {
      Result<sys::CgroupGroup> group = sys::CgroupGroup::open("godwit-" + name + "/switch");
      ASSERT_OK(group);
      ASSERT_OK(group->kill_all());
      EXPECT_FALSE(status(name).nodes[1].link_up);
    }
    if (std::string(victim) == "init") ::kill(node.init_pid, SIGKILL);
    if (std::string(victim) == "daemon") ::kill(node.daemon_pid, SIGKILL);
    if (std::string(victim) == "state")
      std::filesystem::remove("/run/godwit/local/" + name + "/cluster.json");
    EXPECT_OK(local_down(name));
    EXPECT_EQ(leftovers(name), "") << "after the death of " << victim;
  }
}

}  // namespace
}  // namespace godwit::local
