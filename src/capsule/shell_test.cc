#include "capsule/shell.h"

#include <signal.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "capsule/test_node.h"
#include "sys/namespaces.h"

namespace godwit::capsule {
namespace {

class ShellTest : public TestNode {
 protected:
  // Everything that could be left of any capsule of this node.
  void expect_nothing_left(const CapsuleId& id) {
    EXPECT_EQ(below(env_.run_dir + "/capsules"), std::vector<std::string>());
    EXPECT_EQ(below(env_.state_dir + "/capsules"), std::vector<std::string>());
    Result<sys::CgroupGroup> base = sys::CgroupGroup::open(env_.cgroup_base);
    if (base.ok()) {
      for (const sys::CgroupGroup::Place& place : base->places()) {
        for (const auto& entry : std::filesystem::directory_iterator(place.path)) {
          EXPECT_FALSE(entry.is_directory()) << entry.path();
        }
      }
    }
    Result<std::string> mounts = read_file("/proc/self/mountinfo");
    ASSERT_OK(mounts);
    EXPECT_EQ(mounts->find(id.value), std::string::npos);
    sys::Netlink netlink = std::move(sys::Netlink::open()).value();
    Result<std::vector<sys::Link>> links = netlink.links();
    ASSERT_OK(links);
    for (const sys::Link& link : *links) EXPECT_NE(link.kind, "veth") << link.name;
    EXPECT_EQ(processes_of(id), std::vector<std::string>());
  }

  static std::vector<std::string> below(const std::string& directory) {
    std::vector<std::string> out;
    std::error_code not_there;
    for (const auto& entry : std::filesystem::directory_iterator(directory, not_there))
      out.push_back(entry.path().filename());
    return out;
  }

  // Processes that this test started for the capsule: their command line names its run directory.
  std::vector<std::string> processes_of(const CapsuleId& id) const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      Result<std::string> command = read_file(entry.path() / "cmdline");
      if (command.ok() && command->find("--start") != std::string::npos &&
          command->find(env_.run_dir + "/capsules/" + id.value) != std::string::npos)
        out.push_back(name);
    }
    return out;
  }
};

TEST_F(ShellTest, ExitStatusAndOutputArriveOnceAndInOrder) {
  Shell shell = make_shell(spec("c1"));
  Ran ran = run_sh(shell, "echo out; echo err >&2; exit 7");
  EXPECT_EQ(WEXITSTATUS(ran.status), 7);
  EXPECT_EQ(ran.out, "out\n");
  EXPECT_EQ(ran.err, "err\n");
  // Kept until the end, for whoever asks later.
  Result<Status> status = shell.init().status();
  ASSERT_OK(status);
  EXPECT_EQ(status->exited, 1);
  EXPECT_EQ(WEXITSTATUS(status->wait_status), 7);
  Result<LogChunk> log = shell.init().read_log(0);
  ASSERT_OK(log);
  EXPECT_EQ(log->bytes, "out\n");
  ASSERT_OK(shell.destroy());
  expect_nothing_left(shell.id());
}

TEST_F(ShellTest, ProgramSeesItsOwnWorld) {
  make_bridge();
  image::CapsuleSpec own = spec("c1");
  own.set_hostname("alpha");
  own.set_ip("10.77.0.5");
  own.set_prefix_len(24);
  own.set_mac("02:00:00:00:77:05");
  Shell shell = make_shell(own);
  Ran ran = run_sh(
      shell,
      "hostname; set -- /proc/[0-9]*; echo pids $#; cat /proc/1/comm;"
      "cat /sys/class/net/eth0/address; ls /tmp | wc -l; stat -c %a /tmp;"
      "cat /proc/self/cgroup | grep -c ':/$'; cat /proc/self/cgroup | wc -l;"
      "stat -f -c %T /dev/shm; ls /proc/self/fd | tr '\\n' ' '; echo;"
      "touch /tmp/x /dev/shm/y && echo wrote; ls /dev/pts; touch /sys/x 2>/dev/null || echo ro");
  EXPECT_EQ(ran.status, 0) << ran.err;
  std::vector<std::string> lines;
  std::string line;
  for (char c : ran.out) {
    if (c == '\n') {
      lines.push_back(std::exchange(line, ""));
    } else {
      line += c;
    }
  }
  ASSERT_EQ(lines.size(), 13U) << ran.out << ran.err;
  EXPECT_EQ(lines[0], "alpha");
  EXPECT_EQ(lines[1], "pids 2");  // init and the shell
  EXPECT_EQ(lines[2], "godwit-init");
  EXPECT_EQ(lines[3], "02:00:00:00:77:05");
  EXPECT_EQ(lines[4], "0");
  EXPECT_EQ(lines[5], "1777");
  EXPECT_GT(std::stoi(lines[6]), 0);
  EXPECT_EQ(lines[8], "tmpfs");
  EXPECT_EQ(lines[9], "0 1 2 3 ");  // 3 is ls's own
  EXPECT_EQ(lines[10], "wrote");
  EXPECT_EQ(lines[11], "ptmx");
  EXPECT_EQ(lines[12], "ro");
  EXPECT_TRUE(std::filesystem::exists(shell.state_dir() + "/tmp/x"));
  ASSERT_OK(shell.destroy());
  expect_nothing_left(shell.id());
}

