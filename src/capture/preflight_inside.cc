// What no file in /proc tells, and what the target could not give to a process either: Landlock
// domains and keys. Asked of the program itself, in a stop of its own before the migration begins
// (about half a millisecond), so that it is refused like everything else, before anything is sent.
//
// Landlock has no call that says "you are confined", and what a domain forbids is up to its author.
// But one thing every domain forbids: to look at a process outside of it
// (hook_ptrace_access_check). So there has to be a process at which this thread may look by all
// other rules, a *witness*: in the capsule's PID namespace, with the thread's real user and group,
// without capabilities, dumpable. kcmp(2) with it twice changes nothing and asks only that
// question: EPERM is the domain's answer. Seccomp filters don't count meanwhile
// (PTRACE_O_SUSPEND_SECCOMP).
//
// Keys: init gives each capsule a session keyring of its own, which is empty; the default of a
// session without one is that of the user. Anything else is the program's, and so is a keyring of
// its thread or process.
//
// And what shows only while no descriptor comes or goes: whether an end of a pipe is held outside
// of the tree, what an epoll instance watches.

#include "capture/describe.h"
#include "capture/describe_files.h"
#include "capture/describe_objects.h"
#include "capture/freeze.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <list>
#include <optional>

#include "base/ids.h"
#include "base/io.h"
#include "sys/kernel_features.h"
#include "sys/namespaces.h"
#include "sys/pidfd.h"
#include "sys/protection_keys.h"

namespace godwit::capture {
namespace {

// Newer than the headers of Debian 12.
constexpr int prctl_get_mdwe = 66;
constexpr int prctl_get_memory_merge = 68;
constexpr int arch_get_xcomp_perm = 0x1022;
constexpr std::uint64_t xfeature_xtile_data = 1ULL << 18;
constexpr std::size_t keyring_text_bytes = 256;

[[noreturn]] void be_witness(uid_t uid, gid_t gid) {
  const __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2] = {};
  // System calls, not the library's wrappers: those would tell threads that we don't have.
  const bool ready =
      ::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && ::syscall(SYS_setgroups, 0, nullptr) == 0 &&
      ::syscall(SYS_setresgid, gid, gid, gid) == 0 &&
      ::syscall(SYS_setresuid, uid, uid, uid) == 0 && ::syscall(SYS_capset, &header, none) == 0 &&
      ::prctl(PR_SET_DUMPABLE, 1) == 0 &&
      ::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0;  // Again: a change of user forgets it.
  const int answer = ready ? ::getpid() : -errno;
  char byte;
  if (::write(1, &answer, sizeof answer) == sizeof answer)
    while (::read(0, &byte, 1) > 0) {
    }
  ::_exit(0);
}

// Between fork and exit only system calls: another thread of the worker may have held any lock.
[[noreturn]] void start_witness(int pid_namespace, int in, int out, uid_t uid, gid_t gid) {
  int answer = 0;
  if (::setns(pid_namespace, CLONE_NEWPID) == 0 && ::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 &&
      ::syscall(SYS_close_range, 2, ~0U, 0) == 0) {
    const long pid = ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) be_witness(uid, gid);
    if (pid > 0) {
      ::close(0);
      while (::waitpid(static_cast<pid_t>(pid), nullptr, 0) < 0 && errno == EINTR) {
      }
      ::_exit(0);
    }
  }
  answer = -errno;
  (void)!::write(1, &answer, sizeof answer);
  ::_exit(1);
}

