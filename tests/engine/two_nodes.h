// Two nodes without daemons: directories and control groups of their own, and the real workers.
// What the system tests do through the CLI, engine tests do on the engine itself: they can kill at
// a chosen moment, and say what exactly is left.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "capsule/test_node.h"
#include "daemon/worker.h"
#include "image/image.pb.h"
#include "migrate/commit_record.h"
#include "transport/link.h"

namespace godwit {

class TwoNodes : public ::testing::Test {
 protected:
  struct Node {
    NodeEnv env;
  };

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: namespaces, ptrace and control groups";
    // The whole test process moves: nothing of it touches the machine's network.
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0) << std::strerror(errno);
    sys::Netlink netlink = std::move(sys::Netlink::open()).value();
    ASSERT_OK(netlink.set_up("lo", true));
    unique_ = fmt::format("{}-{}", ::getpid(), random_hex(3));
    // Not /tmp: a capsule has its own.
    shared_dir_ = "/var/tmp/godwit-test-" + unique_;
    std::filesystem::create_directories(shared_dir_);
    for (int i = 0; i < 2; ++i) {
      NodeEnv& env = nodes_[i].env;
      std::string root = fmt::format("/tmp/godwit-test-{}/n{}", unique_, i + 1);
      env.node = NodeId{fmt::format("n{}", i + 1)};
      env.run_dir = root + "/run";
      env.state_dir = root + "/state";
      env.cgroup_base = fmt::format("godwit-test-{}/n{}", unique_, i + 1);
      env.bridge = "";
      env.libexec_dir = std::filesystem::read_symlink("/proc/self/exe").parent_path();
      for (const char* dir : {"/journal", "/capsules"})
        std::filesystem::create_directories(env.run_dir + dir);
      for (const char* dir : {"/grants", "/capsules"})
        std::filesystem::create_directories(env.state_dir + dir);
    }
  }

  void TearDown() override {
    if (unique_.empty()) return;
    for (Node& node : nodes_)
      if (!id_.value.empty()) {
        (void)capsule::Shell::destroy(node.env, id_).ok();
        (void)capsule::Shell::destroy_retired(node.env).ok();
      }
    EXPECT_TRUE(sys::CgroupGroup::remove("godwit-test-" + unique_).ok());
    std::error_code ignored;
    std::filesystem::remove_all("/tmp/godwit-test-" + unique_, ignored);
    std::filesystem::remove_all(shared_dir_, ignored);
  }

  // As godwitd after a departure; then there must be nothing.
  void expect_no_shell(const NodeEnv& env) {
    ASSERT_OK(capsule::Shell::destroy_retired(env));
    EXPECT_TRUE(std::filesystem::is_empty(env.run_dir + "/capsules"));
    EXPECT_TRUE(std::filesystem::is_empty(env.state_dir + "/capsules"));
    Result<sys::CgroupGroup> base = sys::CgroupGroup::open(env.cgroup_base);
    if (!base.ok()) return;
    for (const sys::CgroupGroup::Place& place : base->places()) {
      for (const auto& entry : std::filesystem::directory_iterator(place.path)) {
        EXPECT_FALSE(entry.is_directory()) << entry.path();
      }
    }
  }

  // Starts a program on node 0, its output read by `client_`.
  void start_program(std::vector<std::string> argv) {
    image::CapsuleSpec spec;
    spec.set_id(random_hex(8));
    spec.set_name("c1");
    spec.set_hostname("c1");
    id_ = CapsuleId{spec.id()};
    spec_ = spec;
    Result<capsule::Shell> shell = capsule::Shell::create(nodes_[0].env, spec);
    ASSERT_OK(shell);
    at_ = 0;
    connect();
    ASSERT_OK(client_->attach(0));
    capsule::SpawnRequest request;
    request.argv = std::move(argv);
    request.env = {"PATH=/usr/bin:/bin"};
    ASSERT_OK(client_->spawn(request));
  }

  void connect() {
    Result<capsule::InitClient> client =
        capsule::InitClient::connect(capsule::Shell::socket_path(nodes_[at_].env, id_));
    ASSERT_OK(client);
    client_.emplace(std::move(client).value());
  }

  // The capsule is now on node `at_`: output goes on where it was.
  void follow() {
    connect();
    Result<capsule::Attached> attached = client_->attach(out_next_);
    ASSERT_OK(attached);
    stdin_next_ = attached->stdin_next;
  }

  Result<void> send(const std::string& line) {
    std::string text = line + "\n";
    TRY(client_->send_stdin(stdin_next_, as_bytes(text)));
    stdin_next_ += text.size();
    return {};
  }
  void send_line(const std::string& line) { ASSERT_OK(send(line)); }

  // The next line of output; "exited N" after the end.
  std::string read_line() {
    while (true) {
      std::size_t end = output_.find('\n');
      if (end != std::string::npos) {
        std::string line = output_.substr(0, end);
        output_.erase(0, end + 1);
        return line;
      }
      Result<std::optional<capsule::InitEvent>> event = client_->next_event(120'000);
      if (!event.ok()) return "error: " + event.error().what();
      if (!event->has_value()) return "error: no output in two minutes";
      capsule::InitEvent& got = **event;
      if (got.type == capsule::Message::exited) {
        const int status = static_cast<int>(got.b);
        return WIFSIGNALED(status) ? fmt::format("killed by {}", WTERMSIG(status))
                                   : fmt::format("exited {}", WEXITSTATUS(status));
      }
      if (got.type != capsule::Message::out) continue;
      EXPECT_EQ(got.a, out_next_) << "output lost or doubled";
      out_next_ = got.a + got.payload.size();
      if (Result<void> acked = client_->ack_output(out_next_); !acked.ok())
        return "error: " + acked.error().what();
      output_ += got.payload;
    }
  }

  struct Pair {
    std::unique_ptr<daemon::Worker> source, target;
  };

  // Both workers, started as the two daemons would.
  Result<Pair> start_migration(wire::Mode mode) {
    Pair pair;
    TRY(start_migration(mode, pair));
    return pair;
  }
  // Whatever was started is in `pair`, also after an error.
  Result<void> start_migration(wire::Mode mode, Pair& pair) {
    Node& from = nodes_[at_];
    Node& to = nodes_[1 - at_];
    transport::Token token = transport::random_token();
    std::string token_bytes(reinterpret_cast<const char*>(token.data()), token.size());
    ++epoch_;
    wire::WorkerOrder order;
    wire::TargetOrder& target = *order.mutable_target();
    target.set_capsule(id_.value);
    target.set_epoch(epoch_);
    *target.mutable_spec() = spec_;
    target.set_token(token_bytes);
    target.set_listen_address("127.0.0.1");
    target.set_boot("boot-" + to.env.node.value);
    target.add_shared_dirs(shared_dir_);
    pair.target = TRY(daemon::Worker::start(to.env, order));
    if (on_start_) on_start_(*pair.target, false);
    wire::WorkerEvent event = TRY(pair.target->next_event(60'000));
    while (event.has_progress()) event = TRY(pair.target->next_event(60'000));
    if (!event.has_listening())
      return make_error(Errc::internal, "target: {}", event.ShortDebugString());
    order.Clear();
    wire::SourceOrder& source = *order.mutable_source();
    source.set_capsule(id_.value);
    source.set_epoch(epoch_);
    source.set_mode(mode);
    source.set_target_node(to.env.node.value);
    source.set_target_address("127.0.0.1");
    source.set_target_port(event.listening().port());
    source.set_token(token_bytes);
    source.set_target_boot("boot-" + to.env.node.value);
    source.add_shared_dirs(shared_dir_);
    pair.source = TRY(daemon::Worker::start(from.env, order));
    if (on_start_) on_start_(*pair.source, true);
    return {};
  }

  struct Reports {
    wire::Report source, target;
  };
  Result<Reports> migrate(wire::Mode mode) {
    Pair pair = TRY(start_migration(mode));
    Reports reports;
    reports.source = TRY(pair.source->finish({}, 120'000).with("source"));
    reports.target = TRY(pair.target->finish({}, 120'000).with("target"));
    pair.source->wait_end();
    pair.target->wait_end();
    if (reports.source.outcome() == wire::Report::MOVED) at_ = 1 - at_;
    return reports;
  }

  static std::string tracee(const std::string& name) { return std::string(TRACEES) + "/" + name; }

  // Called with each worker as soon as it was started.
  std::function<void(daemon::Worker& worker, bool source)> on_start_;
  std::string unique_;
  std::string shared_dir_;  // The same on both nodes.
  Node nodes_[2];
  int at_ = 0;
  CapsuleId id_;
  image::CapsuleSpec spec_;
  std::uint64_t epoch_ = 0;
  std::optional<capsule::InitClient> client_;
  std::string output_;
  std::uint64_t out_next_ = 0;
  std::uint64_t stdin_next_ = 0;
};

}  // namespace godwit