TEST_F(ShellTest, RunsAsItsUserWithoutPrivileges) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"sh", "-c", "id -u; id -g; id -G; pwd; grep CapEff /proc/self/status; echo $X"};
  request.uid = 12345;
  request.gid = 23456;
  request.groups = {23456, 34567};
  request.cwd = "/usr";
  request.env = {"PATH=/usr/bin:/bin", "X=y z"};
  Ran ran = run_in(shell, request);
  EXPECT_EQ(ran.out, "12345\n23456\n23456 34567\n/usr\nCapEff:\t0000000000000000\ny z\n")
      << ran.err;
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, FailedSpawnSaysWhyAndCanBeTriedAgain) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"/does/not/exist"};
  Result<Spawned> spawned = shell.init().spawn(request);
  ASSERT_FALSE(spawned.ok());
  EXPECT_EQ(spawned.error().sys_errno(), ENOENT) << spawned.error().what();
  EXPECT_EQ(run_sh(shell, "exit 3").status, 3 << 8);
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, InitSurvivesSignalsFromItsCapsule) {
  Shell shell = make_shell(spec("c1"));
  Ran ran =
      run_sh(shell, "for s in TERM INT HUP KILL STOP USR1 SEGV; do kill -$s 1; done; echo alive");
  EXPECT_EQ(ran.out, "alive\n") << ran.err;
  EXPECT_TRUE(shell.init().status().ok());
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, OrphansAreReaped) {
  Shell shell = make_shell(spec("c1"));
  // 200 grandchildren whose parent is gone; at the end no zombie is left but none of init's own
  // doing.
  Ran ran =
      run_sh(shell,
             "i=0; while [ $i -lt 200 ]; do ( true & ) ; i=$((i+1)); done;"
             "while grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null; do :; done; echo clean");
  EXPECT_TRUE(ran.out.ends_with("clean\n")) << ran.err;
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, TheTreeFreezesAndInitDoesnt) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"sh", "-c", "while :; do :; done"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(shell.init().spawn(request));
  std::vector<pid_t> tree = std::move(shell.tree().pids()).value();
  EXPECT_EQ(tree.size(), 1U);
  ASSERT_OK(shell.tree().freeze());
  EXPECT_TRUE(std::move(shell.tree().is_frozen()).value());
  EXPECT_TRUE(shell.init().status().ok());
  ASSERT_OK(shell.tree().thaw());
  EXPECT_FALSE(std::move(shell.tree().is_frozen()).value());
  EXPECT_GT(*shell.tree().cpu_usage_us(), 0U);
  // Destroying a frozen one works too.
  ASSERT_OK(shell.tree().freeze());
  ASSERT_OK(shell.destroy());
  expect_nothing_left(shell.id());
}

