// A node for tests: directories, control groups and a network namespace of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "capsule/shell.h"
#include "sys/cgroup.h"
#include "sys/netlink.h"

namespace godwit::capsule {

// GoogleTest's ASSERT for Results, with the error's text.
#define ASSERT_OK(expr)                                        \
  do {                                                         \
    auto&& assert_ok_ = (expr);                                \
    ASSERT_TRUE(assert_ok_.ok()) << assert_ok_.error().what(); \
  } while (false)

// Waits for a condition that must come, however loaded the machine is.
inline bool eventually(const std::function<bool()>& condition) {
  std::int64_t deadline_us = monotonic_us() + 60'000'000;
  while (!condition()) {
    if (monotonic_us() > deadline_us) return false;
    std::this_thread::yield();
  }
  return true;
}

class TestNode : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: namespaces and control groups";
    // The whole test process moves: its shells' links and bridges never touch the machine's.
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0) << "unshare(CLONE_NEWNET): " << std::strerror(errno);
    std::string unique = fmt::format("{}-{}", ::getpid(), random_hex(3));
    root_ = fmt::format("/tmp/godwit-test-{}", unique);
    env_.node = NodeId{"n1"};
    env_.run_dir = root_ + "/run";
    env_.state_dir = root_ + "/state";
    env_.cgroup_base = fmt::format("godwit-test-{}", unique);
    env_.libexec_dir = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    ASSERT_TRUE(std::filesystem::create_directories(env_.run_dir));
    ASSERT_TRUE(std::filesystem::create_directories(env_.state_dir));
  }

  void TearDown() override {
    if (root_.empty()) return;
    EXPECT_TRUE(sys::CgroupGroup::remove(env_.cgroup_base).ok());
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }

  void make_bridge() {
    sys::Netlink netlink = std::move(sys::Netlink::open()).value();
    env_.bridge = "gwtest0";
    ASSERT_OK(netlink.add_bridge(env_.bridge));
    ASSERT_OK(netlink.add_address(env_.bridge,
                                  std::move(sys::parse_ipv4_prefix("10.77.0.1/24")).value()));
    ASSERT_OK(netlink.set_up(env_.bridge, true));
  }

  image::CapsuleSpec spec(const std::string& name) {
    image::CapsuleSpec out;
    out.set_id(random_hex(8));
    out.set_name(name);
    return out;
  }

  Shell make_shell(const image::CapsuleSpec& spec) {
    Result<Shell> shell = Shell::create(env_, spec);
    if (!shell.ok()) ADD_FAILURE() << shell.error().what();
    return std::move(shell).value();
  }

  // Reads output until `exited`, acknowledging it; returns the wait status.
  static int collect(InitClient& client, std::string& out, std::string& err) {
    std::uint64_t next = 0;
    while (true) {
      Result<std::optional<InitEvent>> event = client.next_event(60'000);
      if (!event.ok() || !event->has_value()) {
        ADD_FAILURE() << (event.ok() ? "no event" : event.error().what());
        return -1;
      }
      InitEvent& got = **event;
      if (got.type == Message::exited) return static_cast<int>(got.b);
      if (got.type != Message::out) continue;
      if (got.a != next && next != 0) ADD_FAILURE() << "output " << got.a << " after " << next;
      next = got.a + got.payload.size();
      (got.b == 2 ? err : out) += got.payload;
      Result<void> acked = client.ack_output(next);
      if (!acked.ok()) ADD_FAILURE() << acked.error().what();
    }
  }

  struct Ran {
    int status = 0;
    std::string out, err;
  };
  Ran run_in(Shell& shell, SpawnRequest request) {
    Ran ran;
    Result<InitClient> client = InitClient::connect(Shell::socket_path(env_, shell.id()));
    if (!client.ok()) {
      ADD_FAILURE() << client.error().what();
      return ran;
    }
    if (request.env.empty()) request.env = {"PATH=/usr/bin:/bin"};
    Result<Attached> attached = client->attach();
    Result<Spawned> spawned = client->spawn(request);
    if (!attached.ok() || !spawned.ok()) {
      ADD_FAILURE() << (attached.ok() ? spawned.error().what() : attached.error().what());
      return ran;
    }
    ran.status = collect(*client, ran.out, ran.err);
    return ran;
  }
  Ran run_sh(Shell& shell, const std::string& script) {
    SpawnRequest request;
    request.argv = {"sh", "-c", script};
    return run_in(shell, request);
  }

  NodeEnv env_;
  std::string root_;
};

}  // namespace godwit::capsule