class Witness {
 public:
  static Result<Witness> start(pid_t init_pid, uid_t uid, gid_t gid) {
    UniqueFd pid_namespace = TRY(sys::open_namespace(init_pid, "pid"));
    int in[2], out[2];
    if (::pipe2(in, O_CLOEXEC) != 0) return os_error("pipe2");
    UniqueFd in_read(in[0]), in_write(in[1]);
    if (::pipe2(out, O_CLOEXEC) != 0) return os_error("pipe2");
    UniqueFd out_read(out[0]), out_write(out[1]);
    const pid_t keeper = ::fork();
    if (keeper < 0) return os_error("fork");
    // The numbers that dup2 and the rest need are free: a worker's 0, 1, 2 are never pipes of ours.
    if (keeper == 0) start_witness(pid_namespace.get(), in_read.get(), out_write.get(), uid, gid);
    Witness witness(keeper, uid, gid, std::move(in_write));
    out_write.reset();
    int answer = 0;
    ssize_t n;
    do n = ::read(out_read.get(), &answer, sizeof answer);
    while (n < 0 && errno == EINTR);
    if (n != sizeof answer) return make_error(Errc::internal, "the witness of preflight died");
    if (answer <= 0) return os_error(fmt::format("witness of user {}", uid), -answer);
    witness.pid_inside_ = answer;
    return witness;
  }

