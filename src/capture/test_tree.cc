#include "capture/test_tree.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <vector>

#include "base/clock.h"
#include "base/io.h"
#include "sys/cgroup.h"

namespace godwit::capture {
namespace {
constexpr std::int64_t limit_us = 60'000'000;

std::string v2_mount() {
  Result<std::vector<sys::CgroupHierarchy>> mounted = sys::mounted_cgroups();
  if (!mounted.ok()) return "";
  for (const sys::CgroupHierarchy& hierarchy : *mounted)
    if (hierarchy.v2) return hierarchy.mount;
  return "";
}

void nap() {
  timespec t{0, 1'000'000};
  ::nanosleep(&t, nullptr);
}
}  // namespace

std::string why_no_trees() {
  if (::geteuid() != 0) return "needs root";
  if (v2_mount().empty()) return "no cgroup v2 hierarchy is mounted";
  return "";
}

TestTree::TestTree(TestTree&& other) noexcept
    : directory_(std::exchange(other.directory_, "")),
      pid_(std::exchange(other.pid_, 0)),
      shared_(std::exchange(other.shared_, nullptr)) {}

TestTree::~TestTree() {
  if (pid_ > 0) {
    // With its children, if it has any.
    ::kill(pid_, SIGKILL);
    (void)write_file(directory_ + "/cgroup.kill", "1");
    (void)write_file(directory_ + "/cgroup.freeze", "0");
    ::waitpid(pid_, nullptr, 0);
  }
  if (shared_ != nullptr) ::munmap(shared_, sizeof(SelfCheck));
  // The group is empty a moment after the process has been reaped.
  for (int i = 0;
       i < 1000 && !directory_.empty() && ::rmdir(directory_.c_str()) != 0 && errno == EBUSY; ++i)
    nap();
}

Result<TestTree> TestTree::make_group() {
  TestTree tree;
  std::string directory = fmt::format("{}/godwit-capture-test-{}", v2_mount(), random_hex(6));
  if (::mkdir(directory.c_str(), 0755) != 0) return os_error(fmt::format("mkdir({})", directory));
  tree.directory_ = std::move(directory);
  return tree;
}

Result<TestTree> TestTree::start_function(const std::function<void(Ready)>& program) {
  TestTree tree = TRY(make_group());
  UniqueFd join = TRY(open_fd(tree.directory_ + "/cgroup.procs", O_WRONLY));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return os_error("pipe2");
  UniqueFd reader(ends[0]), writer(ends[1]);
  tree.pid_ = ::fork();
  if (tree.pid_ < 0) return os_error("fork");
  if (tree.pid_ == 0) {
    if (::write(join.get(), "0", 1) != 1) ::_exit(126);
    int null = ::open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
    // What the test program itself has open isn't the tracee's.
    constexpr int ready_fd = 99;
    ::dup2(writer.get(), ready_fd);
    ::close_range(3, ready_fd - 1, 0);
    ::close_range(ready_fd + 1, ~0U, 0);
    program([] {
      (void)!::write(ready_fd, "!", 1);
      ::close(ready_fd);
    });
    ::_exit(0);
  }
  writer.reset();
  char byte = 0;
  if (::read(reader.get(), &byte, 1) != 1)
    return make_error(Errc::tracee_gone, "the tracee ended at its start");
  return tree;
}

Result<TestTree> TestTree::start(int sleepers, bool only_sleepers) {
  TestTree tree = TRY(make_group());
  UniqueFd memory(::memfd_create("selfcheck", MFD_CLOEXEC));
  if (!memory.valid() || ::ftruncate(memory.get(), sizeof(SelfCheck)) != 0)
    return os_error("memfd_create");
  void* at =
      ::mmap(nullptr, sizeof(SelfCheck), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (at == MAP_FAILED) return os_error("mmap");
  tree.shared_ = static_cast<SelfCheck*>(at);
  const std::string path = fmt::format("/proc/{}/fd/{}", ::getpid(), memory.get());
  const std::string count = std::to_string(sleepers);
  const std::string procs = tree.directory_ + "/cgroup.procs";
  UniqueFd join = TRY(open_fd(procs, O_WRONLY));
  tree.pid_ = ::fork();
  if (tree.pid_ < 0) return os_error("fork");
  if (tree.pid_ == 0) {
    if (::write(join.get(), "0", 1) != 1) ::_exit(126);
    int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
    ::close_range(3, ~0U, 0);
    ::execl(SELFCHECK_TRACEE, SELFCHECK_TRACEE, path.c_str(), count.c_str(),
            only_sleepers ? "sleepers" : nullptr, nullptr);
    ::_exit(127);
  }
  for (std::int64_t start = monotonic_us(); tree.shared_->jobs == 0; nap()) {
    if (::waitpid(tree.pid_, nullptr, WNOHANG) != 0)
      return make_error(Errc::tracee_gone, "the tracee ended at its start");
    if (monotonic_us() - start > limit_us)
      return make_error(Errc::timeout, "the tracee doesn't start");
  }
  return tree;
}

std::uint64_t TestTree::beats() const {
  std::uint64_t sum = 0;
  for (const auto& beat : shared_->beats) sum += beat;
  return sum;
}

std::string TestTree::complaint() const {
  if (shared_ != nullptr && shared_->error[0] != '\0') return shared_->error;
  // WNOWAIT: the destructor reaps.
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
      info.si_pid == pid_)
    return fmt::format("the tracee ended with code {} status {}", info.si_code, info.si_status);
  return "";
}

Result<void> TestTree::await_beats() {
  const auto jobs = static_cast<std::size_t>(shared_->jobs.load());
  std::vector<std::uint64_t> before(jobs);
  for (std::size_t i = 0; i < jobs; ++i) before[i] = shared_->beats[i];
  const std::int64_t start = monotonic_us();
  for (std::size_t i = 0; i < jobs;) {
    if (std::string wrong = complaint(); !wrong.empty())
      return make_error(Errc::internal, "{}", wrong);
    if (shared_->beats[i] > before[i]) {
      ++i;
      continue;
    }
    if (monotonic_us() - start > limit_us)
      return make_error(Errc::timeout, "thread {} of the tracee hangs", i);
    nap();
  }
  return {};
}

}  // namespace godwit::capture