TEST_F(ShellTest, SignalsReachTheMainProgram) {
  Shell shell = make_shell(spec("c1"));
  ASSERT_OK(shell.init().attach());
  SpawnRequest request;
  request.argv = {"sh", "-c", "trap 'echo got; exit 5' USR1; echo ready; while :; do :; done"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(shell.init().spawn(request));
  Result<std::optional<InitEvent>> event = shell.init().next_event(60'000);
  ASSERT_OK(event);
  ASSERT_TRUE(event->has_value());
  EXPECT_EQ((*event)->payload, "ready\n");
  ASSERT_OK(shell.init().signal(SIGUSR1, SignalTo::foreground));
  std::string out, err;
  int status = collect(shell.init(), out, err);
  EXPECT_EQ(out, "got\n");
  EXPECT_EQ(WEXITSTATUS(status), 5);
  EXPECT_EQ(shell.init().signal(SIGUSR1, SignalTo::main).error().sys_errno(), ESRCH);
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, ClocksGoOnFromWhereTheyWere) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"cut", "-d", ".", "-f", "1", "/proc/uptime"};
  request.clocks = {5'000'000'000'000'000, 1'000'000'000'000'000};
  Ran ran = run_in(shell, request);
  std::int64_t uptime_s = std::stoll(ran.out);
  std::int64_t expected_s = boottime_ns() / 1'000'000'000 + 1'000'000;
  EXPECT_NEAR(static_cast<double>(uptime_s), static_cast<double>(expected_s), 100);
  // Negative, with a fraction; for what is made later.
  Result<UniqueFd> clocks = shell.init().clocks({-1'500'000'000, -1});
  ASSERT_OK(clocks);
  Result<sys::TimeOffsets> offsets = sys::time_offsets_of(shell.init_pid());
  ASSERT_OK(offsets);
  Result<sys::TimeOffsets> ours = sys::time_offsets_of(::getpid());
  ASSERT_OK(ours);
  EXPECT_EQ(offsets->monotonic_ns - ours->monotonic_ns, -1'500'000'000);
  EXPECT_EQ(offsets->boottime_ns - ours->boottime_ns, -1);
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, SkeletonHasTheChosenPidAndOnlyItsChannel) {
  Shell shell = make_shell(spec("c1"));
  Result<Skeleton> skeleton = shell.init().skeleton(4711);
  ASSERT_OK(skeleton);
  EXPECT_EQ(skeleton->pid, 4711);
  std::string proc = fmt::format("/proc/{}", skeleton->node_pid);
  std::string status = std::move(read_file(proc + "/status")).value();
  EXPECT_NE(status.find("\t4711\n"), std::string::npos);
  std::vector<std::string> fds;
  for (const auto& entry : std::filesystem::directory_iterator(proc + "/fd"))
    fds.push_back(entry.path().filename());
  EXPECT_EQ(fds, std::vector<std::string>{std::to_string(skeleton->channel_remote)});
  std::vector<pid_t> tree = std::move(shell.tree().pids()).value();
  EXPECT_EQ(tree, std::vector<pid_t>{skeleton->node_pid});
  for (const sys::CgroupGroup::Place& place : shell.tree().places()) {
    std::string procs = std::move(read_file(place.path + "/cgroup.procs")).value();
    EXPECT_NE(procs.find(fmt::format("{}\n", skeleton->node_pid)), std::string::npos)
        << place.path << ": " << procs;
  }
  EXPECT_EQ(shell.init().skeleton(4711).error().sys_errno(), EEXIST);
  ASSERT_OK(shell.init().set_last_pid(9000));
  EXPECT_EQ(*shell.init().last_pid(), 9000);
  ASSERT_OK(shell.destroy());
  expect_nothing_left(shell.id());
}

TEST_F(ShellTest, HeldDescriptorsOutliveTheClient) {
  Shell shell = make_shell(spec("c1"));
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  {
    Result<InitClient> other = InitClient::connect(Shell::socket_path(env_, shell.id()));
    ASSERT_OK(other);
    std::vector<int> fds(40, ends[1]);
    ASSERT_OK(other->hold_fds("uffd", fds));
  }
  ::close(ends[1]);
  Result<std::vector<UniqueFd>> fetched = shell.init().fetch_fds("uffd");
  ASSERT_OK(fetched);
  ASSERT_EQ(fetched->size(), 40U);
  ASSERT_OK(write_full(fetched->back().get(), as_bytes("x")));
  fetched->clear();
  char byte = 0;
  EXPECT_EQ(::read(ends[0], &byte, 1), 1);
  ASSERT_OK(shell.init().drop_fds("uffd"));
  EXPECT_EQ(::read(ends[0], &byte, 1), 0);  // The last writer is gone.
  ::close(ends[0]);
  EXPECT_EQ(std::move(shell.init().fetch_fds("uffd")).value().size(), 0U);
  ASSERT_OK(shell.destroy());
}

TEST_F(ShellTest, OpenFindsItAgain) {
  image::CapsuleSpec own = spec("c1");
  pid_t init_pid = 0;
  {
    Shell shell = make_shell(own);
    init_pid = shell.init_pid();
  }
  Result<Shell> again = Shell::open(env_, CapsuleId{own.id()});
  ASSERT_OK(again);
  EXPECT_EQ(again->init_pid(), init_pid);
  EXPECT_EQ(again->spec().name(), "c1");
  EXPECT_EQ(Shell::create(env_, own).error().code(), Errc::refused);
  EXPECT_TRUE(again->init().status().ok());  // The refused one did no harm.
  ASSERT_OK(again->destroy());
  EXPECT_EQ(Shell::open(env_, CapsuleId{own.id()}).error().code(), Errc::not_found);
  ASSERT_OK(Shell::destroy(env_, CapsuleId{own.id()}));  // Once more: nothing to do.
}

TEST_F(ShellTest, GateOpensAndCloses) {
  make_bridge();
  image::CapsuleSpec own = spec("c1");
  own.set_ip("10.77.0.6");
  own.set_prefix_len(24);
  Shell shell = make_shell(own);
  sys::Netlink netlink = std::move(sys::Netlink::open()).value();
  std::string outer = shell.link_name();
  EXPECT_EQ(*netlink.port_state(outer), sys::PortState::disabled);
  ASSERT_OK(shell.gate(true));
  EXPECT_EQ(*netlink.port_state(outer), sys::PortState::forwarding);
  ASSERT_OK(shell.announce());
  ASSERT_OK(shell.gate(false));
  EXPECT_EQ(*netlink.port_state(outer), sys::PortState::disabled);
  ASSERT_OK(shell.destroy());
  expect_nothing_left(shell.id());
}

TEST_F(ShellTest, ErrorsNameTheStepAndLeaveNothing) {
  image::CapsuleSpec own = spec("c1");
  env_.libexec_dir = root_;
  Result<Shell> shell = Shell::create(env_, own);
  ASSERT_FALSE(shell.ok());
  EXPECT_NE(shell.error().what().find("start init"), std::string::npos) << shell.error().what();
  expect_nothing_left(CapsuleId{own.id()});
}

TEST_F(ShellTest, SpareBecomesAnyCapsule) {
  make_bridge();
  Result<CapsuleId> spare = Shell::make_spare(env_);
  ASSERT_OK(spare);
  EXPECT_TRUE(Shell::is_spare(*spare));
  image::CapsuleSpec own = spec("c1");
  own.set_hostname("alpha");
  own.set_ip("10.77.0.5");
  own.set_prefix_len(24);
  own.set_mac("02:00:00:00:77:05");
  Result<Shell> shell = Shell::create(env_, own, *spare);
  ASSERT_OK(shell);
  EXPECT_EQ(below(env_.run_dir + "/capsules"), std::vector<std::string>{own.id()});
  sys::Netlink netlink = std::move(sys::Netlink::open()).value();
  EXPECT_EQ(*netlink.port_state(shell->link_name()), sys::PortState::disabled);
  ASSERT_OK(shell->gate(true));
  ASSERT_OK(shell->announce());
  ASSERT_OK(Shell::open(env_, CapsuleId{own.id()}));
  Ran ran = run_sh(*shell,
                   "hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0 |"
                   "grep -o '10[.][0-9./]*' | head -n 1; ip route | grep -c default; touch /tmp/x");
  EXPECT_EQ(ran.out, "alpha\n02:00:00:00:77:05\n10.77.0.5/24\n1\n") << ran.err;
  EXPECT_TRUE(std::filesystem::exists(shell->state_dir() + "/tmp/x"));
  ASSERT_OK(shell->destroy());
  expect_nothing_left(CapsuleId{own.id()});
}

TEST_F(ShellTest, SpareThatDiedIsReplaced) {
  Result<CapsuleId> spare = Shell::make_spare(env_);
  ASSERT_OK(spare);
  {
    Result<InitClient> init = InitClient::connect(Shell::socket_path(env_, *spare));
    ASSERT_OK(init);
    ASSERT_EQ(::kill(init->init_pid(), SIGKILL), 0);
  }
  image::CapsuleSpec own = spec("c1");
  Result<Shell> shell = Shell::create(env_, own, *spare);
  ASSERT_OK(shell);
  EXPECT_EQ(run_sh(*shell, "exit 3").status, 3 << 8);
  // So is one that never was.
  image::CapsuleSpec other = spec("c2");
  Result<Shell> second = Shell::create(env_, other, CapsuleId{"spare-0123456789ab"});
  ASSERT_OK(second);
  ASSERT_OK(second->destroy());
  ASSERT_OK(shell->destroy());
  expect_nothing_left(CapsuleId{own.id()});
}

TEST_F(ShellTest, RetiredShellLeavesItsIdToAnother) {
  make_bridge();
  image::CapsuleSpec own = spec("c1");
  own.set_ip("10.77.0.5");
  own.set_prefix_len(24);
  Shell first = make_shell(own);
  ASSERT_OK(first.gate(true));
  SpawnRequest request;
  request.argv = {"sh", "-c", "while :; do :; done"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(first.init().spawn(request));
  ASSERT_OK(first.tree().freeze());
  Result<CapsuleId> rest = first.retire();
  ASSERT_OK(rest);
  EXPECT_TRUE(Shell::is_retired(*rest));
  EXPECT_EQ(std::move(first.tree().pids()).value(), std::vector<pid_t>());
  sys::Netlink netlink = std::move(sys::Netlink::open()).value();
  EXPECT_EQ(*netlink.port_state(first.link_name()), sys::PortState::disabled);
  Shell second = make_shell(own);
  ASSERT_OK(Shell::destroy_retired(env_));
  EXPECT_EQ(run_sh(second, "exit 3").status, 3 << 8);
  ASSERT_OK(second.destroy());
  expect_nothing_left(CapsuleId{own.id()});
}

// Death of the daemon, the starter or init at random moments; `destroy` of what is listed cleans
// up.
TEST_F(ShellTest, DestroyCleansUpAfterDeathAtAnyMoment) {
  make_bridge();
  std::mt19937 random(20261120);
  int interrupted = 0;
  int finished = 0;
  std::int64_t whole_us = 0;  // What the quickest undisturbed one took here and now.
  for (int round = 0; round < 60; ++round) {
    image::CapsuleSpec own = spec("c1");
    own.set_ip("10.77.0.7");
    own.set_prefix_len(24);
    CapsuleId id{own.id()};
    bool from_spare = round % 3 == 2;
    pid_t daemon = ::fork();
    ASSERT_GE(daemon, 0);
    if (daemon == 0) {
      Result<CapsuleId> spare = from_spare ? Shell::make_spare(env_) : CapsuleId{};
      ::_exit(spare.ok() && Shell::create(env_, own, *spare).ok() ? 0 : 1);
    }
    const std::int64_t began_us = monotonic_us();
    std::uniform_int_distribution<std::int64_t> moments_us(0, 2 * whole_us);
    const std::int64_t moment_us = began_us + moments_us(random);
    siginfo_t ended{};
    while (ended.si_pid == 0 && (whole_us == 0 || monotonic_us() < moment_us)) {
      ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(daemon), &ended, WEXITED | WNOHANG | WNOWAIT), 0);
      std::this_thread::yield();
    }
    const std::int64_t took_us = std::max<std::int64_t>(1, monotonic_us() - began_us);
    CapsuleId killed = from_spare ? CapsuleId{"spare-"} : id;
    if (whole_us == 0 || ended.si_pid != 0) {
      // Undisturbed.
    } else if (round % 2 == 0) {
      ::kill(daemon, SIGKILL);
    } else {
      for (const std::string& pid : processes_of(killed)) ::kill(std::stoi(pid), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(daemon, &status, 0), daemon);
    ++(status == 0 ? finished : interrupted);
    if (ended.si_pid != 0) whole_us = whole_us == 0 ? took_us : std::min(whole_us, took_us);
    for (const std::string& listed : below(env_.run_dir + "/capsules"))
      ASSERT_OK(Shell::destroy(env_, CapsuleId{listed}));
    // A starter that was late ends by itself; wait for it.
    EXPECT_TRUE(eventually([&] { return processes_of(killed).empty(); }));
    expect_nothing_left(killed);
  }
  EXPECT_GT(interrupted, 5);
  EXPECT_GT(finished, 2);
}

}  // namespace
}  // namespace godwit::capsule