  Witness(Witness&& other) noexcept = default;
  Witness& operator=(Witness&&) = delete;
  ~Witness() {
    if (!end_.valid()) return;  // Moved from.
    end_.reset();
    while (::waitpid(keeper_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  bool is_of(uid_t uid, gid_t gid) const { return uid == uid_ && gid == gid_; }
  pid_t pid_inside() const { return pid_inside_; }

 private:
  Witness(pid_t keeper, uid_t uid, gid_t gid, UniqueFd end)
      : keeper_(keeper), uid_(uid), gid_(gid), end_(std::move(end)) {}
  pid_t keeper_, pid_inside_ = 0;
  uid_t uid_;
  gid_t gid_;
  UniqueFd end_;  // Closed: the witness ends, and then its keeper.
};

class Witnesses {
 public:
  explicit Witnesses(pid_t init_pid)
      : init_pid_(init_pid),
        wanted_(init_pid != 0 && ::syscall(SYS_landlock_create_ruleset, nullptr, 0,
                                           LANDLOCK_CREATE_RULESET_VERSION) > 0) {}

  // Null where the kernel has no Landlock.
  Result<const Witness*> for_thread(pid_t tid) {
    if (!wanted_) return nullptr;
    const sys::ProcStatus status = TRY(sys::read_status(tid));
    for (const Witness& witness : list_)
      if (witness.is_of(status.uids[0], status.gids[0])) return &witness;
    list_.push_back(TRY(Witness::start(init_pid_, status.uids[0], status.gids[0])));
    return &list_.back();
  }

 private:
  pid_t init_pid_;
  bool wanted_;
  std::list<Witness> list_;
};

// What one thread has.
class Questions {
 public:
  Questions(sys::RemoteBatch& batch, const Witness* witness)
      : batch_(batch), asked_witness_(witness != nullptr) {
    if (asked_witness_) {
      const pid_t pid = witness->pid_inside();
      seen_ = batch_.call(SYS_kcmp, pid, pid, static_cast<int>(sys::KcmpType::vm), 0, 0);
    }
    own_[0] = batch_.call(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 0);
    own_[1] = batch_.call(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 0);
    name_ = batch_.space(keyring_text_bytes);
    named_ = batch_.call(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, name_,
                         keyring_text_bytes - 1);
    content_ = batch_.call(SYS_keyctl, KEYCTL_READ, KEY_SPEC_SESSION_KEYRING, 0, 0);
  }

  void answer(const std::string& whose, std::vector<std::string>& reasons) const {
    if (asked_witness_ && batch_.result(seen_) == -EPERM)
      reasons.push_back(whose + " is confined by a Landlock domain, which can't move");
    const char* names[] = {"thread", "process"};
    for (int i = 0; i < 2; ++i)
      if (batch_.result(own_[i]) >= 0)
        reasons.push_back(
            fmt::format("{} has a {} keyring, which can't move yet", whose, names[i]));
    if (batch_.result(named_) < 0) return;
    // "keyring;UID;GID;PERM;NAME"
    const auto text = batch_.get<std::array<char, keyring_text_bytes>>(name_);
    const std::string description = text.data();
    const std::string name = description.substr(description.rfind(';') + 1);
    const bool given = name == "_ses" && batch_.result(content_) == 0;
    if (!given && !name.starts_with("_uid_ses."))
      reasons.push_back(
          fmt::format("{} has the session keyring \"{}\", which can't move yet", whose, name));
  }

 private:
  sys::RemoteBatch& batch_;
  bool asked_witness_;
  std::size_t seen_ = 0, own_[2], named_, content_;
  RemoteAddr name_;
};

// What the program uses of that not every kernel has, and only it can tell.
class KernelQuestions {
 public:
  explicit KernelQuestions(sys::RemoteBatch& batch)
      : batch_(batch),
        mdwe_(batch.call(SYS_prctl, prctl_get_mdwe, 0, 0, 0, 0)),
        memory_merge_(batch.call(SYS_prctl, prctl_get_memory_merge, 0, 0, 0, 0)) {}
  std::uint64_t answer() const {
    std::uint64_t needs = 0;
    if (batch_.result(mdwe_) > 0) needs |= sys::kernel_mdwe;
    if (batch_.result(memory_merge_) > 0) needs |= sys::kernel_memory_merge;
    return needs;
  }

 private:
  sys::RemoteBatch& batch_;
  std::size_t mdwe_, memory_merge_;
};

// Keys of the process that no mapping need have. A key it has is accepted, and then there is no
// mapping at an address of the kernel's; one it hasn't, or that of execute-only memory, is invalid.
class ProtectionKeyQuestions {
 public:
  explicit ProtectionKeyQuestions(sys::RemoteBatch& batch) : batch_(batch) {
    constexpr std::uint64_t never_mapped = 0xffff'8000'0000'0000;
    for (std::uint32_t key = 1; key < sys::protection_keys_max; ++key)
      asked_.push_back(batch.call(SYS_pkey_mprotect, never_mapped, page_bytes, PROT_NONE, key));
  }

  void answer(const std::string& whose, std::vector<std::string>& reasons) const {
    const auto allocated = std::count_if(asked_.begin(), asked_.end(), [&](std::size_t index) {
      return batch_.result(index) == -ENOMEM;
    });
    if (allocated > 0)
      reasons.push_back(fmt::format("{} has {} protection {} (pkey_alloc), which can't move yet",
                                    whose, allocated, allocated == 1 ? "key" : "keys"));
  }

 private:
  sys::RemoteBatch& batch_;
  std::vector<std::size_t> asked_;
};

Result<void> look(FrozenTree& tree, FrozenProcess& process, Witnesses& witnesses,
                  std::vector<std::string>& reasons, std::uint64_t& kernel_needs) {
  const std::string whose = fmt::format("process {}", process.pid_inside);
  sys::RemoteProcess* remote = TRY(tree.remote(process));
  TRY(remote->map_arena(process.threads.front()));
  for (FrozenThread& thread : process.threads) {
    sys::RemoteBatch batch(*remote);
    Questions questions(batch, TRY(witnesses.for_thread(thread.tid)));
    const bool first = &thread == &process.threads.front();
    const RemoteAddr xcomp = batch.space(sizeof(std::uint64_t)), ldt = batch.space(64);
    std::size_t has_ldt = 0;
    std::optional<KernelQuestions> kernel;
    std::optional<ProtectionKeyQuestions> protection_keys;
    if (first) {
      kernel.emplace(batch);
      protection_keys.emplace(batch);
      batch.call(SYS_arch_prctl, arch_get_xcomp_perm, xcomp);
      has_ldt = batch.call(SYS_modify_ldt, 0, ldt, 64);
    }
    TRY(remote->run(thread, batch));
    questions.answer(fmt::format("thread {} of {}", thread.tid_inside, whose), reasons);
    if (kernel) kernel_needs |= kernel->answer();
    if (protection_keys) protection_keys->answer(whose, reasons);
    if (TRY(sys::ptrace_get_rseq(thread.tid)).size > sys::rseq_bytes_always)
      kernel_needs |= sys::kernel_large_rseq;
    if (TRY(sys::ptrace_syscall_dispatch(thread.tid)))
      reasons.push_back(
          fmt::format("thread {} of {} uses syscall user dispatch, which can't move yet",
                      thread.tid_inside, whose));
    if (first && (batch.get<std::uint64_t>(xcomp) & xfeature_xtile_data))
      reasons.push_back(whose + " has permission to use AMX, which can't move yet");
    if (first && batch.result(has_ldt) > 0)
      reasons.push_back(whose + " has a local descriptor table, which can't move");
  }
  return remote->unmap_arena(process.threads.front());
}

// Whether there is a descriptor that can show only now what is against moving it.
Result<bool> has_kernel_objects(const TreeRef& tree, pid_t pid) {
  for (int fd : TRY(sys::list_fds(pid))) {
    struct stat st {};
    const std::string place = sys::proc_path(pid, fmt::format("fd/{}", fd));
    if (::stat(place.c_str(), &st) != 0) return os_error(fmt::format("stat({})", place));
    if (S_ISFIFO(st.st_mode) && stdio_stream(tree.stdio, st) < 0) return true;
    const std::string link = TRY(sys::read_link(place));
    if (object_kind(link) != image::OpenFile::REGULAR || link.starts_with("socket:")) return true;
  }
  return false;
}

// Describes the descriptors as the migration will: what that refuses is a reason.
Result<void> look_at_descriptors(const TreeRef& tree, FrozenTree& frozen,
                                 std::vector<std::string>& reasons) {
  image::Capsule scratch;
  FileTable files(tree, scratch, true);
  for (const FrozenProcess& process : frozen.processes()) {
    if (!TRY(has_kernel_objects(tree, process.pid))) continue;
    image::Process& image = *scratch.add_processes();
    image.set_pid(process.pid_inside);
    Result<void> described = files.describe_fds(process.pid, process.pidfd.get(), image);
    if (described.ok()) continue;
    const Errc code = described.error().code();
    if (code != Errc::refused && code != Errc::unsupported) return described;
    reasons.push_back(fmt::format("process {}: {}", process.pid_inside, described.error().what()));
  }
  // An end of a pipe may be on its way in a message; to look into messages is left to the freeze
  // that is for the move.
  if (!TRY(files.sockets().may_carry_descriptors()))
    for (std::string& reason : TRY(files.pipes().reasons())) reasons.push_back(std::move(reason));
  for (std::string& reason : TRY(files.sockets().reasons(tree.connections)))
    reasons.push_back(std::move(reason));
  return {};
}

}  // namespace

Result<std::vector<std::string>> preflight_inside(const TreeRef& tree,
                                                  std::vector<sys::InterruptedSleep>& sleeps,
                                                  std::uint64_t* kernel_needs) {
  std::vector<std::string> reasons;
  std::uint64_t needs = 0;
  Witnesses witnesses(tree.init_pid);
  // Forked while the program still runs; threads that come later get theirs in the stop.
  for (pid_t tid : TRY(list_tree_threads(tree))) {
    Result<const Witness*> witness = witnesses.for_thread(tid);
    if (!witness.ok() && witness.error().code() != Errc::tracee_gone)
      return std::move(witness).error();
  }
  FrozenTree frozen = TRY(freeze(tree, {.measure_sleeps = true, .known_sleeps = sleeps}));
  for (FrozenProcess& process : frozen.processes())
    TRY(look(frozen, process, witnesses, reasons, needs));
  TRY(look_at_descriptors(tree, frozen, reasons));
  TRY(frozen.thaw(&sleeps));
  if (kernel_needs != nullptr) *kernel_needs = needs;
  return reasons;
}

Result<std::vector<std::string>> preflight_inside(const TreeRef& tree, FrozenTree& frozen,
                                                  const std::set<pid_t>& pids,
                                                  std::uint64_t* kernel_needs) {
  std::vector<std::string> reasons;
  std::uint64_t needs = 0;
  Witnesses witnesses(tree.init_pid);
  for (FrozenProcess& process : frozen.processes())
    if (pids.contains(process.pid)) TRY(look(frozen, process, witnesses, reasons, needs));
  if (kernel_needs != nullptr) *kernel_needs |= needs;
  return reasons;
}

}  // namespace godwit::capture
